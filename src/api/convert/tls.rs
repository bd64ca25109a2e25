//! An endpoint's own certificates. The key of its client certificate is never shown, so whoever sends back what they read
//! leaves it empty: beside a certificate that means the key that is there.

use zeroize::Zeroizing;

use super::Violations;
use super::mask::Mask;
use crate::api::proto;
use crate::domain::Problem;
use crate::domain::tls::{ClientCertificate, ClientProblem, TrustedCertificates};

const CHAIN: &str = "endpoint.client_certificate_pem";
const KEY: &str = "endpoint.client_key_pem";

/// A change of an endpoint's client certificate.
#[derive(Debug)]
pub(super) enum ClientPatch {
    /// The endpoint has none.
    Without,
    /// What it has, whole or a part; the other part is what is there.
    With {
        /// The certificates.
        chain: Option<String>,
        /// Their key.
        key: Option<Zeroizing<String>>,
    },
}

/// The authorities that the field names; `None` with the problem noted.
pub(super) fn trusted(pem: &str, violations: &mut Violations) -> Option<Option<TrustedCertificates>> {
    match pem {
        "" => Some(None),
        pem => violations.take("endpoint.ca_pem", TrustedCertificates::parse(pem)).map(Some),
    }
}

impl ClientPatch {
    /// `None` where the mask names neither, or a part that was not given.
    pub(super) fn parse(given: &proto::Endpoint, mask: &Mask, violations: &mut Violations) -> Option<Self> {
        let given_part = |field: &str, text: &str| mask.has(field).then(|| text.to_owned());
        let chain = given_part("client_certificate_pem", &given.client_certificate_pem);
        let key = given_part("client_key_pem", &given.client_key_pem).filter(|key| !key.is_empty());
        match (chain.as_deref(), key) {
            (Some(""), None) => Some(Self::Without),
            (Some(""), Some(_)) => {
                violations.invalid(CHAIN, Problem::new("is empty; endpoint.client_key_pem is its key"));
                None
            }
            (None, None) => None,
            (_, key) => Some(Self::With { chain, key: key.map(Zeroizing::new) }),
        }
    }

    /// What the endpoint has then; `None` also with a problem noted.
    pub(super) fn apply(
        &self,
        present: Option<&ClientCertificate>,
        violations: &mut Violations,
    ) -> Option<ClientCertificate> {
        let Self::With { chain, key } = self else { return None };
        let chain = chain.as_deref().or(present.map(ClientCertificate::chain));
        let key = key.as_ref().map(|key| key.as_str()).or(present.map(ClientCertificate::expose_key));
        let (chain, key) = match (chain, key) {
            (Some(chain), Some(key)) => (chain, key),
            (None, _) => {
                violations.invalid(CHAIN, Problem::new("is unset; endpoint.client_key_pem is its key"));
                return None;
            }
            (_, None) => {
                violations.invalid(KEY, Problem::new("is empty; endpoint.client_certificate_pem needs its key"));
                return None;
            }
        };
        match ClientCertificate::parse(chain, key) {
            Ok(certificate) => Some(certificate),
            Err(ClientProblem::Chain(problem)) => {
                violations.invalid(CHAIN, problem);
                None
            }
            Err(ClientProblem::Key(problem)) => {
                violations.invalid(KEY, problem);
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::refused;
    use super::*;

    fn made(name: &str) -> (String, String) {
        let made = rcgen::generate_simple_self_signed([name.to_owned()]).expect("made");
        (made.cert.pem(), made.signing_key.serialize_pem())
    }

    /// What an update of `fields` makes of `present`, or the fields that are refused.
    fn apply(
        present: Option<&ClientCertificate>,
        (chain, key): (&str, &str),
        fields: &[&str],
    ) -> Result<Option<ClientCertificate>, Vec<String>> {
        let given = proto::Endpoint {
            client_certificate_pem: chain.to_owned(),
            client_key_pem: key.to_owned(),
            ..proto::Endpoint::default()
        };
        let paths: Vec<String> = fields.iter().map(|field| (*field).to_owned()).collect();
        let mut violations = Violations::new();
        let mask = Mask::parse(&paths, &given, &mut violations);
        let patch = ClientPatch::parse(&given, &mask, &mut violations);
        let applied = match &patch {
            Some(patch) => patch.apply(present, &mut violations),
            None => present.cloned(),
        };
        if violations.is_empty() { Ok(applied) } else { Err(refused(&violations.into_status()).1) }
    }

    #[test]
    fn a_key_that_is_left_out_stays() {
        let ((chain, key), (other, other_key)) = (made("a"), made("b"));
        let present = ClientCertificate::parse(&chain, &key).expect("a pair");
        let there = Some(&present);
        let next = ClientCertificate::parse(&other, &other_key).expect("a pair");
        let both = ["client_certificate_pem", "client_key_pem"];
        for (present, given, fields, expected) in [
            (None, (&*chain, &*key), &both[..], Ok(Some(present.clone()))),
            (None, (&chain, &key), &[], Ok(Some(present.clone()))),
            (None, ("", ""), &["*"], Ok(None)),
            (None, (&chain, ""), &["*"], Err(vec![KEY.to_owned()])),
            (None, ("", &key), &["*"], Err(vec![CHAIN.to_owned()])),
            (None, ("", &key), &[both[1]], Err(vec![CHAIN.to_owned()])),
            (there, (&chain, ""), &["*"], Ok(Some(present.clone()))),
            (there, (&chain, ""), &[both[0]], Ok(Some(present.clone()))),
            (there, ("", &key), &[both[1]], Ok(Some(present.clone()))),
            (there, ("", ""), &[both[1]], Ok(Some(present.clone()))),
            (there, ("", ""), &["description"], Ok(Some(present.clone()))),
            (there, ("", ""), &["*"], Ok(None)),
            (there, ("", ""), &[both[0]], Ok(None)),
            (there, (&other, &other_key), &both, Ok(Some(next))),
            (there, (&other, ""), &["*"], Err(vec![KEY.to_owned()])),
            (there, ("", &other_key), &[both[1]], Err(vec![KEY.to_owned()])),
            (there, ("nonsense", ""), &[both[0]], Err(vec![CHAIN.to_owned()])),
        ] {
            assert_eq!(apply(present, given, fields), expected, "{fields:?}");
        }
    }
}
