//! What a status says: in words for people, as an exit code for scripts. The only place where commands look into one.

use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use super::{Failure, why};
use crate::cli::show::visible;

/// What a person typed for a field of the contract: `("filter.endpoint_ids", "--endpoint")`. Of fields inside another the
/// longest path counts that is there.
pub(in crate::cli) type Typed = &'static [(&'static str, &'static str)];

/// The failure of a command whose call was refused.
pub(in crate::cli) fn refused(call: &'static str) -> impl Fn(Status) -> Failure {
    refused_as(call, &[])
}

/// The same where a person typed what became the call's fields: bad ones are told by what was typed.
pub(in crate::cli) fn refused_as(call: &'static str, typed: Typed) -> impl Fn(Status) -> Failure {
    move |status| {
        let words = words(call, typed, &status);
        match exit(&status) {
            Exit::Usage => Failure::usage(words),
            Exit::Unavailable => Failure::unavailable(words),
            Exit::TryAgain => Failure::try_again(words),
            Exit::Other => Failure::other(words),
        }
    }
}

/// Whether a stream that ended so may go on elsewhere, or later: the service or the way to it went away, or had no room.
pub(in crate::cli) fn is_cut(status: &Status) -> bool {
    let is_ours = std::error::Error::source(status).is_some();
    is_ours || matches!(exit(status), Exit::Unavailable | Exit::TryAgain)
}

/// Whether a stream ended as all of them do now and then, and goes on at once.
pub(in crate::cli) fn is_routine(status: &Status) -> bool {
    status.code() == Code::Unavailable && reason(status) == "RECONNECT"
}

/// The contract's reason, or nothing: `DELIVERY_NOT_FOUND`.
fn reason(status: &Status) -> String {
    status.get_details_error_info().map(|info| visible(&info.reason)).unwrap_or_default()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Exit {
    Usage,
    Unavailable,
    TryAgain,
    Other,
}

/// By code, but for what is too large, which no later call makes smaller.
fn exit(status: &Status) -> Exit {
    match status.code() {
        // Whatever tonic calls it: CANCELLED, UNKNOWN or UNAVAILABLE, by when the connection broke.
        _ if transport_error(status).is_some() => Exit::Unavailable,
        Code::InvalidArgument | Code::OutOfRange => Exit::Usage,
        Code::ResourceExhausted if reason(status) == "PAYLOAD_TOO_LARGE" => Exit::Usage,
        Code::Unavailable => Exit::Unavailable,
        Code::ResourceExhausted | Code::Aborted | Code::DeadlineExceeded => Exit::TryAgain,
        _ => Exit::Other,
    }
}

fn words(call: &str, typed: Typed, status: &Status) -> String {
    if let Some(error) = transport_error(status) {
        return format!("{call}: the service cannot be reached: {}", why(error));
    }
    let (code, reason) = (name(status.code()), reason(status));
    let head = match reason.is_empty() {
        true => format!("{call} was refused: {code}"),
        false => format!("{call} was refused: {code} ({reason})"),
    };
    let fields = status.get_details_bad_request().map(|bad| bad.field_violations).unwrap_or_default();
    let mut words = match fields.is_empty() {
        true => format!("{head}: {}", visible(status.message())),
        false => fields.iter().fold(head, |words, field| {
            format!("{words}\n  {} {}", as_typed(&field.field, typed), visible(&field.description))
        }),
    };
    if let Some(delay) = status.get_details_retry_info().and_then(|info| info.retry_delay) {
        // The message may have said so, without when.
        let said = AGAIN.iter().find_map(|again| words.strip_suffix(again)).map(str::len);
        words.truncate(said.unwrap_or(words.len()));
        words.push_str(&format!("; try again in {}", seconds(delay)));
    }
    if status.code() == Code::Unauthenticated {
        words.push_str("\n  a key is given by --api-key-file FILE, HOOKLANE_API_KEY_FILE or HOOKLANE_API_KEY");
    }
    words
}

/// How messages end that tell the caller to try again.
const AGAIN: [&str; 2] = ["; try again", "; connect again"];

/// A field as whoever typed it calls it: `--endpoint`, or `--endpoint (number 2)` for `filter.endpoint_ids[1]`.
fn as_typed(field: &str, typed: Typed) -> String {
    let path = field.split('[').next().unwrap_or(field);
    let is_of = |known: &str| path.strip_prefix(known).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
    let Some((_, name)) = typed.iter().filter(|(known, _)| is_of(known)).max_by_key(|(known, _)| known.len()) else {
        return visible(field);
    };
    let place = field.split_once('[').and_then(|(_, rest)| rest.split(']').next()?.parse::<usize>().ok());
    match place.filter(|place| *place > 0) {
        Some(place) => format!("{name} (number {})", place + 1),
        None => (*name).to_owned(),
    }
}

/// What tonic says itself, where no status came from the service.
fn transport_error(status: &Status) -> Option<&(dyn std::error::Error + 'static)> {
    let cause = std::error::Error::source(status)?;
    (cause.is::<tonic::transport::Error>() || cause.is::<hyper::Error>()).then_some(cause)
}

fn seconds(delay: Duration) -> String {
    format!("{} s", delay.as_secs_f64().ceil().max(1.0))
}

/// As the contract writes it: `NOT_FOUND`.
fn name(code: Code) -> String {
    let mut name = String::new();
    for letter in format!("{code:?}").chars() {
        if letter.is_ascii_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.push(letter.to_ascii_uppercase());
    }
    name
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use tonic_types::ErrorDetails;

    use super::*;

    fn refusal(code: Code, reason: &str, message: &str, details: ErrorDetails) -> Failure {
        let mut details = details;
        details.set_error_info(reason, "hooklane", HashMap::new());
        refused("Publish")(Status::with_error_details(code, message, details))
    }

    #[test]
    fn every_bad_field_has_a_line() {
        let mut details = ErrorDetails::new();
        details.add_bad_request_violation("event_type", "is not an event type");
        details.add_bad_request_violation("payload_text", "is not JSON");
        let failure = refusal(Code::InvalidArgument, "INVALID_FIELD", "the same in one", details);
        let expected = "Publish was refused: INVALID_ARGUMENT (INVALID_FIELD)\n  event_type is not an event type\n  \
                        payload_text is not JSON";
        assert_eq!((failure.code(), failure.to_string().as_str()), (64, expected));
    }

    #[test]
    fn a_bad_field_is_told_by_what_was_typed_for_it() {
        const TYPED: Typed = &[("filter.endpoint_ids", "--endpoint"), ("filter", "FILTER"), ("rate", "--rate")];
        for (field, told) in [
            ("filter.endpoint_ids[0]", "--endpoint"),
            ("filter.endpoint_ids[2]", "--endpoint (number 3)"),
            ("filter.endpoint_ids", "--endpoint"),
            ("filter.tenant", "FILTER"),
            ("filters", "filters"),
            ("rate.per_second", "--rate"),
            ("a\u{1b}[31m", "a\\u{1b}[31m"),
        ] {
            assert_eq!(as_typed(field, TYPED), told);
        }
    }

    #[test]
    fn exit_codes_tell_what_a_script_can_do_about_it() {
        for (code, reason, exit) in [
            (Code::InvalidArgument, "INVALID_FIELD", 64),
            (Code::OutOfRange, "RESUME_TOKEN_EXPIRED", 64),
            (Code::ResourceExhausted, "PAYLOAD_TOO_LARGE", 64),
            (Code::ResourceExhausted, "QUEUE_FULL", 75),
            (Code::Aborted, "ETAG_MISMATCH", 75),
            (Code::DeadlineExceeded, "", 75),
            (Code::Unavailable, "STORE_UNAVAILABLE", 69),
            (Code::NotFound, "DELIVERY_NOT_FOUND", 1),
            (Code::FailedPrecondition, "DELIVERY_SUCCEEDED", 1),
            (Code::AlreadyExists, "EXTERNAL_ID_TAKEN", 1),
            (Code::Unauthenticated, "CREDENTIAL_MISSING", 1),
            (Code::PermissionDenied, "ROLE_REQUIRED", 1),
            (Code::Unimplemented, "NOT_BUILT", 1),
            (Code::Internal, "", 1),
        ] {
            assert_eq!(refusal(code, reason, "words", ErrorDetails::new()).code(), exit, "{code:?} {reason}");
        }
    }

    #[test]
    fn a_stream_goes_on_where_the_service_went_away_and_not_where_it_was_refused() {
        for (code, reason, goes_on) in [
            (Code::Unavailable, "DRAINING", true),
            (Code::Unavailable, "RECONNECT", true),
            (Code::Aborted, "STREAM_LAGGED", true),
            (Code::OutOfRange, "RESUME_TOKEN_EXPIRED", false),
            (Code::Unauthenticated, "CREDENTIAL_INVALID", false),
        ] {
            let mut details = ErrorDetails::new();
            details.set_error_info(reason, "hooklane", HashMap::new());
            let status = Status::with_error_details(code, "", details);
            assert_eq!((is_cut(&status), is_routine(&status)), (goes_on, reason == "RECONNECT"), "{reason}");
        }
        assert!(is_cut(&Status::from_error("the connection broke".into())));
    }

    #[test]
    fn when_to_try_again_and_how_to_give_a_key_are_told() {
        let details = ErrorDetails::with_retry_info(Some(Duration::from_millis(1_500)));
        let failure = refusal(Code::ResourceExhausted, "QUEUE_FULL", "the queue is full", details);
        let expected = "Publish was refused: RESOURCE_EXHAUSTED (QUEUE_FULL): the queue is full; try again in 2 s";
        assert_eq!(failure.to_string(), expected);
        for message in ["it is away", "it is away; try again", "it is away; connect again"] {
            let details = ErrorDetails::with_retry_info(Some(Duration::from_secs(1)));
            let failure = refusal(Code::Unavailable, "STORE_UNAVAILABLE", message, details).to_string();
            assert!(failure.ends_with("(STORE_UNAVAILABLE): it is away; try again in 1 s"), "{failure}");
        }
        let failure = refusal(Code::Unauthenticated, "CREDENTIAL_MISSING", "no credential", ErrorDetails::new());
        assert!(failure.to_string().contains("HOOKLANE_API_KEY"));
    }

    #[test]
    fn nothing_that_a_terminal_would_obey_is_printed() {
        let failure = refused("Publish")(Status::internal("a\u{1b}[31mb\nc"));
        assert_eq!(failure.to_string(), "Publish was refused: INTERNAL: a\\u{1b}[31mb\\nc");
    }
}
