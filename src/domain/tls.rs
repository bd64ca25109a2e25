//! What an endpoint's connections are secured with beside the system's certificates: whom it trusts, and who it is to a
//! receiver that asks.

use std::fmt;
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use zeroize::Zeroizing;

use super::Problem;

/// PEM of one field at most, in bytes, and certificates in it.
const PEM_BYTES_MAX: usize = 64 * 1_024;
const CERTIFICATES_MAX: usize = 32;

/// An endpoint's own.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TlsOptions {
    /// Certificates trusted beside the system's.
    pub trusted: Option<TrustedCertificates>,
    /// Shown to a receiver that asks for one.
    pub client: Option<ClientCertificate>,
}

/// Certificates of authorities, or of receivers themselves, in PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrustedCertificates(String);

/// A certificate, what leads from it to a root, and its private key, in PEM.
#[derive(Clone, PartialEq, Eq)]
pub struct ClientCertificate {
    chain: String,
    key: Zeroizing<String>,
}

/// Which part of a client certificate is bad.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClientProblem {
    /// The certificates.
    Chain(Problem),
    /// The key, or that it is another certificate's.
    Key(Problem),
}

impl TlsOptions {
    /// Whether there are none.
    pub const fn is_empty(&self) -> bool {
        self.trusted.is_none() && self.client.is_none()
    }
}

impl TrustedCertificates {
    /// Parses PEM: at least one certificate, each of which can be trusted.
    pub fn parse(text: &str) -> Result<Self, Problem> {
        let certificates = parse_certificates(text)?;
        let mut roots = RootCertStore::empty();
        for (place, certificate) in certificates.into_iter().enumerate() {
            roots.add(certificate).map_err(|_| {
                Problem::new(format!("has a certificate ({}) that cannot be read; allowed is X.509 v3", place + 1))
            })?;
        }
        Ok(Self(text.to_owned()))
    }

    /// Trusts a value that the database holds.
    pub fn from_stored(text: String) -> Self {
        Self(text)
    }

    /// The PEM.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The certificates; none where they cannot be read.
    pub fn certificates(&self) -> Vec<CertificateDer<'static>> {
        parse_certificates(&self.0).unwrap_or_default()
    }
}

impl ClientCertificate {
    /// Parses both, and sees that they belong together.
    pub fn parse(chain: &str, key: &str) -> Result<Self, ClientProblem> {
        let parsed = Self { chain: chain.to_owned(), key: Zeroizing::new(key.to_owned()) };
        parsed.certified().map(|_| parsed)
    }

    /// Trusts values that the database holds.
    pub fn from_stored(chain: String, key: String) -> Self {
        Self { chain, key: Zeroizing::new(key) }
    }

    /// The certificates in PEM.
    pub fn chain(&self) -> &str {
        &self.chain
    }

    /// The key in PEM, for the database.
    pub fn expose_key(&self) -> &str {
        &self.key
    }

    /// Ready for use.
    pub fn certified(&self) -> Result<Arc<CertifiedKey>, ClientProblem> {
        let chain = parse_certificates(&self.chain).map_err(ClientProblem::Chain)?;
        let bad_key = |words: &'static str| ClientProblem::Key(Problem::new(words));
        if self.key.len() > PEM_BYTES_MAX {
            return Err(bad_key("is too long; allowed are 65,536 bytes"));
        }
        let key = PrivateKeyDer::from_pem_slice(self.key.as_bytes()).map_err(|_| {
            bad_key("is no private key in PEM; allowed is PKCS#8, PKCS#1 or SEC1, not encrypted by a password")
        })?;
        let certified = CertifiedKey::from_der(chain, key, &ring::default_provider());
        certified.map(Arc::new).map_err(|error| match error {
            rustls::Error::InconsistentKeys(_) => bad_key("is the key of another certificate"),
            rustls::Error::InvalidCertificate(_) => {
                ClientProblem::Chain(Problem::new("begins with a certificate that cannot be read; allowed is X.509 v3"))
            }
            _ => {
                bad_key("is a key that cannot be used; allowed are RSA from 2,048 bits, ECDSA P-256 or P-384, Ed25519")
            }
        })
    }
}

impl fmt::Debug for ClientCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientCertificate").field("chain", &self.chain).finish_non_exhaustive()
    }
}

fn parse_certificates(text: &str) -> Result<Vec<CertificateDer<'static>>, Problem> {
    if text.len() > PEM_BYTES_MAX {
        return Err(Problem::new(format!("has {} bytes; allowed are {PEM_BYTES_MAX}", text.len())));
    }
    let parsed: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text.as_bytes()).collect();
    let certificates = parsed.map_err(|_| Problem::new("is not valid PEM"))?;
    match certificates.len() {
        0 => Err(Problem::new("has no certificate; allowed is PEM, -----BEGIN CERTIFICATE-----")),
        1..=CERTIFICATES_MAX => Ok(certificates),
        many => Err(Problem::new(format!("has {many} certificates; allowed are {CERTIFICATES_MAX}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(name: &str) -> (String, String) {
        let made = rcgen::generate_simple_self_signed([name.to_owned()]).expect("made");
        (made.cert.pem(), made.signing_key.serialize_pem())
    }

    #[test]
    fn authorities_are_certificates_that_can_be_trusted() {
        let ((one, key), (other, _)) = (pair("a"), pair("b"));
        let both = format!("{one}\n# a comment\n{other}");
        assert_eq!(TrustedCertificates::parse(&both).map(|it| it.certificates().len()), Ok(2));
        let broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        let unended = one.replace("-----END CERTIFICATE-----", "");
        for bad in ["", "x", &key, broken, &unended, &one.repeat(33), &"x".repeat(70_000)] {
            assert!(TrustedCertificates::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_client_certificate_and_its_key_belong_together() {
        let ((one, key), (other, other_key)) = (pair("a"), pair("b"));
        let good = ClientCertificate::parse(&format!("{one}{other}"), &key).expect("a pair");
        assert!(!format!("{good:?}").contains("PRIVATE KEY"));
        assert!(matches!(ClientCertificate::parse(&one, &other_key), Err(ClientProblem::Key(_))));
        for bad in ["", "x", &one, "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"] {
            let problem = ClientCertificate::parse(&one, bad).expect_err(bad);
            assert!(matches!(problem, ClientProblem::Key(_)), "{bad}");
        }
        for bad in ["", "x", &key] {
            let problem = ClientCertificate::parse(bad, &key).expect_err(bad);
            assert!(matches!(problem, ClientProblem::Chain(_)), "{bad}");
        }
    }
}
