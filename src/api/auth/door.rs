//! Who is let in: the credential of a request, whatever its kind, and whom it stands for.

use std::collections::HashMap;
use std::sync::Arc;

use http::{HeaderMap, Request, header};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::Mode;
use super::caller::Caller;
use super::keys::KeyRing;
use super::names::{CertificateName, ClientRule};
use super::quota::{CALLS_MAX, CallerLimits, Usage};
use crate::api::connection::ConnectionInfo;
use crate::api::status;
use crate::api::stream::STREAMS_MAX;
use crate::domain::api_key::ApiKey;
use crate::store::Store;

/// Streams of those who ask for the health, which needs no credential.
const PUBLIC_STREAMS_MAX: u32 = 1_024;

/// Whom a credential stands for, and what they have at the moment.
#[derive(Debug)]
pub(super) struct Credential {
    pub(super) caller: Caller,
    pub(super) usage: Arc<Usage>,
}

/// Lets callers in, or not.
#[derive(Debug)]
pub(in crate::api) struct Door {
    kind: Kind,
    /// Of those who need no credential.
    public: Arc<Credential>,
    /// Calls under way, of everybody.
    pub(super) calls: Arc<Semaphore>,
}

#[derive(Debug)]
enum Kind {
    Open(Arc<Credential>),
    Keys(Arc<KeyRing>),
    Certificates(HashMap<CertificateName, Arc<Credential>>),
}

/// What a request shows.
pub(super) enum Shown {
    /// All there is to know.
    Known(Result<Arc<Credential>, Status>),
    /// A key that this process has not heard of.
    Unheard(Arc<KeyRing>, ApiKey),
}

impl Door {
    /// Who is let in from now on; what has to be kept up to date is, until `shutdown`.
    pub(in crate::api) fn new(
        mode: Mode,
        clients: &[ClientRule],
        limits: CallerLimits,
        store: &Arc<Store>,
        shutdown: &CancellationToken,
    ) -> Arc<Self> {
        let anyone = |streams| {
            let usage = Arc::new(Usage::new(CallerLimits::shared(streams)));
            Arc::new(Credential { caller: Caller::anyone(), usage })
        };
        let kind = match mode {
            Mode::None => Kind::Open(anyone(u32::try_from(STREAMS_MAX).unwrap_or(u32::MAX))),
            Mode::ApiKey => Kind::Keys(KeyRing::start(Arc::clone(store), limits, shutdown.clone())),
            Mode::Mtls => Kind::Certificates(clients.iter().map(|rule| of_certificate(rule, limits)).collect()),
        };
        let calls = Arc::new(Semaphore::new(CALLS_MAX as usize));
        Arc::new(Self { kind, public: anyone(PUBLIC_STREAMS_MAX), calls })
    }

    /// Those who need no credential.
    pub(super) fn public(&self) -> Arc<Credential> {
        Arc::clone(&self.public)
    }

    /// What the request shows, without waiting.
    pub(super) fn look_at<B>(&self, request: &Request<B>) -> Shown {
        match &self.kind {
            Kind::Open(anyone) => Shown::Known(Ok(Arc::clone(anyone))),
            Kind::Certificates(known) => Shown::Known(by_certificate(known, request)),
            Kind::Keys(ring) => match bearer(request.headers()) {
                Err(refusal) => Shown::Known(Err(refusal)),
                Ok(key) => match ring.known(&key) {
                    Some(judged) => Shown::Known(judged),
                    None => Shown::Unheard(Arc::clone(ring), key),
                },
            },
        }
    }
}

fn of_certificate(rule: &ClientRule, limits: CallerLimits) -> (CertificateName, Arc<Credential>) {
    let caller = Caller::new(rule.name.to_string(), rule.role, rule.scope.clone());
    (rule.name.clone(), Arc::new(Credential { caller, usage: Arc::new(Usage::new(limits)) }))
}

/// The first of the certificate's names that the settings know.
fn by_certificate<B>(
    known: &HashMap<CertificateName, Arc<Credential>>,
    request: &Request<B>,
) -> Result<Arc<Credential>, Status> {
    let names = request.extensions().get::<ConnectionInfo>().map_or(&[][..], |connection| &connection.names);
    let found = names.iter().find_map(|name| known.get(name)).map(Arc::clone);
    found.ok_or_else(|| match names.is_empty() {
        true => status::credential_missing("a client certificate with a name"),
        false => status::credential_invalid(),
    })
}

/// The key of `authorization: Bearer hlk_…`. The scheme's name has no case. Source: RFC 9110, section 11.1.
fn bearer(headers: &HeaderMap) -> Result<ApiKey, Status> {
    let missing = || status::credential_missing("an API key, as authorization: Bearer hlk_…");
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let value = values.next().ok_or_else(missing)?;
    if values.next().is_some() {
        return Err(status::credential_invalid());
    }
    let text = value.to_str().map_err(|_| status::credential_invalid())?;
    let (scheme, token) = text.split_once(' ').ok_or_else(status::credential_invalid)?;
    if !scheme.eq_ignore_ascii_case("bearer") {
        return Err(missing());
    }
    ApiKey::parse(token.trim()).ok_or_else(status::credential_invalid)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use tonic::Code;
    use tonic_types::StatusExt as _;

    use super::*;

    fn check(values: &[&str], expected: Option<&str>) {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(header::AUTHORIZATION, HeaderValue::from_str(value).expect("a value"));
        }
        let refusal = bearer(&headers).err();
        let reason = refusal.as_ref().and_then(|status| status.get_details_error_info()).map(|info| info.reason);
        assert_eq!(reason.as_deref(), expected, "{values:?}");
        assert!(refusal.is_none_or(|status| status.code() == Code::Unauthenticated));
    }

    #[test]
    fn a_key_is_a_bearer_token_and_stands_alone() {
        let key = format!("hlk_01h455vb4pex5vsknk084sn02q_{}", "A".repeat(43));
        check(&[], Some("CREDENTIAL_MISSING"));
        check(&["Basic dXNlcjpwYXNz"], Some("CREDENTIAL_MISSING"));
        check(&["Bearer"], Some("CREDENTIAL_INVALID"));
        check(&["Bearer hlk_nonsense"], Some("CREDENTIAL_INVALID"));
        check(&[&format!("Bearer {key}")], None);
        check(&[&format!("bearer {key}")], None);
        check(&[&format!("Bearer {key}"), &format!("Bearer {key}")], Some("CREDENTIAL_INVALID"));
    }
}
