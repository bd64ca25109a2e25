//! TLS on the gRPC port: certificate, key and client CA from files, read again when they change; and the names in a
//! client's certificate.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use sha2::{Digest as _, Sha256};
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::auth::CertificateName;

/// Where the files are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The server's certificate and what leads from it to a root, in PEM.
    pub cert_file: PathBuf,
    /// Its private key, in PEM.
    pub key_file: PathBuf,
    /// Who signs the certificates that clients must have, in PEM; `None` where they need none.
    pub client_ca_file: Option<PathBuf>,
}

/// Why the files cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// One cannot be read.
    #[error("{} cannot be read: {error}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: std::io::Error,
    },
    /// One does not hold what it should.
    #[error("{} holds no {what}{problem}", path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What it should hold.
        what: &'static str,
        /// What is wrong, after a colon.
        problem: String,
    },
    /// They do not fit together.
    #[error("the certificate and key cannot be used: {0}")]
    Unfit(String),
}

/// What connections are accepted with at the moment.
#[derive(Debug, Clone)]
pub struct Tls(watch::Receiver<Arc<ServerConfig>>);

/// How often the files are looked at.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);
/// Files above this size are no certificates.
const FILE_BYTES_MAX: u64 = 1024 * 1024;
/// Names read of one certificate.
const NAMES_MAX: usize = 100;

impl Tls {
    /// Reads the files, and from then on whenever they change. One that cannot be used is told to the log, and what was
    /// read before stays.
    pub fn start(config: Config, shutdown: CancellationToken) -> Result<Self, Error> {
        let files = Files::read(&config)?;
        let (sender, receiver) = watch::channel(Arc::new(files.server_config(&config)?));
        tokio::spawn(follow(config, files.digest, sender, shutdown));
        Ok(Self(receiver))
    }

    /// Whether the files can be used, without using them.
    pub fn check(config: &Config) -> Result<(), Error> {
        Files::read(config)?.server_config(config).map(|_| ())
    }

    /// What never changes, for a test.
    #[cfg(test)]
    pub(super) fn of(config: ServerConfig) -> Self {
        Self(watch::channel(Arc::new(config)).1)
    }

    /// For the next connection.
    pub(super) fn current(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.0.borrow())
    }
}

async fn follow(
    config: Config,
    mut seen: [u8; 32],
    sender: watch::Sender<Arc<ServerConfig>>,
    shutdown: CancellationToken,
) {
    let mut looks = interval(LOOK_INTERVAL);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut was_unreadable = false;
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            _ = looks.tick() => {}
        }
        let files = match Files::read(&config) {
            Ok(files) => files,
            Err(error) => {
                if !was_unreadable {
                    tracing::error!(%error, "TLS goes on with the certificate it has");
                }
                was_unreadable = true;
                continue;
            }
        };
        was_unreadable = false;
        if files.digest == seen {
            continue;
        }
        // Told once for each content: a rotation that writes one file after the other is seen between them, too.
        seen = files.digest;
        match files.server_config(&config) {
            Ok(fresh) => {
                sender.send_replace(Arc::new(fresh));
                tracing::info!("TLS goes on with the certificate that was put in place");
            }
            Err(error) => tracing::error!(%error, "TLS goes on with the certificate it has"),
        }
    }
}

/// The files' content at one time.
struct Files {
    cert: Vec<u8>,
    key: zeroize::Zeroizing<Vec<u8>>,
    client_ca: Option<Vec<u8>>,
    digest: [u8; 32],
}

impl Files {
    /// Small files on a local disk: read in place.
    fn read(config: &Config) -> Result<Self, Error> {
        let cert = read(&config.cert_file)?;
        let key = zeroize::Zeroizing::new(read(&config.key_file)?);
        let client_ca = config.client_ca_file.as_deref().map(read).transpose()?;
        let mut digest = Sha256::new();
        for content in [&cert[..], &key[..], client_ca.as_deref().unwrap_or_default()] {
            digest.update((content.len() as u64).to_be_bytes());
            digest.update(content);
        }
        Ok(Self { cert, key, client_ca, digest: digest.finalize().into() })
    }

    fn server_config(&self, config: &Config) -> Result<ServerConfig, Error> {
        let chain = certificates(&self.cert, &config.cert_file)?;
        let key = PrivateKeyDer::from_pem_slice(&self.key).map_err(|error| Error::Unusable {
            path: config.key_file.clone(),
            what: "private key in PEM",
            problem: format!(": {error}"),
        })?;
        let unfit = |error: &dyn std::fmt::Display| Error::Unfit(error.to_string());
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|error| unfit(&error))?;
        let builder = match (&self.client_ca, &config.client_ca_file) {
            (Some(pem), Some(path)) => {
                let mut roots = RootCertStore::empty();
                for root in certificates(pem, path)? {
                    roots.add(root).map_err(|error| unfit(&error))?;
                }
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
                builder.with_client_cert_verifier(verifier.map_err(|error| unfit(&error))?)
            }
            _ => builder.with_no_client_auth(),
        };
        let mut made = builder.with_single_cert(chain, key).map_err(|error| unfit(&error))?;
        // HTTP/1.1 for gRPC-Web.
        made.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        // Nobody sends before the handshake is over: a replayed call would be made twice.
        made.max_early_data_size = 0;
        Ok(made)
    }
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    let unreadable = |error| Error::Unreadable { path: path.to_owned(), error };
    let size = fs::metadata(path).map_err(unreadable)?.len();
    if size > FILE_BYTES_MAX {
        let problem = format!(": it has {size} bytes, allowed are {FILE_BYTES_MAX}");
        return Err(Error::Unusable { path: path.to_owned(), what: "PEM", problem });
    }
    fs::read(path).map_err(unreadable)
}

fn certificates(pem: &[u8], path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let unusable = |problem| Error::Unusable { path: path.to_owned(), what: "certificate in PEM", problem };
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match chain {
        Ok(chain) if !chain.is_empty() => Ok(chain),
        Ok(_) => Err(unusable(String::new())),
        Err(error) => Err(unusable(format!(": {error}"))),
    }
}

/// The subject alternative names of a certificate that has been verified, as far as callers are known by such.
pub(super) fn names_of(certificate: &CertificateDer<'_>) -> Vec<CertificateName> {
    let Ok((_, parsed)) = X509Certificate::from_der(certificate) else { return Vec::new() };
    let Ok(Some(names)) = parsed.subject_alternative_name() else { return Vec::new() };
    let known = names.value.general_names.iter().filter_map(|name| match name {
        GeneralName::DNSName(name) => Some(CertificateName::Dns(name.to_ascii_lowercase())),
        GeneralName::URI(uri) => Some(CertificateName::Uri((*uri).to_owned())),
        GeneralName::RFC822Name(address) => Some(CertificateName::Email((*address).to_owned())),
        _ => None,
    });
    known.take(NAMES_MAX).collect()
}
