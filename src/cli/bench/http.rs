//! The benchmark's own HTTP client: the bare limit that Hooklane is measured against, and the receivers' control path.

use std::net::SocketAddr;

use bytes::Bytes;
use http::{Request, Uri};
use http_body_util::{BodyExt as _, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde::de::DeserializeOwned;

use super::process::Process;
use super::tally::Report;
use crate::cli::Failure;

/// A plain client: no TLS, no guard, no deadline.
pub(super) type Bare = Client<HttpConnector, Full<Bytes>>;

pub(super) fn bare() -> Bare {
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    Client::builder(TokioExecutor::new()).build(connector)
}

/// A process of receivers, seen from the benchmark.
#[derive(Debug)]
pub(super) struct Receivers {
    process: Process,
    live: SocketAddr,
    silent: SocketAddr,
    client: Bare,
}

impl Receivers {
    /// Starts them; `is_recording` keeps every delivery id that arrives.
    pub(super) async fn start(is_recording: bool) -> Result<Self, Failure> {
        let arguments: &[&str] = if is_recording { &["bench-receiver", "--record"] } else { &["bench-receiver"] };
        let process = Process::start("the receiver", arguments, &[]).await?;
        let (live, silent) = (process.address("live")?, process.address("silent")?);
        Ok(Self { process, live, silent, client: bare() })
    }

    pub(super) const fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// The URL of a receiver that answers.
    pub(super) fn live_url(&self, number: usize) -> String {
        format!("http://{}/live/{number}", self.live)
    }

    /// The URL of one that reads and never answers.
    pub(super) fn silent_url(&self, number: usize) -> String {
        format!("http://{}/silent/{number}", self.silent)
    }

    /// Counts arrivals anew.
    pub(super) async fn reset(&self) -> Result<Report, Failure> {
        self.get("/reset").await
    }

    /// Counts latency anew.
    pub(super) async fn begin_window(&self) -> Result<Report, Failure> {
        self.get("/window").await
    }

    pub(super) async fn report(&self) -> Result<Report, Failure> {
        self.get("/report").await
    }

    /// Whatever else the control path tells as JSON.
    pub(super) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        let failed = |error: &dyn std::fmt::Display| self.process.failure(&format!("did not answer {path}: {error}"));
        let url: Uri = format!("http://{}{path}", self.live).parse().map_err(|error| failed(&error))?;
        let mut request = Request::new(Full::default());
        *request.uri_mut() = url;
        let response = self.client.request(request).await.map_err(|error| failed(&error))?;
        let body = response.into_body().collect().await.map_err(|error| failed(&error))?;
        serde_json::from_slice(&body.to_bytes()).map_err(|error| failed(&error))
    }
}
