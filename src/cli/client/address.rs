//! The address of a service, as `--addr` and `HOOKLANE_GRPC_ADDR` have it.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use http::uri::Authority;

/// Where to call, and whether the address itself says how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Address {
    authority: Authority,
    /// `None` where there is no scheme.
    is_tls: Option<bool>,
}

impl Address {
    /// `HOST:PORT`, or a URL of nothing else.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        const ALLOWED: &str =
            "is no address of a service; allowed are HOST:PORT, http://HOST:PORT and https://HOST:PORT";
        let (is_tls, rest) = match text.split_once("://") {
            None => (None, text),
            Some(("http", rest)) => (Some(false), rest),
            Some(("https", rest)) => (Some(true), rest),
            Some(_) => return Err(ALLOWED.to_owned()),
        };
        let rest = if is_tls.is_some() { rest.strip_suffix('/').unwrap_or(rest) } else { rest };
        let given: Authority = reachable(rest).parse().map_err(|_| ALLOWED.to_owned())?;
        let port = given.port_u16().or(is_tls.map(|is_tls| if is_tls { 443 } else { 80 }));
        let has_user = given.as_str().contains('@');
        let port = port.filter(|port| *port != 0 && !has_user && !given.host().is_empty());
        let authority = port.and_then(|port| format!("{}:{port}", given.host()).parse().ok());
        authority.map(|authority| Self { authority, is_tls }).ok_or_else(|| ALLOWED.to_owned())
    }

    /// Whether it is `https://`; `None` where it does not say.
    pub(super) const fn is_tls(&self) -> Option<bool> {
        self.is_tls
    }

    /// Whether what is sent there never leaves this machine.
    pub(super) fn is_loopback(&self) -> bool {
        let host = self.authority.host().trim_start_matches('[').trim_end_matches(']');
        host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
    }
}

/// Host and port.
impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.authority.as_str())
    }
}

/// Where a replica can be called that listens there: one that listens on all addresses, on loopback.
pub(in crate::cli) fn reachable(addr: &str) -> String {
    match addr.parse::<SocketAddr>() {
        Ok(addr) if addr.ip().is_unspecified() => {
            let loopback = if addr.is_ipv4() { "127.0.0.1" } else { "[::1]" };
            format!("{loopback}:{}", addr.port())
        }
        _ => addr.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replica_on_all_addresses_is_called_on_loopback() {
        for (given, called) in [
            ("0.0.0.0:9464", "127.0.0.1:9464"),
            ("[::]:9464", "[::1]:9464"),
            ("10.1.2.3:9464", "10.1.2.3:9464"),
            ("hooklane-ops:9464", "hooklane-ops:9464"),
        ] {
            assert_eq!(reachable(given), called);
        }
    }

    #[test]
    fn an_address_is_a_host_and_a_port_or_a_url_of_them() {
        for (given, shown, is_tls) in [
            ("127.0.0.1:50051", "127.0.0.1:50051", None),
            ("0.0.0.0:50051", "127.0.0.1:50051", None),
            ("http://[::]:50051/", "[::1]:50051", Some(false)),
            ("https://hooks.example", "hooks.example:443", Some(true)),
            ("https://hooks.example:8443/", "hooks.example:8443", Some(true)),
        ] {
            let address = Address::parse(given).expect(given);
            assert_eq!((address.to_string().as_str(), address.is_tls()), (shown, is_tls));
        }
        for bad in
            ["", "here", "a:0", "a:b", "a:1/", "dns:///a:1", "ftp://a:1", "https://", "u@a:1", "https://a:1/path"]
        {
            assert!(Address::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn loopback_is_told_by_name_or_number() {
        let is_loopback = |text: &str| Address::parse(text).expect(text).is_loopback();
        assert!(is_loopback("localhost:1") && is_loopback("127.0.0.2:1") && is_loopback("[::1]:1"));
        assert!(!is_loopback("10.0.0.1:1") && !is_loopback("hooks.example:1"));
    }
}
