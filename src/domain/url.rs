//! An endpoint's address: what may be registered, before any name is resolved.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use super::Problem;
use super::address::{EgressRules, Forbidden};

/// An `http` or `https` URL with a host, at most 2,048 bytes.
///
/// Its user information and query are secrets: `Debug` shows neither.
#[derive(Clone, PartialEq, Eq)]
pub struct EndpointUrl(url::Url);

const BYTES_MAX: usize = 2_048;

impl EndpointUrl {
    /// Parses a caller's URL and refuses one that `rules` could never deliver to: another scheme, plain http where it
    /// is off, a port that is not allowed, or a literal address in a forbidden range. Names are judged when they are
    /// dialled.
    pub fn parse(text: &str, rules: &EgressRules) -> Result<Self, Problem> {
        if text.is_empty() {
            return Err(Problem::new("is empty; allowed is a URL such as https://example.com/hooks"));
        }
        if text.len() > BYTES_MAX {
            return Err(Problem::new(format!("has {} bytes; allowed are {BYTES_MAX}", text.len())));
        }
        if text.bytes().any(|byte| byte.is_ascii_control() || byte == b' ') {
            return Err(Problem::new("contains a control character or a space; encode it with %"));
        }
        let url = url::Url::parse(text).map_err(|error| Problem::new(format!("is not a URL: {error}")))?;
        // What is not ASCII is longer as it is requested: %-encoded, and in a host as IDNA says.
        let bytes = url.as_str().len();
        if bytes > BYTES_MAX {
            return Err(Problem::new(format!("has {bytes} bytes as it is requested; allowed are {BYTES_MAX}")));
        }
        match url.scheme() {
            "https" => {}
            "http" if rules.allow_http => {}
            "http" => return Err(Problem::new("is plain http; allowed is https (egress.allow_http admits http)")),
            _ if rules.allow_http => return Err(Problem::new("has another scheme; allowed are https and http")),
            _ => return Err(Problem::new("has another scheme; allowed is https")),
        }
        if url.fragment().is_some() {
            return Err(Problem::new("has a fragment (#…), which is never sent; leave it out"));
        }
        let literal = match url.host() {
            None => return Err(Problem::new("has no host")),
            Some(url::Host::Domain(_)) => None,
            Some(url::Host::Ipv4(address)) => Some(IpAddr::V4(address)),
            Some(url::Host::Ipv6(address)) => Some(IpAddr::V6(address)),
        };
        // A host may have characters to the standard of URLs that no request can name.
        let mut bare = url.clone();
        let is_bare = bare.set_username("").and_then(|()| bare.set_password(None)).is_ok();
        if !is_bare || http::Uri::try_from(bare.as_str()).is_err() {
            return Err(Problem::new("is not a URL that can be requested; encode special characters with %"));
        }
        // Both schemes have a port of their own.
        let port = url.port_or_known_default().unwrap_or_default();
        let judged = match literal {
            Some(address) => rules.judge(SocketAddr::new(address, port)),
            None => rules.judge_port(port),
        };
        judged.map_err(|forbidden| match forbidden {
            Forbidden::Address => {
                Problem::new("has an address that is not public; allowed are public addresses and egress.allow_cidrs")
            }
            Forbidden::Port => Problem::new(format!("has the port {port}; allowed are those of egress.allow_ports")),
        })?;
        Ok(Self(url))
    }

    /// Trusts a value that the database holds; `None` where it cannot be a URL.
    pub fn from_stored(text: &str) -> Option<Self> {
        url::Url::parse(text).ok().map(Self)
    }

    /// The whole URL, secrets included: for the request and the database, never for a log.
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }

    /// Scheme, host, port and path: what may be logged and shown.
    pub fn redacted(&self) -> String {
        let mut shown = self.0.clone();
        shown.set_query(None);
        // Both fail only for URLs without a host, which do not pass `parse`.
        let _ = shown.set_username("");
        let _ = shown.set_password(None);
        shown.into()
    }

    /// The parsed URL.
    pub const fn parsed(&self) -> &url::Url {
        &self.0
    }
}

impl fmt::Debug for EndpointUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EndpointUrl({})", self.redacted())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_deliverable_urls_are_accepted() {
        let rules = EgressRules::default();
        assert!(EndpointUrl::parse("https://example.com/hooks?a=1", &rules).is_ok());
        for bad in [
            "",
            "example.com",
            "ftp://example.com",
            "http://example.com",
            "https://",
            "https://example.com/#part",
            "https://exa mple.com",
            "https://127.0.0.1/",
            "https://2130706433/",
            "https://0x7f.1/",
            "https://[::1]/",
            "https://[::ffff:10.0.0.1]/",
            "https://169.254.169.254/latest",
            "https://example.com:8443/",
            "https://8.8.8.8:80/",
            "https://example.{}com/",
            &format!("https://example.com/{}", "x".repeat(2_048)),
            &format!("https://example.com/{}", "é".repeat(400)),
            &format!("https://{}.example.com/", "ы.".repeat(300)),
        ] {
            assert!(EndpointUrl::parse(bad, &rules).is_err(), "{bad}");
        }
    }

    #[test]
    fn rules_admit_http_and_chosen_ranges() {
        let rules = EgressRules {
            allow_http: true,
            allow_cidrs: vec!["127.0.0.0/8".parse().expect("cidr")],
            ..EgressRules::default()
        };
        assert!(EndpointUrl::parse("http://127.0.0.1:8080/", &rules).is_ok());
        assert!(EndpointUrl::parse("http://10.0.0.1/", &rules).is_err());
        let refused = |rules| EndpointUrl::parse("ftp://127.0.0.1/", rules).expect_err("no scheme for it").to_string();
        assert!(refused(&rules).ends_with("allowed are https and http"));
        assert!(refused(&EgressRules::default()).ends_with("allowed is https"));
        // It may be one of 127.0.0.0/8.
        assert!(EndpointUrl::parse("http://receiver:8080/", &rules).is_ok());
        assert!(EndpointUrl::parse("http://8.8.8.8:8080/", &rules).is_err());
    }

    #[test]
    fn debug_shows_no_secret() {
        let url = EndpointUrl::parse("https://user:pass@example.com/hooks?token=abc", &EgressRules::default())
            .expect("valid");
        assert_eq!(format!("{url:?}"), "EndpointUrl(https://example.com/hooks)");
    }
}
