//! Sending spans to the collector: in batches, one at a time, and never in anybody's way.

use std::collections::HashMap;
use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry_otlp::{
    ExporterBuildError, SpanExporter, WithExportConfig as _, WithHttpConfig as _, WithTonicConfig as _,
};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SpanData, SpanExporter as _};
use prometheus::IntCounter;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tonic::metadata::{AsciiMetadataKey, AsciiMetadataValue, MetadataMap};
use tonic::transport::ClientTlsConfig;

use super::{Batch, Config, Protocol};

/// Why traces cannot be sent.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// The exporter refused the settings.
    #[error("the exporter of traces cannot be set up: {0}")]
    Exporter(#[from] ExporterBuildError),
    /// A header cannot be sent.
    #[error("OTEL_EXPORTER_OTLP_HEADERS has {0:?}, which is no header; allowed is name=value")]
    Header(String),
    /// The TLS library refused its own defaults.
    #[error("TLS for traces could not be set up: {0}")]
    Tls(String),
}

/// How long the end of the process waits for the collector.
const LAST_MAX: Duration = Duration::from_secs(2);

/// What speaks to the collector.
pub(super) fn exporter(config: &Config, replica: &str) -> Result<SpanExporter, SetupError> {
    let mut exporter = match config.protocol {
        Protocol::Grpc => {
            let mut builder = SpanExporter::builder()
                .with_tonic()
                .with_endpoint(&config.endpoint)
                .with_timeout(config.timeout)
                .with_metadata(metadata(&config.headers)?);
            if config.endpoint.starts_with("https://") {
                builder = builder.with_tls_config(ClientTlsConfig::new().with_native_roots());
            }
            builder.build()?
        }
        Protocol::Http => SpanExporter::builder()
            .with_http()
            .with_http_client(http_client(config.timeout)?)
            .with_endpoint(&config.endpoint)
            .with_timeout(config.timeout)
            .with_headers(config.headers.iter().cloned().collect::<HashMap<_, _>>())
            .build()?,
    };
    exporter.set_resource(&resource(config, replica));
    Ok(exporter)
}

fn metadata(headers: &[(String, String)]) -> Result<MetadataMap, SetupError> {
    let mut metadata = MetadataMap::new();
    for (name, value) in headers {
        let problem = || SetupError::Header(name.clone());
        let key = AsciiMetadataKey::from_bytes(name.to_ascii_lowercase().as_bytes()).map_err(|_| problem())?;
        metadata.insert(key, AsciiMetadataValue::try_from(value.as_str()).map_err(|_| problem())?);
    }
    Ok(metadata)
}

/// The collector is the operator's, so the guard of the egress does not judge it.
fn http_client(timeout: Duration) -> Result<impl opentelemetry_http::HttpClient + 'static, SetupError> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| SetupError::Tls(error.to_string()))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let connector =
        hyper_rustls::HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1().build();
    Ok(opentelemetry_http::hyper::HyperClient::new(connector, timeout, None))
}

/// What is said of the process. The settings' word counts before its own.
fn resource(config: &Config, replica: &str) -> Resource {
    let own = [
        ("service.name", "hooklane"),
        ("service.version", env!("CARGO_PKG_VERSION")),
        ("service.instance.id", replica),
        ("telemetry.sdk.language", "rust"),
        ("telemetry.sdk.name", "opentelemetry"),
    ];
    let mut said: HashMap<String, String> = own.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    said.extend(config.resource.iter().cloned());
    Resource::builder_empty().with_attributes(said.into_iter().map(|(name, value)| KeyValue::new(name, value))).build()
}

/// Sends until `end`, and then what is left.
pub(super) async fn send_all(
    exporter: SpanExporter,
    mut queue: mpsc::Receiver<SpanData>,
    batch: Batch,
    dropped: IntCounter,
    end: CancellationToken,
) {
    let mut sender = Sender { exporter, dropped, is_failing: false };
    let mut spans = Vec::new();
    while gather(&mut queue, &mut spans, batch, &end).await {
        let over = async {
            end.cancelled().await;
            tokio::time::sleep(LAST_MAX).await;
        };
        tokio::select! {
            () = sender.send(std::mem::take(&mut spans)) => {}
            () = over => return,
        }
    }
    let last = async {
        queue.close();
        loop {
            if spans.is_empty() && queue.recv_many(&mut spans, batch.size_max).await == 0 {
                return;
            }
            sender.send(std::mem::take(&mut spans)).await;
        }
    };
    // A collector that does not answer holds nobody up.
    let _ = timeout(LAST_MAX, last).await;
}

/// Gathers the next batch; `false` once it is the end, whatever has been gathered by then.
async fn gather(
    queue: &mut mpsc::Receiver<SpanData>,
    spans: &mut Vec<SpanData>,
    batch: Batch,
    end: &CancellationToken,
) -> bool {
    let first = end.run_until_cancelled(queue.recv_many(spans, batch.size_max)).await;
    if matches!(first, None | Some(0)) {
        return false;
    }
    let until = Instant::now() + batch.delay;
    while spans.len() < batch.size_max {
        let room = batch.size_max - spans.len();
        match end.run_until_cancelled(timeout_at(until, queue.recv_many(spans, room))).await {
            Some(Ok(received)) if received > 0 => {}
            Some(_) => return true,
            None => return false,
        }
    }
    true
}

struct Sender {
    exporter: SpanExporter,
    dropped: IntCounter,
    is_failing: bool,
}

impl Sender {
    /// Sends one batch. What the collector does not take is dropped and counted; of many failures in a row the log tells
    /// once.
    async fn send(&mut self, spans: Vec<SpanData>) {
        let count = spans.len() as u64;
        match self.exporter.export(spans).await {
            Ok(()) if self.is_failing => {
                self.is_failing = false;
                tracing::info!("the collector takes traces again");
            }
            Ok(()) => {}
            Err(error) => {
                self.dropped.inc_by(count);
                if !std::mem::replace(&mut self.is_failing, true) {
                    tracing::warn!(%error, "the collector takes no traces; until it does they are dropped");
                }
            }
        }
    }
}
