//! The guard: resolves a host, judges every address, and dials only what it judged, itself or through the egress proxy.
//!
//! It is the innermost connector, so literals and names, http and https all pass it, and the address that was judged is
//! the address that is dialled: a name that resolves differently a moment later gains nothing.

use std::future::pending;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use http::Uri;
use http::uri::Scheme;
use hyper_util::rt::TokioIo;
use tower::Service;

use super::TcpStream;
use super::proxy::Proxy;
use super::resolver::Resolver;
use crate::domain::address::{EgressRules, Forbidden};

/// Why no connection was made. The words say nothing of addresses: they are shown to the endpoint's owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum DialError {
    #[error("blocked: plain http is not allowed")]
    PlainHttp,
    #[error("blocked: {0}")]
    Forbidden(#[from] Forbidden),
    #[error("the host name did not resolve")]
    Unresolved,
    #[error("{}", words(*.0))]
    Unreachable(io::ErrorKind),
    #[error("the egress proxy cannot be reached")]
    ProxyUnreachable,
    #[error("the egress proxy refused the connection")]
    ProxyRefused,
}

fn words(kind: io::ErrorKind) -> &'static str {
    use io::ErrorKind::*;
    match kind {
        ConnectionRefused => "connection refused",
        ConnectionReset | ConnectionAborted => "connection reset while connecting",
        TimedOut => "the receiver did not accept the connection",
        HostUnreachable | NetworkUnreachable | NetworkDown => "the host is unreachable",
        _ => "no connection could be made",
    }
}

/// How many of a name's addresses are dialled at most; all of them are judged.
const ADDRESSES_MAX: usize = 8;

/// How long an address has before the next is tried beside it. Source: RFC 8305, section 5.
const HEAD_START: Duration = Duration::from_millis(250);

/// Opens TCP connections within the rules.
#[derive(Clone)]
pub(super) struct Guard(Arc<Way>);

struct Way {
    rules: EgressRules,
    resolver: Resolver,
    proxy: Option<Proxy>,
}

impl Guard {
    pub(super) fn new(rules: EgressRules, proxy: Option<Proxy>, resolver: Resolver) -> Self {
        Self(Arc::new(Way { rules, resolver, proxy }))
    }
}

impl Service<Uri> for Guard {
    type Response = TokioIo<TcpStream>;
    type Error = DialError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, DialError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), DialError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let way = Arc::clone(&self.0);
        Box::pin(async move { way.connect(&uri).await.map(TokioIo::new) })
    }
}

impl Way {
    async fn connect(&self, uri: &Uri) -> Result<TcpStream, DialError> {
        let is_https = uri.scheme() == Some(&Scheme::HTTPS);
        if !is_https && !self.rules.allow_http {
            return Err(DialError::PlainHttp);
        }
        let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
        let port = uri.port_u16().unwrap_or(if is_https { 443 } else { 80 });
        if let Some(proxy) = self.proxy.as_ref().filter(|proxy| proxy.resolves(host)) {
            // Who resolves judges: what is left to be judged here is the port.
            self.rules.judge_public_port(port)?;
            return proxy.tunnel(&self.resolver, &format!("{host}:{port}")).await;
        }
        let addresses = self.resolver.resolve(host, port).await?;
        // One forbidden address condemns the host: which of several is dialled is up to whoever answers for the name.
        for address in &addresses {
            self.rules.judge(*address)?;
        }
        match &self.proxy {
            None => {
                let stream = dial(&addresses).await.map_err(|error| DialError::Unreachable(error.kind()))?;
                // Without it a request of two segments waits for the receiver's delayed acknowledgement, 40 ms. Failing
                // is no harm.
                let _ = stream.set_nodelay(true);
                Ok(stream)
            }
            Some(proxy) => self.tunnel(proxy, &addresses).await,
        }
    }

    /// The first tunnel that comes about. The proxy is told addresses, not the name: what it dials is what was judged.
    async fn tunnel(&self, proxy: &Proxy, addresses: &[SocketAddr]) -> Result<TcpStream, DialError> {
        let mut failed = DialError::Unresolved;
        for address in addresses.iter().take(ADDRESSES_MAX) {
            match proxy.tunnel(&self.resolver, &address.to_string()).await {
                Err(error @ DialError::ProxyRefused) => failed = error,
                ended => return ended,
            }
        }
        Err(failed)
    }
}

/// The first connection that comes about. Addresses are tried in the resolver's order, the next as soon as one fails or
/// [`HEAD_START`] has passed, so that one dead address of several costs a moment and not the deadline.
pub(super) async fn dial(addresses: &[SocketAddr]) -> io::Result<TcpStream> {
    let mut untried = addresses.iter().take(ADDRESSES_MAX);
    let mut dialling = FuturesUnordered::new();
    let mut failed = io::ErrorKind::AddrNotAvailable.into();
    loop {
        match untried.next() {
            Some(address) => dialling.push(TcpStream::connect(*address)),
            None if dialling.is_empty() => return Err(failed),
            None => {}
        }
        let more = untried.len() > 0;
        tokio::select! {
            Some(dialled) = dialling.next() => match dialled {
                Ok(stream) => return Ok(stream),
                Err(error) => failed = error,
            },
            () = async { if more { tokio::time::sleep(HEAD_START).await } else { pending().await } } => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn the_next_address_is_dialled_when_one_fails() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let alive = listener.local_addr().unwrap();
        let dead: SocketAddr = "127.0.0.1:1".parse().unwrap();
        assert!(dial(&[dead, alive]).await.is_ok());
        assert_eq!(dial(&[dead, dead]).await.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    }
}
