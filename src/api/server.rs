//! The gRPC server: its port, its bounds, the services on it, and how it ends.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue, Method};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic_web::GrpcWebLayer;
use tower::ServiceBuilder;
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer};

use super::auth::{CallerLimits, ClientRule, Door, Guard, Mode};
use super::connection;
use super::direct::Direct;
use super::health::Health;
use super::limits::MessageLimits;
use super::measured::Measured;
use super::proto;
use super::proto::webhook_service_server::WebhookServiceServer;
use super::service::Webhooks;
use super::serving::{self, Ways};
use super::tls::{self, Tls};
use crate::domain::address::EgressRules;
use crate::domain::cloudevents::SourceTemplate;
use crate::egress::Egress;
use crate::live::Live;
use crate::store::{Publisher, Store};

/// How the gRPC server behaves.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where it listens; port 0 picks one.
    pub grpc_addr: SocketAddr,
    /// The largest payload of an event.
    pub payload_bytes_max: usize,
    /// Which endpoint URLs may be registered.
    pub egress_rules: EgressRules,
    /// What CloudEvents bodies name as the source of events.
    pub cloudevents_source: SourceTemplate,
    /// Whether server reflection is on.
    pub reflection: bool,
    /// Who is let in.
    pub edge: Edge,
}

/// Who is let in, and with how much.
#[derive(Debug, Clone)]
pub struct Edge {
    /// How callers show who they are.
    pub auth: Mode,
    /// Who calls with which certificate.
    pub clients: Vec<ClientRule>,
    /// What one credential may have.
    pub caller_limits: CallerLimits,
    /// Connections of one address at once.
    pub connections_per_address_max: u32,
    /// The certificate that is served with; `None` for plain text.
    pub tls: Option<tls::Config>,
}

/// Nobody is asked who they are, in plain text.
impl Default for Edge {
    fn default() -> Self {
        Self {
            auth: Mode::None,
            clients: Vec::new(),
            caller_limits: CallerLimits { requests_per_second: 0, calls: 4_096, streams: 100 },
            connections_per_address_max: 1_024,
            tls: None,
        }
    }
}

/// What the calls work on.
#[derive(Debug, Clone)]
pub struct Services {
    /// The database.
    pub store: Arc<Store>,
    /// Commits published events.
    pub publisher: Publisher,
    /// The live stream.
    pub live: Arc<Live>,
    /// The way to receivers, for TestEndpoint alone: deliveries are the engine's.
    pub egress: Egress,
}

/// How long a shutdown waits for calls under way; a caller that does not read its answer holds nothing up.
const DRAIN_MAX: Duration = Duration::from_secs(10);

/// Serves until `shutdown`, then until the calls under way have ended (10 s at most). `health` turns SERVING here,
/// NOT_SERVING while the database does not answer, and for good with the shutdown; open streams end with UNAVAILABLE.
pub async fn serve(
    listener: TcpListener,
    tls: Option<Tls>,
    services: Services,
    config: Config,
    health: Health,
    shutdown: CancellationToken,
) {
    let limits = MessageLimits { payload_bytes_max: config.payload_bytes_max };
    let edge = &config.edge;
    let door = Door::new(edge.auth, &edge.clients, edge.caller_limits, &services.store, &shutdown);
    let store = Arc::clone(&services.store);
    let incoming = connection::incoming(listener, tls, edge.connections_per_address_max, shutdown.clone());
    let has_reflection = config.reflection;
    let webhooks = Webhooks::new(services, config, shutdown.clone());
    let contract = WebhookServiceServer::new(webhooks).max_decoding_message_size(limits.largest());
    let plain = ServiceBuilder::new()
        .layer(Measured(Arc::clone(&store)))
        .layer(Guard(door))
        .layer(limits)
        .layer(Direct(contract))
        .service(routes(&health, has_reflection));
    let browsers = ServiceBuilder::new().layer(cors()).layer(GrpcWebLayer::new()).service(plain.clone());
    // The end of `incoming` is the signal: after it every connection is asked to finish.
    let serving = serving::serve(incoming, Ways { plain, browsers });
    health.set_serving(true).await;
    let patience = async {
        shutdown.run_until_cancelled(health.follow(&store)).await;
        health.end().await;
        tokio::time::sleep(DRAIN_MAX).await;
    };
    tokio::select! {
        () = serving => {}
        () = patience => {
            tracing::warn!(seconds = DRAIN_MAX.as_secs(), "callers did not finish; their connections are cut");
        }
    }
}

/// The services beside the contract's.
fn routes(health: &Health, has_reflection: bool) -> Routes {
    let mut routes = Routes::builder();
    routes.add_service(health.server());
    if has_reflection {
        let builder = || {
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(proto::DESCRIPTORS)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        };
        // Both fail only for descriptors that cannot be decoded; a test asks for them.
        if let Ok(v1) = builder().build_v1() {
            routes.add_service(v1);
        }
        if let Ok(v1alpha) = builder().build_v1alpha() {
            routes.add_service(v1alpha);
        }
    }
    routes.routes().prepare()
}

/// Pages of this machine may call, no others: while nobody is asked for a credential, any page that a browser has open
/// could otherwise reach a service on loopback.
fn cors() -> CorsLayer {
    let exposed = ["grpc-status", "grpc-message", "grpc-status-details-bin"].map(HeaderName::from_static);
    CorsLayer::new()
        .allow_origin(AllowOrigin::predicate(|origin, _| is_loopback(origin)))
        // Not `*`: that names every header but `authorization`.
        .allow_headers(AllowHeaders::mirror_request())
        .allow_methods([Method::POST])
        .expose_headers(exposed)
        .max_age(Duration::from_secs(24 * 3600))
}

fn is_loopback(origin: &HeaderValue) -> bool {
    let host = origin.to_str().ok().and_then(|origin| origin.parse::<http::Uri>().ok());
    let host = host.as_ref().and_then(http::Uri::host).unwrap_or_default();
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_of_this_machine_alone_may_call() {
        for (origin, expected) in [
            ("http://localhost:5173", true),
            ("http://127.0.0.1:9464", true),
            ("http://[::1]:80", true),
            ("https://example.com", false),
            ("https://localhost.example.com", false),
            ("null", false),
        ] {
            assert_eq!(is_loopback(&HeaderValue::from_static(origin)), expected, "{origin}");
        }
    }
}
