//! `/log/filter`: what is logged, shown and changed while the replica runs.
//!
//! The operations port asks nobody who they are, and at `trace` a log has much to tell and much to write. So only this
//! machine may change it (in a container: whoever is in it), and no page that a browser on it has open: browsers name
//! the page that sends a PUT or DELETE, programs do not.

use std::net::SocketAddr;

use axum::extract::ConnectInfo;
use axum::http::header::ORIGIN;
use axum::http::{HeaderMap, StatusCode};

use crate::telemetry::log::{self, ChangeError};

/// The filter that holds.
pub(super) async fn show() -> (StatusCode, String) {
    match log::filter() {
        Some(filter) => (StatusCode::OK, filter + "\n"),
        None => refusal(&ChangeError::NoLog),
    }
}

/// The body holds from now on.
pub(super) async fn change(peer: ConnectInfo<SocketAddr>, headers: HeaderMap, text: String) -> (StatusCode, String) {
    set(peer, &headers, Some(text.trim()))
}

/// The setting holds again.
pub(super) async fn reset(peer: ConnectInfo<SocketAddr>, headers: HeaderMap) -> (StatusCode, String) {
    set(peer, &headers, None)
}

fn set(ConnectInfo(peer): ConnectInfo<SocketAddr>, headers: &HeaderMap, text: Option<&str>) -> (StatusCode, String) {
    if !may_change(peer, headers) {
        let words = "only programs of this machine may change what is logged\n";
        return (StatusCode::FORBIDDEN, words.to_owned());
    }
    match log::change_filter(text) {
        Ok(filter) => (StatusCode::OK, filter + "\n"),
        Err(error) => refusal(&error),
    }
}

fn may_change(peer: SocketAddr, headers: &HeaderMap) -> bool {
    peer.ip().to_canonical().is_loopback() && !headers.contains_key(ORIGIN)
}

fn refusal(error: &ChangeError) -> (StatusCode, String) {
    match error {
        ChangeError::Invalid(problem) => (StatusCode::BAD_REQUEST, format!("the filter {problem}\n")),
        ChangeError::NoLog => (StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_of_this_machine_alone_may_change_it() {
        let (none, mut page) = (HeaderMap::new(), HeaderMap::new());
        page.insert(ORIGIN, "http://localhost:9464".parse().expect("a value"));
        for (peer, headers, expected) in [
            ("127.0.0.1:1", &none, true),
            ("[::1]:1", &none, true),
            ("[::ffff:127.0.0.1]:1", &none, true),
            ("127.0.0.1:1", &page, false),
            ("10.0.0.1:1", &none, false),
            ("[::ffff:10.0.0.1]:1", &none, false),
        ] {
            assert_eq!(may_change(peer.parse().expect("an address"), headers), expected, "{peer}");
        }
    }
}
