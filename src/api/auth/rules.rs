//! What each call needs its caller to be allowed, and how long it may take. A call of the contract that has no rule
//! here does not compile: `build.rs` makes the enum from the descriptor.

use std::time::Duration;

use crate::domain::access::Need;

include!(concat!(env!("OUT_DIR"), "/methods.rs"));

/// How long a call may take to be answered, its message read included; a stream, until it is open.
const CALL_MAX: Duration = Duration::from_secs(60);
/// An endpoint's timeout is up to 300 s.
const TEST_MAX: Duration = Duration::from_secs(330);

/// What may be asked for on this port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asked {
    /// A call of the contract.
    Method(Method),
    /// Health: probes have no credential.
    Public,
    /// Reflection, and what there is not: for whoever has a credential.
    Other,
}

impl Asked {
    /// By a request's path.
    pub(super) fn of(path: &str) -> Self {
        match path.strip_prefix('/').and_then(|path| path.split_once('/')) {
            Some(("hooklane.v1.WebhookService", name)) => Method::named(name).map_or(Self::Other, Self::Method),
            Some(("grpc.health.v1.Health", _)) => Self::Public,
            _ => Self::Other,
        }
    }

    /// Whether the answer is a stream, which outlives the call and is counted apart.
    pub(super) fn is_streaming(self, path: &str) -> bool {
        match self {
            Self::Method(method) => method.is_streaming(),
            Self::Public => path.ends_with("/Watch"),
            Self::Other => true,
        }
    }

    /// When it is given up.
    pub(super) const fn deadline(self) -> Duration {
        match self {
            Self::Method(Method::TestEndpoint) => TEST_MAX,
            _ => CALL_MAX,
        }
    }
}

impl Method {
    /// What its caller must be allowed.
    pub(super) const fn need(self) -> Need {
        match self {
            Self::RegisterEndpoint | Self::UpdateEndpoint | Self::DeleteEndpoint | Self::RotateSecret => {
                Need::Administer
            }
            Self::GetEndpoint | Self::ListEndpoints => Need::Read,
            Self::PauseEndpoint | Self::ResumeEndpoint | Self::TestEndpoint => Need::Operate,
            Self::Publish | Self::PublishBatch => Need::Publish,
            Self::GetEvent | Self::GetDelivery | Self::ListDeliveries | Self::StreamDeliveryEvents => Need::Follow,
            Self::RetryDelivery | Self::CancelDelivery => Need::Operate,
            Self::ListDeadLetters => Need::Read,
            Self::DeleteDeadLetters => Need::Operate,
            Self::GetReplay | Self::ListReplays | Self::StreamReplay => Need::Read,
            Self::StartReplay | Self::CancelReplay => Need::Operate,
            Self::ListAlerts | Self::GetStats => Need::Read,
            Self::AcknowledgeAlert => Need::Operate,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_follows_from_the_whole_path() {
        for (path, asked) in [
            ("/hooklane.v1.WebhookService/Publish", Asked::Method(Method::Publish)),
            ("/hooklane.v1.WebhookService/publish", Asked::Other),
            ("/hooklane.v1.WebhookService/Publish/", Asked::Other),
            ("//hooklane.v1.WebhookService/Publish", Asked::Other),
            ("/other.v1.WebhookService/Publish", Asked::Other),
            ("/grpc.health.v1.Health/Check", Asked::Public),
            ("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", Asked::Other),
            ("/", Asked::Other),
            ("", Asked::Other),
        ] {
            assert_eq!(Asked::of(path), asked, "{path}");
        }
    }

    #[test]
    fn names_and_streams_are_those_of_the_contract() {
        assert_eq!(Method::named("GetStats").map(Method::name), Some("GetStats"));
        let is_streaming = |name: &str| Method::named(name).is_some_and(Method::is_streaming);
        assert!(is_streaming("StreamDeliveryEvents") && is_streaming("StreamReplay") && !is_streaming("Publish"));
    }
}
