//! The contract's messages to domain values and back. Nothing here asks the database or a clock.
//!
//! A request is checked to its end: [`Violations`] gathers every bad field before the call is refused.

pub(super) mod alert;
pub(super) mod dead_letter;
pub(super) mod delivery;
pub(super) mod endpoint;
pub(super) mod event;
mod gates;
pub(super) mod mask;
pub(super) mod replay;
pub(super) mod retry;
mod schedule;
pub(super) mod time;
mod tls;

use std::borrow::Cow;

use tonic::Status;

use super::status;
use crate::domain::Problem;
use crate::domain::pattern::EventPattern;

/// The bad fields of one request.
#[derive(Debug, Default)]
pub(super) struct Violations {
    /// The place in a batch, which every path then begins with.
    request: Option<usize>,
    /// The message that is looked at inside the request, which paths then begin with.
    inside: Option<&'static str>,
    invalid: Vec<(String, String)>,
    /// A tenant that the caller may not act for.
    denied: Option<String>,
}

impl Violations {
    /// No violation yet.
    pub(super) fn new() -> Self {
        Self::default()
    }

    /// For one request of a batch: its paths begin with `requests[n].`.
    pub(super) fn of_request(place: usize) -> Self {
        Self { request: Some(place), ..Self::default() }
    }

    /// Looks at a message inside the request, whose fields' paths begin with its name.
    pub(super) fn inside<T>(&mut self, name: &'static str, look: impl FnOnce(&mut Self) -> T) -> T {
        let outer = self.inside.replace(name);
        let found = look(self);
        self.inside = outer;
        found
    }

    /// Notes a bad field.
    pub(super) fn invalid(&mut self, path: impl Into<Cow<'static, str>>, problem: Problem) {
        let path = self.path(path.into());
        self.invalid.push((path, problem.to_string()));
    }

    /// Notes that the request names a tenant that is not its caller's.
    pub(super) fn deny_tenant(&mut self, tenant: &str) {
        self.denied.get_or_insert_with(|| tenant.to_owned());
    }

    /// The value of a field, or `None` with its problem noted.
    pub(super) fn take<T>(&mut self, path: impl Into<Cow<'static, str>>, parsed: Result<T, Problem>) -> Option<T> {
        parsed.map_err(|problem| self.invalid(path, problem)).ok()
    }

    /// The values of a repeated field, at most `max`; `None` where one of them is bad.
    pub(super) fn take_all<S: AsRef<str>, T>(
        &mut self,
        path: impl Into<Cow<'static, str>>,
        texts: &[S],
        max: usize,
        parse: impl Fn(&str) -> Result<T, Problem>,
    ) -> Option<Vec<T>> {
        let path = path.into();
        if texts.len() > max {
            self.invalid(path, Problem::new(format!("has {} entries; allowed are {max}", texts.len())));
            return None;
        }
        let mut values = Vec::with_capacity(texts.len());
        for (place, text) in texts.iter().enumerate() {
            match parse(text.as_ref()) {
                Ok(value) => values.push(value),
                Err(problem) => self.invalid(format!("{path}[{place}]"), problem),
            }
        }
        (values.len() == texts.len()).then_some(values)
    }

    /// Values of an enum in a filter, where UNSPECIFIED and undefined numbers are bad.
    pub(super) fn take_enums<T>(
        &mut self,
        path: &'static str,
        numbers: &[i32],
        from_number: impl Fn(i16) -> Option<T>,
    ) -> Option<Vec<T>> {
        if numbers.len() > FILTER_VALUES_MAX {
            self.invalid(path, Problem::new(format!("has {} entries; allowed are {FILTER_VALUES_MAX}", numbers.len())));
            return None;
        }
        let mut values = Vec::with_capacity(numbers.len());
        for (place, number) in numbers.iter().enumerate() {
            match i16::try_from(*number).ok().and_then(&from_number) {
                Some(value) => values.push(value),
                None => self.invalid(format!("{path}[{place}]"), undefined(*number)),
            }
        }
        (values.len() == numbers.len()).then_some(values)
    }

    /// Whether nothing was noted.
    pub(super) const fn is_empty(&self) -> bool {
        self.invalid.is_empty() && self.denied.is_none()
    }

    /// The status of a request with at least one violation. What the caller may not do comes first.
    pub(super) fn into_status(self) -> Status {
        match self.denied {
            Some(tenant) => status::tenant_denied(&tenant),
            None => status::invalid_fields(self.invalid),
        }
    }

    fn path(&self, path: Cow<'static, str>) -> String {
        let path = match self.inside {
            Some(name) => format!("{name}.{path}"),
            None => path.into_owned(),
        };
        match self.request {
            Some(place) => format!("requests[{place}].{path}"),
            None => path,
        }
    }
}

/// How many values a filter may list, other than patterns.
pub(super) const FILTER_VALUES_MAX: usize = 1_000;
/// How many patterns a filter may list.
pub(super) const FILTER_PATTERNS_MAX: usize = 100;

/// The problem of an enum's number that the contract does not define, or that means nothing here.
pub(super) fn undefined(number: i32) -> Problem {
    Problem::new(format!("is {number}, which is no value of this enum that is allowed here"))
}

/// The one field of a request that has only one.
pub(super) fn sole<T>(path: &'static str, parsed: Result<T, Problem>) -> Result<T, Status> {
    parsed.map_err(|problem| status::invalid_fields(vec![(path.to_owned(), problem.to_string())]))
}

/// An id in a filter, where empty means none.
pub(super) fn optional_id<T: std::str::FromStr<Err = Problem>>(text: &str) -> Result<Option<T>, Problem> {
    if text.is_empty() { Ok(None) } else { text.parse().map(Some) }
}

/// An event type in a filter, where empty means none; operational ones may be asked for.
pub(super) fn optional_event_type(text: &str) -> Result<Option<String>, Problem> {
    match EventPattern::parse(text) {
        _ if text.is_empty() => Ok(None),
        Ok(EventPattern::Exactly(event_type)) => Ok(Some(event_type)),
        _ => Err(Problem::new("is not an event type; allowed are 1 to 128 characters of [a-zA-Z0-9._-]")),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use tonic::Code;
    use tonic_types::StatusExt;

    use super::*;
    use crate::domain::fields::Tenant;

    /// The code of a refusal and the paths it names.
    pub(in crate::api) fn refused(status: &Status) -> (Code, Vec<String>) {
        let request = status.get_details_bad_request().expect("BadRequest");
        (status.code(), request.field_violations.into_iter().map(|violation| violation.field).collect())
    }

    #[test]
    fn every_bad_field_is_named() {
        let mut violations = Violations::of_request(3);
        violations.invalid("event_type", Problem::new("is wrong"));
        assert_eq!(violations.take("tenant", Tenant::parse("a b")), None);
        let (code, paths) = refused(&violations.into_status());
        assert_eq!(
            (code, paths),
            (Code::InvalidArgument, vec!["requests[3].event_type".to_owned(), "requests[3].tenant".to_owned()])
        );
    }

    #[test]
    fn filters_read_what_the_contract_allows() {
        assert_eq!(optional_event_type("hooklane.test"), Ok(Some("hooklane.test".to_owned())));
        assert_eq!(optional_event_type(""), Ok(None));
        assert!(optional_event_type("order.*").is_err());
    }
}
