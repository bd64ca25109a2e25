//! What connections are secured with: the system's authorities, and an endpoint's own certificates beside them.

use std::fmt;
use std::sync::{Arc, OnceLock};

use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use rustls::client::{ResolvesClientCert, Resumption};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, RootCertStore, SignatureScheme};
use sha2::{Digest, Sha256};

use super::guard::Guard;
use crate::domain::tls::TlsOptions;

/// Sessions remembered for an endpoint of its own certificates: it has one address.
const OWN_SESSIONS_MAX: usize = 4;

/// Makes connections, by whom they trust and who they are.
pub(super) struct Connectors {
    guard: Guard,
    roots: RootCertStore,
    common: HttpsConnector<Guard>,
}

/// An endpoint's own certificates. Read once, when its first connection is made.
pub(super) struct Own {
    options: TlsOptions,
    name: String,
    connector: OnceLock<Option<HttpsConnector<Guard>>>,
}

impl Connectors {
    pub(super) fn new(guard: Guard, roots: RootCertStore) -> Result<Self, rustls::Error> {
        let config = tls_versions()?.with_root_certificates(roots.clone()).with_no_client_auth();
        Ok(Self { common: connector(config, guard.clone()), guard, roots })
    }

    /// For endpoints without certificates of their own.
    pub(super) fn common(&self) -> HttpsConnector<Guard> {
        self.common.clone()
    }

    /// For one that has some; `None` where they cannot be used.
    pub(super) fn own(&self, own: &Own) -> Option<HttpsConnector<Guard>> {
        own.connector.get_or_init(|| self.make(&own.options)).clone()
    }

    fn make(&self, options: &TlsOptions) -> Option<HttpsConnector<Guard>> {
        let mut roots = self.roots.clone();
        if let Some(trusted) = &options.trusted {
            roots.add_parsable_certificates(trusted.certificates());
        }
        let trusting = tls_versions().ok()?.with_root_certificates(roots);
        let mut config = match &options.client {
            None => trusting.with_no_client_auth(),
            Some(client) => trusting.with_client_cert_resolver(Arc::new(Shown(client.certified().ok()?))),
        };
        config.resumption = Resumption::in_memory_sessions(OWN_SESSIONS_MAX);
        Some(connector(config, self.guard.clone()))
    }
}

impl Own {
    pub(super) fn new(options: TlsOptions) -> Self {
        let mut hash = Sha256::new();
        let (trusted, client) = (options.trusted.as_ref(), options.client.as_ref());
        for part in [
            trusted.map_or("", |trusted| trusted.as_str()),
            client.map_or("", |client| client.chain()),
            client.map_or("", |client| client.expose_key()),
        ] {
            hash.update(part);
            hash.update([0]);
        }
        let digest = hash.finalize();
        let name = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        Self { options, name, connector: OnceLock::new() }
    }

    /// Tells connections with these certificates from others: two endpoints that have the same share them.
    pub(super) fn name(&self) -> &str {
        &self.name
    }
}

impl fmt::Debug for Own {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Own").field(&self.name).finish()
    }
}

/// A certificate that is shown to whoever asks for one.
#[derive(Debug)]
struct Shown(Arc<CertifiedKey>);

impl ResolvesClientCert for Shown {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// The system's certificate authorities. Where it has none, https ends in TLS_FAILED.
pub(super) fn system_roots() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    let loaded = rustls_native_certs::load_native_certs();
    roots.add_parsable_certificates(loaded.certs);
    if roots.is_empty() {
        tracing::warn!(errors = ?loaded.errors, "no certificate authority is trusted: https deliveries will fail");
    }
    roots
}

fn connector(config: ClientConfig, guard: Guard) -> HttpsConnector<Guard> {
    HttpsConnectorBuilder::new()
        .with_tls_config(config)
        .https_or_http() // the guard decides on http
        .enable_http1()
        .wrap_connector(guard)
}

fn tls_versions() -> Result<rustls::ConfigBuilder<ClientConfig, rustls::WantsVerifier>, rustls::Error> {
    ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
}
