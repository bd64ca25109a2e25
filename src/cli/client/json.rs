//! Messages of the contract as JSON, in protobuf's canonical form: what grpcurl prints and gRPC-JSON proxies take.

use std::sync::LazyLock;

use prost::Name;
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor};

use super::Failure;
use crate::api::proto::DESCRIPTORS;

static POOL: LazyLock<Result<DescriptorPool, String>> =
    LazyLock::new(|| DescriptorPool::decode(DESCRIPTORS).map_err(|error| error.to_string()));

/// One line.
pub(in crate::cli) fn to_json<M: Name>(message: &M) -> Result<String, Failure> {
    let mut dynamic = DynamicMessage::new(descriptor::<M>()?);
    let cannot = |error: &dyn std::fmt::Display| Failure::internal(format!("{} as JSON: {error}", M::NAME));
    dynamic.transcode_from(message).map_err(|error| cannot(&error))?;
    serde_json::to_string(&dynamic).map_err(|error| cannot(&error))
}

/// Reads one, from `source`, which is named where it is wrong. A field that there is not is an error.
pub(in crate::cli) fn from_json<M: Name + Default>(source: &str, text: &str) -> Result<M, Failure> {
    let wrong =
        |error: &dyn std::fmt::Display| Failure::usage(format!("{source} is not the JSON of {}: {error}", M::NAME));
    let mut reader = serde_json::Deserializer::from_str(text);
    let dynamic = DynamicMessage::deserialize(descriptor::<M>()?, &mut reader).map_err(|error| wrong(&error))?;
    reader.end().map_err(|error| wrong(&error))?;
    dynamic.transcode_to().map_err(|error| wrong(&error))
}

/// The names of the fields that are set, as an update's mask has them.
pub(in crate::cli) fn set_fields<M: Name>(message: &M) -> Result<Vec<String>, Failure> {
    let mut dynamic = DynamicMessage::new(descriptor::<M>()?);
    dynamic
        .transcode_from(message)
        .map_err(|error| Failure::internal(format!("the fields of {}: {error}", M::NAME)))?;
    let mut names: Vec<String> = dynamic.fields().map(|(field, _)| field.name().to_owned()).collect();
    names.sort_unstable();
    Ok(names)
}

/// How many values an enum of the contract has, that of 0 included.
#[cfg(test)]
pub(in crate::cli) fn values_of(name: &str) -> usize {
    let pool = POOL.as_ref().unwrap();
    pool.get_enum_by_name(&format!("hooklane.v1.{name}")).unwrap().values().len()
}

fn descriptor<M: Name>() -> Result<MessageDescriptor, Failure> {
    let pool = POOL.as_ref().map_err(|error| Failure::internal(format!("the contract cannot be read: {error}")))?;
    let name = M::full_name();
    pool.get_message_by_name(&name).ok_or_else(|| Failure::internal(format!("the contract has no {name}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::proto::{Delivery, DeliveryState, Endpoint, RateLimit};

    #[test]
    fn messages_are_written_in_canonical_form_and_read_back() {
        let endpoint = Endpoint {
            url: "https://example.com".to_owned(),
            timeout: Some(prost_types::Duration { seconds: 1, nanos: 500_000_000 }),
            rate_limit: Some(RateLimit { per_second: 2.5, burst: 3 }),
            filter_error_count: 7,
            ..Endpoint::default()
        };
        let text = to_json(&endpoint).unwrap();
        let expected = r#"{"url":"https://example.com","timeout":"1.500s","rateLimit":{"perSecond":2.5,"burst":3},"filterErrorCount":"7"}"#;
        assert_eq!(text, expected);
        assert_eq!(from_json::<Endpoint>("it", &text), Ok(endpoint));
        let delivery = Delivery { state: DeliveryState::InFlight.into(), ..Delivery::default() };
        assert_eq!(to_json(&delivery).unwrap(), r#"{"state":"DELIVERY_STATE_IN_FLIGHT"}"#);
    }

    #[test]
    fn a_mask_names_what_is_set() {
        let endpoint = Endpoint { max_in_flight: 3, filter: "true".to_owned(), ..Endpoint::default() };
        assert_eq!(set_fields(&endpoint).unwrap(), ["filter", "max_in_flight"]);
    }

    #[test]
    fn what_is_no_such_message_is_named() {
        for (text, part) in [
            (r#"{"urll":"x"}"#, "urll"),
            (r#"{"url":1}"#, "string"),
            (r#"{"url":"x"} and more"#, "trailing"),
            ("", "EOF"),
        ] {
            let failure = from_json::<Endpoint>("--from a.json", text).unwrap_err();
            let words = failure.to_string();
            assert!(failure.code() == 64 && words.contains("--from a.json") && words.contains(part), "{words}");
        }
    }
}
