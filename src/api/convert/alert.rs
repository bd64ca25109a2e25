//! Alerts as the contract shows them.

use serde_json::Value;

use super::time::to_timestamp;
use crate::api::proto;
use crate::domain::alert::Alert;

/// An alert for an answer.
pub(in crate::api) fn to_proto(alert: Alert) -> proto::Alert {
    let (acknowledge_time, acknowledged_by) = alert.acknowledged.unzip();
    proto::Alert {
        id: alert.id.to_string(),
        tenant: alert.tenant.to_string(),
        endpoint_id: alert.endpoint.to_string(),
        kind: alert.kind.number().into(),
        message: alert.message,
        details: alert.details.into_iter().map(|(name, value)| (name, in_words(value))).collect(),
        open_time: Some(to_timestamp(alert.open_time)),
        close_time: alert.close_time.map(to_timestamp),
        acknowledge_time: acknowledge_time.map(to_timestamp),
        acknowledged_by: acknowledged_by.unwrap_or_default(),
    }
}

/// Text as it is, anything else as JSON writes it.
fn in_words(value: Value) -> String {
    match value {
        Value::String(text) => text,
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::domain::alert::AlertKind;
    use crate::domain::fields::Tenant;
    use crate::domain::id::{AlertId, EndpointId};
    use crate::domain::time::Timestamp;

    #[test]
    fn figures_are_shown_as_text_and_the_kinds_are_the_contracts() {
        let names = [
            "ENDPOINT_FAILING",
            "ENDPOINT_DISABLED",
            "FAILURE_RATE_HIGH",
            "QUEUE_BACKLOG",
            "DEAD_LETTERS_GROWING",
            "FILTER_ERROR",
        ];
        for (number, name) in (1..).zip(names) {
            let alert = Alert {
                id: AlertId::from_uuid(uuid::Uuid::nil()),
                tenant: Tenant::default_tenant(),
                endpoint: EndpointId::from_uuid(uuid::Uuid::nil()),
                kind: AlertKind::from_number(number).expect("a kind"),
                message: "words".to_owned(),
                details: [("share".to_owned(), json!(0.5)), ("reason".to_owned(), json!("gone"))].into(),
                open_time: Timestamp::from_micros(0),
                close_time: None,
                acknowledged: Some((Timestamp::from_micros(1_000_000), String::new())),
            };
            let shown = to_proto(alert);
            assert_eq!(shown.kind().as_str_name(), format!("ALERT_KIND_{name}"));
            assert_eq!((shown.details["share"].as_str(), shown.details["reason"].as_str()), ("0.5", "gone"));
            assert!(shown.acknowledge_time.is_some() && shown.close_time.is_none());
        }
    }
}
