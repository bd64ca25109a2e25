//! Update masks: which fields of an endpoint a request changes.

use super::Violations;
use super::retry;
use crate::api::proto::Endpoint;
use crate::domain::Problem;

/// Fields that a caller may set, and whether a message has them populated.
type Populated = fn(&Endpoint) -> bool;
const SETTABLE: [(&str, Populated); 22] = [
    ("tenant", |e| !e.tenant.is_empty()),
    ("url", |e| !e.url.is_empty()),
    ("description", |e| !e.description.is_empty()),
    ("event_types", |e| !e.event_types.is_empty()),
    ("filter", |e| !e.filter.is_empty()),
    ("signature_scheme", |e| e.signature_scheme != 0),
    ("payload_format", |e| e.payload_format != 0),
    ("headers", |e| !e.headers.is_empty()),
    ("retry_policy", |e| e.retry_policy.is_some()),
    ("event_retry_policies", |e| !e.event_retry_policies.is_empty()),
    ("timeout", |e| e.timeout.is_some()),
    ("rate_limit", |e| e.rate_limit.is_some()),
    ("max_in_flight", |e| e.max_in_flight != 0),
    ("ordering", |e| e.ordering != 0),
    ("ordering_on_failure", |e| e.ordering_on_failure != 0),
    ("circuit_breaker", |e| e.circuit_breaker.is_some()),
    ("disable_policy", |e| e.disable_policy.is_some()),
    ("labels", |e| !e.labels.is_empty()),
    ("external_id", |e| !e.external_id.is_empty()),
    ("ca_pem", |e| !e.ca_pem.is_empty()),
    ("client_certificate_pem", |e| !e.client_certificate_pem.is_empty()),
    ("client_key_pem", |e| !e.client_key_pem.is_empty()),
];

/// Fields that a mask may name without effect: output only, or read in another way.
const WITHOUT_EFFECT: [&str; 14] = [
    "id",
    "etag",
    "state",
    "disabled_reason",
    "circuit_state",
    "health_score",
    "consecutive_failures",
    "secrets",
    "public_key",
    "last_success_time",
    "last_failure_time",
    "create_time",
    "update_time",
    "filter_error_count",
];

/// The paths that a mask may have: more than there are fields, few enough to look through.
const PATHS_MAX: usize = 100;

/// The fields that a request changes.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::api) struct Mask {
    fields: Vec<&'static str>,
    /// Parts of `retry_policy`, where it is not changed as a whole.
    retry_parts: Vec<&'static str>,
}

impl Mask {
    /// Every field that a caller may set.
    pub(in crate::api) fn all() -> Self {
        Self { fields: SETTABLE.iter().map(|(name, _)| *name).collect(), retry_parts: Vec::new() }
    }

    /// Reads a request's mask: empty means the fields that `endpoint` has populated, `*` means all.
    pub(in crate::api) fn parse(paths: &[String], endpoint: &Endpoint, violations: &mut Violations) -> Self {
        if paths.len() > PATHS_MAX {
            violations.invalid("update_mask", Problem::new(format!("has {} paths; allowed are 100", paths.len())));
        } else if paths.iter().any(|path| path == "*") {
            return Self::all();
        } else if paths.is_empty() {
            let populated = SETTABLE.iter().filter(|(_, is_populated)| is_populated(endpoint));
            return Self { fields: populated.map(|(name, _)| *name).collect(), retry_parts: Vec::new() };
        }
        let mut mask = Self { fields: Vec::new(), retry_parts: Vec::new() };
        for path in paths.iter().take(PATHS_MAX) {
            mask.add(path, violations);
        }
        mask
    }

    fn add(&mut self, path: &str, violations: &mut Violations) {
        let (head, part) = path.split_once('.').unwrap_or((path, ""));
        if WITHOUT_EFFECT.contains(&head) {
            return;
        }
        let field = SETTABLE.iter().map(|(name, _)| *name).find(|name| *name == head);
        match (field, part) {
            (Some(field), "") if path == field => self.fields.push(field),
            (Some("retry_policy"), part) if let Some(known) = retry::PARTS.iter().find(|known| **known == part) => {
                self.retry_parts.push(known);
            }
            (Some(field), _) => violations.invalid(
                "update_mask",
                Problem::new(format!("names a part of {field} that cannot be changed by itself; name {field}")),
            ),
            (None, _) => {
                let shown: String = head.chars().take(64).collect();
                violations
                    .invalid("update_mask", Problem::new(format!("names {shown:?}, which is no field of Endpoint")));
            }
        }
    }

    /// Whether the field is changed as a whole.
    pub(super) fn has(&self, field: &str) -> bool {
        self.fields.contains(&field)
    }

    /// Whether the mask would change the tenant, which nothing can.
    pub(in crate::api) fn names_tenant(&self) -> bool {
        self.has("tenant")
    }

    /// The parts of `retry_policy` that are changed; none where it is changed as a whole.
    pub(super) fn retry_parts(&self) -> &[&'static str] {
        if self.has("retry_policy") { &[] } else { &self.retry_parts }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(paths: &[&str], endpoint: &Endpoint) -> Result<Mask, usize> {
        let paths: Vec<String> = paths.iter().map(|path| (*path).to_owned()).collect();
        let mut violations = Violations::new();
        let mask = Mask::parse(&paths, endpoint, &mut violations);
        if violations.is_empty() { Ok(mask) } else { Err(violations.invalid.len()) }
    }

    #[test]
    fn masks_follow_the_contract() {
        let given = Endpoint {
            url: "https://example.com".to_owned(),
            max_in_flight: 3,
            create_time: Some(prost_types::Timestamp::default()),
            ..Endpoint::default()
        };
        let fields = |paths: &[&str]| parse(paths, &given).map(|mask| mask.fields);
        assert_eq!(fields(&[]), Ok(vec!["url", "max_in_flight"]));
        assert_eq!(fields(&["*"]).map(|fields| fields.len()), Ok(SETTABLE.len()));
        assert_eq!(fields(&["labels", "state", "secrets.version", "etag"]), Ok(vec!["labels"]));
        assert_eq!(fields(&["nonsense", "labels.a", "retry_policy.nonsense", ""]), Err(4));
        assert_eq!(fields(&["url."]), Err(1));
    }

    #[test]
    fn parts_of_the_retry_policy_may_be_named() {
        let mask = parse(&["retry_policy.exponential.multiplier"], &Endpoint::default()).expect("valid");
        assert_eq!(mask.retry_parts(), ["exponential.multiplier"]);
        let whole = parse(&["retry_policy.jitter", "retry_policy"], &Endpoint::default()).expect("valid");
        assert!(whole.retry_parts().is_empty() && whole.has("retry_policy"));
    }
}
