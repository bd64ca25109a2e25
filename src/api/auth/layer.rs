//! Stands before every call: who makes it, whether they may, and whether they have room for it. Whatever it refuses, it
//! refuses before the body is read.
//!
//! Inside the gRPC-Web layer, which turns refusals into what browsers read.

use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::BoxFuture;
use http::{HeaderMap, Request, Response};
use tokio::time::timeout;
use tonic::Status;
use tonic::body::Body;
use tower::{Layer, Service};

use super::door::{Credential, Door, Shown};
use super::quota::Places;
use super::rules::Asked;
use super::watched::Watched;
use crate::api::status;

/// The layer.
#[derive(Debug, Clone)]
pub(in crate::api) struct Guard(pub(in crate::api) Arc<Door>);

impl<S> Layer<S> for Guard {
    type Service = Guarded<S>;

    fn layer(&self, inner: S) -> Guarded<S> {
        Guarded { inner, door: Arc::clone(&self.0) }
    }
}

/// A service that is guarded.
#[derive(Debug, Clone)]
pub(in crate::api) struct Guarded<S> {
    inner: S,
    door: Arc<Door>,
}

impl<S> Service<Request<Body>> for Guarded<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible, Future: Send> + Clone + Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        // The one that was asked whether it is ready is the one that is called.
        let fresh = self.inner.clone();
        let inner = std::mem::replace(&mut self.inner, fresh);
        let door = Arc::clone(&self.door);
        Box::pin(async move { Ok(answer(inner, &door, request).await.unwrap_or_else(|refusal| refusal.into_http())) })
    }
}

async fn answer<S>(mut inner: S, door: &Door, mut request: Request<Body>) -> Result<Response<Body>, Status>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
{
    let asked = Asked::of(request.uri().path());
    let is_stream = asked.is_streaming(request.uri().path());
    let _room = Arc::clone(&door.calls).try_acquire_owned().map_err(|_| status::too_many_calls())?;
    let shown = match asked {
        Asked::Public => Shown::Known(Ok(door.public())),
        Asked::Method(_) | Asked::Other => door.look_at(&request),
    };
    let credential = match shown {
        Shown::Known(judged) => judged?,
        Shown::Unheard(ring, key) => ring.look_up(&key).await?,
    };
    let places = admit(asked, is_stream, &credential)?;
    let limit = patience(request.headers())?.map_or(asked.deadline(), |patience| patience.min(asked.deadline()));
    request.extensions_mut().insert(credential.caller.clone());
    let answered = timeout(limit, inner.call(request)).await;
    let Ok(response) = answered.map_err(|_| status::deadline_exceeded(limit))?;
    Ok(match is_stream {
        true => response.map(|body| Body::new(Watched::new(body, Arc::clone(&credential.usage), places))),
        false => response,
    })
}

/// How long the caller waits for an answer, if it says so. Source: gRPC over HTTP/2, "Timeout".
fn patience(headers: &HeaderMap) -> Result<Option<Duration>, Status> {
    let Some(text) = headers.get("grpc-timeout") else { return Ok(None) };
    let read = text.to_str().ok().and_then(|text| {
        let (count, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
        let is_count = (1..=8).contains(&count.len()) && count.bytes().all(|byte| byte.is_ascii_digit());
        let count = count.parse().ok().filter(|_| is_count)?;
        Some(match unit {
            "H" => Duration::from_secs(count * 3_600),
            "M" => Duration::from_secs(count * 60),
            "S" => Duration::from_secs(count),
            "m" => Duration::from_millis(count),
            "u" => Duration::from_micros(count),
            "n" => Duration::from_nanos(count),
            _ => return None,
        })
    });
    read.map(Some).ok_or_else(|| {
        let words = "is not 1 to 8 digits and one of the units H, M, S, m, u and n";
        status::invalid_fields(vec![("grpc-timeout".to_owned(), words.to_owned())])
    })
}

/// Places for the call, where its caller may make it.
fn admit(asked: Asked, is_stream: bool, credential: &Credential) -> Result<Places, Status> {
    if let Asked::Method(method) = asked
        && !credential.caller.may(method.need())
    {
        return Err(status::role_required(method.name(), method.need(), credential.caller.role()));
    }
    credential.usage.take(is_stream)
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;

    #[test]
    fn a_callers_patience_is_read_as_grpc_writes_it() {
        for (text, expected) in [
            ("2H", Some(Duration::from_secs(7_200))),
            ("3M", Some(Duration::from_secs(180))),
            ("15S", Some(Duration::from_secs(15))),
            ("99999999m", Some(Duration::from_millis(99_999_999))),
            ("250u", Some(Duration::from_micros(250))),
            ("0n", Some(Duration::ZERO)),
            ("", None),
            ("S", None),
            ("5", None),
            ("5s", None),
            ("+5S", None),
            ("123456789S", None),
            ("5 S", None),
            ("5µ", None),
        ] {
            let value = http::HeaderValue::from_bytes(text.as_bytes()).expect("a value");
            let read = patience(&HeaderMap::from_iter([(http::HeaderName::from_static("grpc-timeout"), value)]));
            let expected = expected.map(Some).ok_or(Code::InvalidArgument);
            assert_eq!(read.map_err(|status| status.code()), expected, "{text}");
        }
        assert_eq!(patience(&HeaderMap::new()).expect("none"), None);
    }
}
