//! Composes the parts, runs them, drains them. The only module that knows all of them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::egress::{Egress, SetupError};
use crate::engine::membership::Membership;
use crate::engine::{Engine, maintenance};
use crate::live::Live;
use crate::store::{ConnectError, Publisher, Store};
use crate::telemetry::traces::{SetupError as SetupTracesError, Traces};
use crate::{api, ops};

/// Why the service did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The database was not to be had, or not to be used.
    #[error(transparent)]
    Store(#[from] ConnectError),
    /// The way out could not be set up.
    #[error(transparent)]
    Egress(#[from] SetupError),
    /// The certificate could not be used.
    #[error("tls: {0}")]
    Tls(#[from] api::TlsError),
    /// Traces could not be sent with these settings.
    #[error(transparent)]
    Traces(#[from] SetupTracesError),
    /// An address could not be listened on.
    #[error("{name} {addr} cannot be listened on: {error}")]
    Bind {
        /// The setting.
        name: &'static str,
        /// Its value.
        addr: SocketAddr,
        /// What the system said.
        error: std::io::Error,
    },
}

/// A running replica.
#[derive(Debug)]
pub struct App {
    grpc_addr: Option<SocketAddr>,
    ops_addr: SocketAddr,
    store: Arc<Store>,
    /// Begins the drain.
    draining: CancellationToken,
    /// Ends what outlives the drain.
    ended: CancellationToken,
    /// Ends what tells of all that.
    last: CancellationToken,
    /// Sends traces, where they are sent.
    sending: Option<JoinHandle<()>>,
    api: Option<JoinHandle<()>>,
    engine: Option<Engine>,
    background: Vec<JoinHandle<()>>,
    grace: Duration,
}

impl App {
    /// Opens the database, binds the ports and starts the roles.
    pub async fn start(config: Config) -> Result<Self, StartError> {
        raise_file_limit();
        let store = Store::open(&config.store).await?;
        let egress = Egress::new(config.egress)?.counting_refusals(store.metrics().guard_refusals.clone());
        let publisher = Publisher::start(&store);
        let (draining, ended, last) = (CancellationToken::new(), CancellationToken::new(), CancellationToken::new());
        let mut sending = None;
        if let Some(config) = &config.traces {
            let dropped = store.metrics().spans_dropped.clone();
            let (traces, task) = Traces::start(config, store.replica(), dropped, last.clone())?;
            store.trace_into(traces);
            sending = Some(task);
        }

        let ops_listener = bind("ops.addr", config.ops.addr).await?;
        let ops_addr = local_addr(&ops_listener, config.ops.addr);
        let mut grpc_addr = None;
        let mut api_task = None;
        if config.roles.api {
            let tls = config.api.edge.tls.clone().map(|files| api::Tls::start(files, draining.clone())).transpose()?;
            let listener = bind("grpc.addr", config.api.grpc_addr).await?;
            grpc_addr = Some(local_addr(&listener, config.api.grpc_addr));
            let services = api::Services {
                store: Arc::clone(&store),
                publisher: publisher.clone(),
                live: Live::start(Arc::clone(&store), draining.clone()),
                egress: egress.clone(),
            };
            let serving = api::serve(listener, tls, services, config.api, api::Health::new(), draining.clone());
            api_task = Some(tokio::spawn(serving));
        }
        let grace = config.engine.grace;
        // To the end of the drain: what is put on record then is told to the others as well.
        let (membership, member) = Membership::start(&store, config.roles, ended.clone());
        let engine = config.roles.worker.then(|| {
            Engine::start(Arc::clone(&store), publisher.clone(), membership, egress, config.engine, draining.clone())
        });
        let ops = ops::serve(ops_listener, Arc::clone(&store), draining.clone(), ended.clone());
        let background = vec![
            member,
            tokio::spawn(maintenance::run(Arc::clone(&store), publisher, config.alerts, ended.clone())),
            tokio::spawn(async move {
                if let Err(error) = ops.await {
                    tracing::error!(%error, "the operations port ended");
                }
            }),
        ];
        Ok(Self {
            grpc_addr,
            ops_addr,
            store,
            draining,
            ended,
            last,
            sending,
            api: api_task,
            engine,
            background,
            grace,
        })
    }

    /// Where gRPC is served; `None` where this replica has no such role.
    pub const fn grpc_addr(&self) -> Option<SocketAddr> {
        self.grpc_addr
    }

    /// Where the operations port is.
    pub const fn ops_addr(&self) -> SocketAddr {
        self.ops_addr
    }

    /// Drains: accepts nothing more, lets what is under way end within the grace time, puts every result on record.
    pub async fn stop(self) {
        self.draining.cancel();
        let api = async {
            if let Some(api) = self.api {
                let ended = tokio::time::timeout(self.grace, api).await;
                if ended.is_err() {
                    tracing::warn!("callers outlast the grace time; their calls are cut off");
                }
            }
        };
        let engine = async {
            if let Some(engine) = self.engine {
                engine.ended().await;
            }
        };
        tokio::join!(api, engine);
        self.ended.cancel();
        for task in self.background {
            let _ = task.await;
        }
        self.last.cancel();
        if let Some(sending) = self.sending {
            let _ = sending.await;
        }
        // Connections are idle now; one that hangs must not hold the process.
        let _ = tokio::time::timeout(CLOSE_MAX, self.store.close()).await;
    }
}

/// How long closing the connections may take.
const CLOSE_MAX: Duration = Duration::from_secs(1);

async fn bind(name: &'static str, addr: SocketAddr) -> Result<TcpListener, StartError> {
    TcpListener::bind(addr).await.map_err(|error| StartError::Bind { name, addr, error })
}

fn local_addr(listener: &TcpListener, asked: SocketAddr) -> SocketAddr {
    listener.local_addr().unwrap_or(asked)
}

/// Every request under way is a socket; the usual soft limit of 1,024 is below what a few hundred lanes need.
fn raise_file_limit() {
    if let Err(error) = rlimit::increase_nofile_limit(u64::MAX) {
        tracing::warn!(%error, "the limit of open files could not be raised");
    }
}
