//! The one place where an error becomes a gRPC status: its code, its reason, its `google.rpc` details.
//!
//! The table is that of the contract, and this file is long because all of it stands here. What went wrong inside goes to
//! the log, once, and never to the caller.

use std::collections::HashMap;
use std::fmt::Display;
use std::time::Duration;

use http::Response;
use tonic::body::Body;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use super::under_way;
use crate::domain::access::{Need, Role, roles_for};
use crate::domain::id::{AlertId, DeliveryId, EndpointId, EventId, ReplayId};
use crate::store::{self, CancelRefused, PublishError, RegisterError, RetryRefused, StartReplayError, UpdateError};

/// Who speaks in every `ErrorInfo`.
const DOMAIN: &str = "hooklane";
/// When a caller should try again where nothing better is known.
const RETRY_DELAY: Duration = Duration::from_secs(1);
/// Details travel in a header, and clients read 8 KiB of them: a request with more bad fields learns of the first ones.
const FIELDS_MAX: usize = 25;
pub(super) const MESSAGE_BYTES_MAX: usize = 1_024;

fn refusal(code: Code, reason: &str, message: impl Into<String>, mut details: ErrorDetails) -> Status {
    details.set_error_info(reason, DOMAIN, HashMap::new());
    Status::with_error_details(code, message, details)
}

/// Every bad field with what is wrong with it: a path and a clause that follows it.
pub(super) fn invalid_fields(fields: Vec<(String, String)>) -> Status {
    let mut message = String::new();
    let mut details = ErrorDetails::new();
    for (path, words) in fields.iter().take(FIELDS_MAX) {
        let separator = if message.is_empty() { "" } else { "; " };
        if message.len() + path.len() + words.len() < MESSAGE_BYTES_MAX {
            message.push_str(&format!("{separator}{path} {words}"));
        }
        details.add_bad_request_violation(path, words);
    }
    if fields.len() > FIELDS_MAX {
        message.push_str(&format!("; and {} more", fields.len() - FIELDS_MAX));
    }
    refusal(Code::InvalidArgument, "INVALID_FIELD", message, details)
}

/// A payload over the limit in a message under its own.
pub(super) fn payload_too_large(bytes: usize, bytes_max: usize) -> Status {
    too_large(format!("payload has {bytes} bytes; allowed are {bytes_max}"))
}

/// A message over its method's limit.
pub(super) fn message_too_large(bytes: usize, bytes_max: usize) -> Status {
    too_large(format!("the message has {bytes} bytes; allowed are {bytes_max}"))
}

fn too_large(message: String) -> Status {
    refusal(Code::ResourceExhausted, "PAYLOAD_TOO_LARGE", message, ErrorDetails::new())
}

/// There is no such endpoint.
pub(super) fn endpoint_not_found(id: EndpointId) -> Status {
    not_found("ENDPOINT_NOT_FOUND", "endpoint", id)
}

/// There is no such event.
pub(super) fn event_not_found(id: EventId) -> Status {
    not_found("EVENT_NOT_FOUND", "event", id)
}

/// There is no such delivery.
pub(super) fn delivery_not_found(id: DeliveryId) -> Status {
    not_found("DELIVERY_NOT_FOUND", "delivery", id)
}

/// There is no such alert.
pub(super) fn alert_not_found(id: AlertId) -> Status {
    not_found("ALERT_NOT_FOUND", "alert", id)
}

/// There is no such replay.
pub(super) fn replay_not_found(id: ReplayId) -> Status {
    not_found("REPLAY_NOT_FOUND", "replay", id)
}

fn not_found(reason: &str, kind: &str, id: impl Display) -> Status {
    let message = format!("there is no {kind} {id}");
    let details = ErrorDetails::with_resource_info(format!("hooklane.v1/{kind}"), id.to_string(), "", &message);
    refusal(Code::NotFound, reason, message, details)
}

/// The etag names another version than the current one.
pub(super) fn etag_mismatch(id: EndpointId) -> Status {
    let message = format!("the etag is not that of the current version of {id}; read it again");
    refusal(Code::Aborted, "ETAG_MISMATCH", message, ErrorDetails::new())
}

/// Others kept changing the endpoint while an update without etag was tried.
pub(super) fn keeps_changing(id: EndpointId) -> Status {
    let message = format!("{id} kept changing while it was updated; try again");
    refusal(Code::Aborted, "ETAG_MISMATCH", message, ErrorDetails::with_retry_info(Some(RETRY_DELAY)))
}

/// The call came without what would tell who makes it.
pub(super) fn credential_missing(what: &str) -> Status {
    let message = format!("the call has no credential; it needs {what}");
    refusal(Code::Unauthenticated, "CREDENTIAL_MISSING", message, ErrorDetails::new())
}

/// What the call came with is not, or no longer, valid. Which of them is not told: whoever guesses learns nothing.
pub(super) fn credential_invalid() -> Status {
    let message = "the credential is unknown, wrong, expired or revoked";
    refusal(Code::Unauthenticated, "CREDENTIAL_INVALID", message, ErrorDetails::new())
}

/// The caller's role is not enough.
pub(super) fn role_required(method: &str, need: Need, role: Role) -> Status {
    let message = format!("{method} needs the role {}; the caller has {role}", roles_for(need));
    refusal(Code::PermissionDenied, "ROLE_REQUIRED", message, ErrorDetails::new())
}

/// The caller named a tenant that is not theirs.
pub(super) fn tenant_denied(tenant: &str) -> Status {
    let message = format!("the caller may not act for the tenant {tenant}");
    refusal(Code::PermissionDenied, "TENANT_DENIED", message, ErrorDetails::new())
}

/// The call took longer than it may.
pub(super) fn deadline_exceeded(limit: Duration) -> Status {
    let message = format!("the call was given up after {limit:?}; whether it had an effect is not known");
    refusal(Code::DeadlineExceeded, "DEADLINE_EXCEEDED", message, ErrorDetails::new())
}

/// Why an endpoint was not registered.
pub(super) fn register_refused(error: RegisterError, external_id: Option<&str>) -> Status {
    match error {
        RegisterError::ExternalIdTaken => external_id_taken(external_id),
        RegisterError::Store(error) => error.into(),
    }
}

/// Why an endpoint was not updated. A moved version is the caller's to handle first.
pub(super) fn update_refused(error: UpdateError, id: EndpointId, external_id: Option<&str>) -> Status {
    match error {
        UpdateError::NotFound => endpoint_not_found(id),
        UpdateError::VersionMoved => etag_mismatch(id),
        UpdateError::ExternalIdTaken => external_id_taken(external_id),
        UpdateError::Store(error) => error.into(),
    }
}

fn external_id_taken(external_id: Option<&str>) -> Status {
    let message = "another endpoint of the tenant has this external_id";
    let details = ErrorDetails::with_resource_info(
        "hooklane.v1/endpoint.external_id",
        external_id.unwrap_or_default(),
        "",
        message,
    );
    refusal(Code::AlreadyExists, "EXTERNAL_ID_TAKEN", message, details)
}

/// Why a delivery was not retried.
pub(super) fn retry_refused(error: RetryRefused, id: DeliveryId) -> Status {
    match error {
        RetryRefused::NotFound => delivery_not_found(id),
        RetryRefused::Succeeded => precondition("DELIVERY_SUCCEEDED", id, "Cannot retry successful delivery"),
        RetryRefused::NotSettled => {
            precondition("DELIVERY_NOT_SETTLED", id, "Cannot retry a delivery that is pending or in flight")
        }
        RetryRefused::EndpointDeleted => {
            precondition("ENDPOINT_DELETED", id, "Cannot retry a delivery whose endpoint is deleted")
        }
        RetryRefused::Store(error) => error.into(),
    }
}

/// Why a delivery was not canceled.
pub(super) fn cancel_refused(error: CancelRefused, id: DeliveryId) -> Status {
    match error {
        CancelRefused::NotFound => delivery_not_found(id),
        CancelRefused::Settled => precondition("DELIVERY_SETTLED", id, "Cannot cancel a delivery that is settled"),
        CancelRefused::Store(error) => error.into(),
    }
}

fn precondition(reason: &str, id: DeliveryId, message: &str) -> Status {
    let details = ErrorDetails::with_precondition_failure_violation(reason, id.to_string(), message);
    refusal(Code::FailedPrecondition, reason, message, details)
}

impl From<PublishError> for Status {
    fn from(error: PublishError) -> Self {
        match error {
            PublishError::EndpointNotFound(id) => endpoint_not_found(id),
            // Named with their place in the request by the call itself.
            PublishError::DeliverTimeInOrder(_) => invalid_fields(vec![("deliver_time".to_owned(), error.to_string())]),
            PublishError::OrderingKeyMissing(_) => invalid_fields(vec![("ordering_key".to_owned(), error.to_string())]),
            PublishError::KeyConflict => refusal(
                Code::AlreadyExists,
                "IDEMPOTENCY_KEY_CONFLICT",
                "the idempotency key was used with another event_type, payload or content_type",
                ErrorDetails::new(),
            ),
            PublishError::QueueFull => {
                let message = "as many deliveries are outstanding as may be";
                let mut details = ErrorDetails::with_retry_info(Some(RETRY_DELAY));
                details.add_quota_failure_violation("queue.max_outstanding", message);
                refusal(Code::ResourceExhausted, "QUEUE_FULL", message, details)
            }
            // Logged by the publisher, as the two below. The event itself is at fault: trying again would not help.
            PublishError::Refused(_) => invalid_fields(vec![("event".to_owned(), "cannot be stored".to_owned())]),
            PublishError::Unavailable => store_unavailable(),
            PublishError::Internal => internal(),
        }
    }
}

impl From<store::Error> for Status {
    fn from(error: store::Error) -> Self {
        if error.is_passing() {
            tracing::warn!(%error, call = under_way::call(), trace_id = under_way::trace_id(), "a call was refused: the database did not answer");
            return store_unavailable();
        }
        tracing::error!(%error, call = under_way::call(), trace_id = under_way::trace_id(), "a call failed in the database");
        internal()
    }
}

/// The database does not answer.
pub(super) fn store_unavailable() -> Status {
    let details = ErrorDetails::with_retry_info(Some(RETRY_DELAY));
    refusal(Code::Unavailable, "STORE_UNAVAILABLE", "the database cannot be reached; try again", details)
}

/// A fault of ours, logged where it was met.
pub(super) fn internal() -> Status {
    refusal(Code::Internal, "INTERNAL", "an internal error; the server's log tells more", ErrorDetails::new())
}

/// As many streams are open as may be.
pub(super) fn too_many_streams() -> Status {
    quota("streams", "as many streams are open as may be")
}

/// Why a replay was not started.
pub(super) fn start_replay_refused(error: StartReplayError) -> Status {
    match error {
        StartReplayError::TooMany => quota("replays", "as many replays are running as may be"),
        StartReplayError::Store(error) => error.into(),
    }
}

/// As many test requests are under way as may be.
pub(super) fn too_many_tests() -> Status {
    quota("tests", "as many test requests are under way as may be")
}

fn quota(subject: &str, message: &str) -> Status {
    quota_until(subject, message, RETRY_DELAY)
}

fn quota_until(subject: &str, message: &str, wait: Duration) -> Status {
    let mut details = ErrorDetails::with_retry_info(Some(wait));
    details.add_quota_failure_violation(subject, message);
    refusal(Code::ResourceExhausted, "QUOTA", message, details)
}

/// The token was not made by us, not for this tenant, or was altered.
pub(super) fn resume_token_invalid() -> Status {
    let message =
        "resume_token is not one that a stream of this tenant gave; allowed is resume_token of any of its messages";
    let details =
        ErrorDetails::with_bad_request_violation("resume_token", "is not one that a stream of this tenant gave");
    refusal(Code::InvalidArgument, "RESUME_TOKEN_INVALID", message, details)
}

/// Some of what follows the token may be gone.
pub(super) fn resume_token_expired() -> Status {
    let message = "resume_token is older than what is kept, or from before the database was replaced; \
                   begin anew, with start_time for what is kept";
    refusal(Code::OutOfRange, "RESUME_TOKEN_EXPIRED", message, ErrorDetails::new())
}

/// A caller's calls begin faster than they may.
pub(super) fn too_many_requests(wait: Duration) -> Status {
    quota_until("requests_per_second", "the caller's calls begin faster than they may", wait)
}

/// A caller, or all of them, have as many calls under way as may be.
pub(super) fn too_many_calls() -> Status {
    quota("calls", "as many calls are under way as may be")
}

/// A caller has as many streams open as may be.
pub(super) fn too_many_streams_of_caller() -> Status {
    quota("streams_per_key", "the caller has as many streams open as may be")
}

/// As many unknown keys are being looked for as may be.
pub(super) fn too_many_lookups() -> Status {
    quota("credentials", "as many unknown keys are being looked for as may be")
}

/// The reader of a stream is too slow.
pub(super) fn stream_lagged() -> Status {
    let message = "the stream was read so slowly that what comes next is no longer kept; begin anew, with start_time for what is kept";
    refusal(Code::Aborted, "STREAM_LAGGED", message, ErrorDetails::new())
}

/// The connection has reached its age.
pub(super) fn reconnect() -> Status {
    let details = ErrorDetails::with_retry_info(Some(Duration::ZERO));
    refusal(Code::Unavailable, "RECONNECT", "the connection has reached its age; connect again", details)
}

/// The process is shutting down.
pub(super) fn draining() -> Status {
    let details = ErrorDetails::with_retry_info(Some(RETRY_DELAY));
    refusal(Code::Unavailable, "DRAINING", "the server is shutting down; connect again", details)
}

/// Gives our details to what tonic refused before any of our code ran: a method or encoding that is unknown, a message
/// that is no protobuf (which tonic calls INTERNAL, though the caller is at fault). Every status of ours has details.
pub(super) fn with_details(mut response: Response<Body>) -> Response<Body> {
    if !response.headers().contains_key(Status::GRPC_STATUS)
        || response.headers().contains_key(Status::GRPC_STATUS_DETAILS)
    {
        return response;
    }
    let Some(bare) = Status::from_header_map(response.headers()) else { return response };
    let detailed = match bare.code() {
        Code::Unimplemented => {
            let message = if bare.message().is_empty() { "there is no such method" } else { bare.message() };
            refusal(Code::Unimplemented, "UNSUPPORTED", message, ErrorDetails::new())
        }
        Code::Internal => refusal(Code::InvalidArgument, "MALFORMED_MESSAGE", bare.message(), ErrorDetails::new()),
        _ => return response,
    };
    // Beside what tonic tells already, such as the encodings it knows. Headers that do not fit stay as they were.
    let _ = detailed.add_header(response.headers_mut());
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(status: &Status, code: Code, reason: &str) {
        assert_eq!(status.code(), code);
        let info = status.get_details_error_info().expect("ErrorInfo");
        assert_eq!((info.reason.as_str(), info.domain.as_str()), (reason, "hooklane"));
    }

    #[test]
    fn statuses_follow_the_contracts_table() {
        let endpoint: EndpointId = "ep_01h455vb4pex5vsknk084sn02q".parse().expect("id");
        let delivery: DeliveryId = "dlv_01h455vb4pex5vsknk084sn02q".parse().expect("id");
        use Code::*;
        check(&endpoint_not_found(endpoint), NotFound, "ENDPOINT_NOT_FOUND");
        check(&delivery_not_found(delivery), NotFound, "DELIVERY_NOT_FOUND");
        check(&etag_mismatch(endpoint), Aborted, "ETAG_MISMATCH");
        check(&register_refused(RegisterError::ExternalIdTaken, None), AlreadyExists, "EXTERNAL_ID_TAKEN");
        check(&PublishError::KeyConflict.into(), AlreadyExists, "IDEMPOTENCY_KEY_CONFLICT");
        check(&payload_too_large(2, 1), ResourceExhausted, "PAYLOAD_TOO_LARGE");
        check(&cancel_refused(CancelRefused::Settled, delivery), FailedPrecondition, "DELIVERY_SETTLED");
        check(&draining(), Unavailable, "DRAINING");
        check(&credential_missing("a key"), Unauthenticated, "CREDENTIAL_MISSING");
        check(&credential_invalid(), Unauthenticated, "CREDENTIAL_INVALID");
        check(&role_required("Publish", Need::Publish, Role::Viewer), PermissionDenied, "ROLE_REQUIRED");
        check(&tenant_denied("shop"), PermissionDenied, "TENANT_DENIED");
        let fast = too_many_requests(Duration::from_millis(250));
        check(&fast, ResourceExhausted, "QUOTA");
        assert_eq!(fast.get_details_retry_info().expect("RetryInfo").retry_delay, Some(Duration::from_millis(250)));
        assert!(fast.get_details_quota_failure().is_some());
        let full: Status = PublishError::QueueFull.into();
        check(&full, ResourceExhausted, "QUEUE_FULL");
        assert!(full.get_details_retry_info().is_some() && full.get_details_quota_failure().is_some());
        let down: Status = PublishError::Unavailable.into();
        check(&down, Unavailable, "STORE_UNAVAILABLE");
        assert!(down.get_details_retry_info().is_some());
        let succeeded = retry_refused(RetryRefused::Succeeded, delivery);
        check(&succeeded, FailedPrecondition, "DELIVERY_SUCCEEDED");
        assert_eq!(succeeded.message(), "Cannot retry successful delivery");
        assert!(succeeded.get_details_precondition_failure().is_some());
    }

    #[test]
    fn many_bad_fields_stay_within_what_clients_read() {
        let fields = (0..1_000).map(|n| (format!("endpoint.event_types[{n}]"), "is wrong ".repeat(10))).collect();
        let status = invalid_fields(fields);
        check(&status, Code::InvalidArgument, "INVALID_FIELD");
        assert_eq!(status.get_details_bad_request().expect("BadRequest").field_violations.len(), FIELDS_MAX);
        assert!(status.message().len() < 1_200 && status.details().len() < 6_000, "{}", status.details().len());
        assert!(status.message().ends_with("; and 975 more"));
    }

    #[test]
    fn what_tonic_refuses_gets_a_reason_and_ours_stays() {
        let bare = with_details(Status::internal("failed to decode").into_http());
        let status = Status::from_header_map(bare.headers()).expect("status");
        check(&status, Code::InvalidArgument, "MALFORMED_MESSAGE");
        let ours = with_details(internal().into_http());
        check(&Status::from_header_map(ours.headers()).expect("status"), Code::Internal, "INTERNAL");
    }
}
