//! A tunnel through the egress proxy: HTTP CONNECT (RFC 9110, section 9.3.6), to an address that the guard has judged.
//!
//! The proxy itself is the installation's own, wherever it is: it is dialled as the setting says, without the guard.

use std::fmt;
use std::net::IpAddr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use percent_encoding::percent_decode_str;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use zeroize::Zeroizing;

use super::TcpStream;
use super::guard::DialError;
use super::resolver::Resolver;

/// The longest head of an answer that is read, in bytes.
const HEAD_BYTES_MAX: usize = 8 * 1_024;

/// The one way out, where there is one.
#[derive(Clone, PartialEq, Eq)]
pub struct Proxy {
    host: String,
    port: u16,
    /// `user:password` in base64.
    credentials: Option<Zeroizing<String>>,
    /// Whether it is asked for names, so that it and not the guard judges their addresses.
    resolves: bool,
}

impl Proxy {
    /// Parses `http://[user:password@]host:port`. The problem repeats nothing of it.
    pub fn parse(text: &str, resolves: bool) -> Result<Self, String> {
        const ALLOWED: &str =
            "is not the address of a proxy; allowed is http://host:port or http://user:password@host:port";
        let url = url::Url::parse(text).map_err(|_| ALLOWED)?;
        let is_bare = matches!(url.path(), "" | "/") && url.query().is_none() && url.fragment().is_none();
        let host = url.host_str().filter(|_| url.scheme() == "http" && is_bare).ok_or(ALLOWED)?;
        let port = url.port_or_known_default().ok_or(ALLOWED)?;
        let has_credentials = !url.username().is_empty() || url.password().is_some();
        let credentials = has_credentials.then(|| {
            let mut pair = Zeroizing::new(percent_decode_str(url.username()).collect::<Vec<u8>>());
            pair.push(b':');
            pair.extend(percent_decode_str(url.password().unwrap_or_default()));
            Zeroizing::new(BASE64.encode(&*pair))
        });
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        Ok(Self { host, port, credentials, resolves })
    }

    /// Whether the proxy is asked for this host's addresses: names alone, where the setting says so.
    pub(super) fn resolves(&self, host: &str) -> bool {
        self.resolves && host.parse::<IpAddr>().is_err()
    }

    /// A connection through the proxy to `authority`, an address or a name with its port.
    pub(super) async fn tunnel(&self, resolver: &Resolver, authority: &str) -> Result<TcpStream, DialError> {
        let unreachable = |_| DialError::ProxyUnreachable;
        let addresses = resolver.resolve(&self.host, self.port).await.map_err(unreachable)?;
        let mut stream = super::guard::dial(&addresses).await.map_err(|_| DialError::ProxyUnreachable)?;
        let _ = stream.set_nodelay(true);
        let mut request = Zeroizing::new(format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n"));
        if let Some(credentials) = &self.credentials {
            request.push_str("Proxy-Authorization: Basic ");
            request.push_str(credentials);
            request.push_str("\r\n");
        }
        request.push_str("\r\n");
        stream.write_all(request.as_bytes()).await.map_err(|_| DialError::ProxyUnreachable)?;
        match read_status(&mut stream).await {
            Some(200..=299) => Ok(stream),
            Some(_) => Err(DialError::ProxyRefused),
            None => Err(DialError::ProxyUnreachable),
        }
    }
}

/// The status of an answer whose head is all that came: behind it the receiver speaks, who waits for us.
async fn read_status(stream: &mut TcpStream) -> Option<u16> {
    let mut head = Vec::with_capacity(256);
    while !head.ends_with(b"\r\n\r\n") {
        let had = head.len();
        if had >= HEAD_BYTES_MAX || stream.read_buf(&mut head).await.ok()? == 0 {
            return None;
        }
        let end = head.windows(4).position(|window| window == b"\r\n\r\n");
        // A refusal may have a body, which nobody reads.
        if end.is_some_and(|end| end + 4 < head.len()) {
            return status_of(&head).filter(|status| !(200..300).contains(status));
        }
    }
    status_of(&head)
}

fn status_of(head: &[u8]) -> Option<u16> {
    let line = head.split(|byte| *byte == b'\r').next()?;
    let line = std::str::from_utf8(line).ok()?;
    let (version, rest) = line.split_once(' ')?;
    let digits = rest.get(..3).filter(|_| version.starts_with("HTTP/1."))?;
    if rest.len() > 3 && !rest[3..].starts_with(' ') {
        return None;
    }
    digits.parse().ok().filter(|status| (200..600).contains(status))
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port, credentials: _, resolves } = self;
        f.debug_struct("Proxy")
            .field("host", host)
            .field("port", port)
            .field("resolves", resolves)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxy_is_an_http_address_with_or_without_credentials() {
        let proxy = Proxy::parse("http://us%65r:p%40ss@proxy.internal:3128", false).expect("good");
        assert_eq!((proxy.host.as_str(), proxy.port), ("proxy.internal", 3128));
        assert_eq!(proxy.credentials.as_ref().map(|it| it.as_str()), Some("dXNlcjpwQHNz"));
        assert!(!format!("{proxy:?}").contains("dXNlcjpwQHNz"));
        assert_eq!(
            Proxy::parse("http://[::1]", false).map(|proxy| (proxy.host, proxy.port)),
            Ok(("::1".to_owned(), 80))
        );
        for bad in
            ["", "proxy:3128", "https://proxy:1", "socks5://proxy:1", "http://", "http://a:canary@b/path", "http://b?q"]
        {
            let problem = Proxy::parse(bad, false).expect_err(bad);
            assert!(!problem.contains("canary"), "{problem}");
        }
    }

    #[test]
    fn names_alone_are_the_proxys_and_only_where_it_is_told() {
        let [here, there] = [false, true].map(|resolves| Proxy::parse("http://p", resolves).expect("good"));
        assert!(!here.resolves("example.com") && there.resolves("example.com"));
        assert!(!there.resolves("10.0.0.1") && !there.resolves("::1"));
    }

    #[test]
    fn statuses_are_read_strictly() {
        for (head, status) in [
            (&b"HTTP/1.1 200 Connection established\r\n\r\n"[..], Some(200)),
            (b"HTTP/1.0 407\r\n\r\n", Some(407)),
            (b"HTTP/2 200\r\n\r\n", None),
            (b"HTTP/1.1 2000\r\n\r\n", None),
            (b"HTTP/1.1 -20\r\n\r\n", None),
            (b"HTTP/1.1 20\xff\r\n\r\n", None),
            (b"SSH-2.0\r\n\r\n", None),
            (b"\r\n\r\n", None),
        ] {
            assert_eq!(status_of(head), status, "{}", String::from_utf8_lossy(head));
        }
    }
}
