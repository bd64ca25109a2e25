//! Takes the contract's calls straight to their service, past the routes that the other services share: those look a path
//! up in a tree and box each request and answer on their way.

use std::convert::Infallible;
use std::task::{Context, Poll, ready};

use futures::future::Either;
use http::{Request, Response};
use tonic::body::Body;
use tonic::server::NamedService;
use tower::{Layer, Service};

/// The layer around the other services.
#[derive(Debug, Clone)]
pub(super) struct Direct<S>(pub(super) S);

impl<S: Clone, R> Layer<R> for Direct<S> {
    type Service = DirectCalls<S, R>;

    fn layer(&self, routes: R) -> DirectCalls<S, R> {
        DirectCalls { service: self.0.clone(), routes }
    }
}

/// One service, and the routes to all others.
#[derive(Debug, Clone)]
pub(super) struct DirectCalls<S, R> {
    service: S,
    routes: R,
}

impl<S, R> Service<Request<Body>> for DirectCalls<S, R>
where
    S: NamedService + Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    R: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Either<S::Future, R::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        ready!(self.service.poll_ready(cx))?;
        self.routes.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        match is_call_of(S::NAME, request.uri().path()) {
            true => Either::Left(self.service.call(request)),
            false => Either::Right(self.routes.call(request)),
        }
    }
}

/// Whether a path names a method of a service: `/service/method`.
fn is_call_of(service: &str, path: &str) -> bool {
    path.strip_prefix('/').and_then(|path| path.strip_prefix(service)).is_some_and(|rest| rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_calls_of_the_service_go_straight_to_it() {
        for (path, expected) in [
            ("/hooklane.v1.WebhookService/Publish", true),
            ("/hooklane.v1.WebhookService/MadeUp", true),
            ("/hooklane.v1.WebhookService", false),
            ("/hooklane.v1.WebhookServiceX/Publish", false),
            ("/grpc.health.v1.Health/Check", false),
            ("/", false),
            ("", false),
        ] {
            assert_eq!(is_call_of("hooklane.v1.WebhookService", path), expected, "{path}");
        }
    }
}
