//! The settings of the edge: who may call, TLS, and what one caller may have.

use std::net::SocketAddr;
use std::path::PathBuf;

use super::source::{Flags, Reader};
use super::{Profile, parse_within};
use crate::api::{Auth, CallerLimits, ClientRule, Edge, TlsConfig};

/// Rules for clients at most.
const CLIENTS_MAX: usize = 1_000;

/// `grpc_addr` is `None` where there is no API, which then needs no rules.
pub(super) fn read(
    profile: Profile,
    flags: &Flags,
    reader: &mut Reader,
    grpc_addr: Option<SocketAddr>,
) -> Option<Edge> {
    let file = |text: &str| Ok((!text.is_empty()).then(|| PathBuf::from(text)));
    let cert_file = reader.get("tls.cert_file", "", file)?;
    let key_file = reader.get("tls.key_file", "", |text| match (text.is_empty(), &cert_file) {
        (true, Some(_)) => Err("is not set; it belongs to tls.cert_file".to_owned()),
        (false, None) => Err("stands alone; tls.cert_file belongs to it".to_owned()),
        _ => file(text),
    });
    let client_ca_file = reader.get("tls.client_ca_file", "", |text| match (text.is_empty(), &cert_file) {
        (false, None) => Err("stands alone; it needs tls.cert_file and tls.key_file".to_owned()),
        _ => file(text),
    });
    let default = if profile == Profile::Serve { "api-key" } else { "none" };
    let has_client_ca = client_ca_file.as_ref().is_some_and(Option::is_some);
    let auth = reader.get("auth", default, |text| parse_auth(text, grpc_addr, flags.insecure, has_client_ca));
    let clients = reader.get("tls.clients", "", |text| match (parse_clients(text)?, auth) {
        (rules, Some(Auth::Mtls)) if rules.is_empty() && grpc_addr.is_some() => {
            Err("is empty, so that nobody could call; allowed are such as uri:spiffe://prod/shop publisher shop"
                .to_owned())
        }
        (rules, Some(Auth::None | Auth::ApiKey)) if !rules.is_empty() => Err("is for auth = mtls alone".to_owned()),
        (rules, _) => Ok(rules),
    });
    let bound = |max| move |text: &str| parse_within(text, 1, max).map(|number| number as u32);
    let calls = reader.get("limits.calls_per_key", "4096", bound(16_384));
    let streams = reader.get("limits.streams_per_key", "100", bound(10_240));
    let connections = reader.get("limits.connections_per_address", "1024", bound(8_192));
    let requests_per_second = reader
        .get("limits.requests_per_second", "0", |text| parse_within(text, 0, 1_000_000).map(|number| number as u32));
    let tls = match (cert_file, key_file?) {
        (Some(cert_file), Some(key_file)) => Some(TlsConfig { cert_file, key_file, client_ca_file: client_ca_file? }),
        _ => None,
    };
    Some(Edge {
        auth: auth?,
        clients: clients?,
        caller_limits: CallerLimits { requests_per_second: requests_per_second?, calls: calls?, streams: streams? },
        connections_per_address_max: connections?,
        tls,
    })
}

/// Where nobody is asked who they are, nobody but this machine may call, unless that is asked for in so many words.
fn parse_auth(
    text: &str,
    grpc_addr: Option<SocketAddr>,
    is_insecure: bool,
    has_client_ca: bool,
) -> Result<Auth, String> {
    match (text, grpc_addr) {
        ("none", Some(addr)) if !addr.ip().is_loopback() && !is_insecure => Err(format!(
            "leaves {addr} open to everybody; allowed are api-key and mtls, or a loopback address (or serve --insecure, \
             where a network that is closed to others stands in for authentication)"
        )),
        ("none", _) => Ok(Auth::None),
        ("api-key", _) => Ok(Auth::ApiKey),
        ("mtls", Some(_)) if !has_client_ca => {
            Err("needs tls.client_ca_file, tls.cert_file and tls.key_file".to_owned())
        }
        ("mtls", _) => Ok(Auth::Mtls),
        _ => Err("is not known; allowed are none, api-key and mtls".to_owned()),
    }
}

fn parse_clients(text: &str) -> Result<Vec<ClientRule>, String> {
    let mut rules: Vec<ClientRule> = Vec::new();
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let rule = ClientRule::parse(part).map_err(|problem| format!("has {part:?}, which {problem}"))?;
        if rules.iter().any(|known| known.name == rule.name) {
            return Err(format!("has {} twice; allowed is one rule a name", rule.name));
        }
        rules.push(rule);
    }
    if rules.len() > CLIENTS_MAX {
        return Err(format!("has {} entries; allowed are {CLIENTS_MAX}", rules.len()));
    }
    Ok(rules)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::{Config, SettingProblems};
    use super::*;

    const NEEDED: [(&str, &str); 2] =
        [("DATABASE_URL", "postgres://localhost/hooklane"), ("HOOKLANE_ENCRYPTION_PLAINTEXT", "true")];

    fn load(variables: &[(&str, &str)], insecure: bool) -> Result<Config, SettingProblems> {
        let all = variables.iter().chain(&NEEDED);
        let environment =
            all.map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect::<BTreeMap<_, _>>();
        Config::load(Profile::Serve, &Flags { insecure, ..Flags::default() }, environment)
    }

    fn refused(variables: &[(&str, &str)]) -> String {
        load(variables, false).expect_err("refused").to_string()
    }

    #[test]
    fn serve_asks_for_keys_unless_told_otherwise() {
        let config = load(&[], false).expect("defaults");
        assert_eq!((config.api.edge.auth, config.api.edge.tls), (Auth::ApiKey, None));
        assert_eq!(config.api.edge.caller_limits.requests_per_second, 0);
    }

    #[test]
    fn nobody_is_asked_on_loopback_alone_or_by_a_word() {
        let open = [("HOOKLANE_AUTH", "none"), ("HOOKLANE_GRPC_ADDR", "0.0.0.0:1")];
        let words = refused(&open);
        assert!(
            words.contains("HOOKLANE_AUTH") && words.contains("0.0.0.0:1") && words.contains("--insecure"),
            "{words}"
        );
        assert_eq!(load(&open, true).expect("said so").api.edge.auth, Auth::None);
        load(&open[..1], false).expect("loopback");
        load(&[open[0], open[1], ("HOOKLANE_ROLES", "worker")], false).expect("no API");
    }

    #[test]
    fn certificates_come_with_what_belongs_to_them() {
        let cert = ("HOOKLANE_TLS_CERT_FILE", "/cert.pem");
        let key = ("HOOKLANE_TLS_KEY_FILE", "/key.pem");
        let ca = ("HOOKLANE_TLS_CLIENT_CA_FILE", "/ca.pem");
        let mtls = ("HOOKLANE_AUTH", "mtls");
        let clients = ("HOOKLANE_TLS_CLIENTS", "uri:spiffe://prod/shop publisher shop, dns:ops admin *");
        assert!(refused(&[cert]).contains("HOOKLANE_TLS_KEY_FILE"));
        assert!(refused(&[key]).contains("tls.cert_file"));
        assert!(refused(&[ca]).contains("HOOKLANE_TLS_CLIENT_CA_FILE"));
        assert!(refused(&[mtls, clients]).contains("tls.client_ca_file"));
        assert!(refused(&[mtls, cert, key, ca]).contains("HOOKLANE_TLS_CLIENTS"));
        assert!(refused(&[cert, key, ca, clients]).contains("mtls alone"));
        let config = load(&[mtls, cert, key, ca, clients], false).expect("whole");
        assert_eq!((config.api.edge.auth, config.api.edge.clients.len()), (Auth::Mtls, 2));
        assert!(config.api.edge.tls.is_some_and(|tls| tls.client_ca_file.is_some()));
        for bad in ["dns:a admin", "dns:a admin *, dns:A viewer *"] {
            assert!(refused(&[mtls, cert, key, ca, ("HOOKLANE_TLS_CLIENTS", bad)]).contains("HOOKLANE_TLS_CLIENTS"));
        }
    }

    #[test]
    fn limits_have_bounds() {
        for (name, bad) in [
            ("HOOKLANE_LIMITS_CALLS_PER_KEY", "0"),
            ("HOOKLANE_LIMITS_STREAMS_PER_KEY", "10241"),
            ("HOOKLANE_LIMITS_CONNECTIONS_PER_ADDRESS", "many"),
            ("HOOKLANE_LIMITS_REQUESTS_PER_SECOND", "-1"),
        ] {
            assert!(refused(&[(name, bad)]).contains(name));
        }
    }
}
