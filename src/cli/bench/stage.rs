//! The stage of one scenario: a database of its own, a service over it, receivers, and endpoints between them.

use std::net::SocketAddr;

use super::Args;
use super::callers::{self, Audience, Callers, Door, Target};
use super::cluster::Cluster;
use super::http::Receivers;
use super::process::Process;
use super::tls;
use super::usage::{self, Cpu};
use crate::api::proto::{Endpoint, Ordering};
use crate::cli::Failure;

/// A running `hooklane serve`.
#[derive(Debug)]
pub(super) struct Service {
    process: Process,
    grpc: SocketAddr,
}

impl Service {
    /// Starts one over a database; `grpc` is where an earlier one listened whose callers come back.
    pub(super) async fn start(database_url: &str, grpc: Option<SocketAddr>) -> Result<Self, Failure> {
        Self::start_with(database_url, grpc, &[]).await
    }

    /// The same with more settings, named as in the environment.
    pub(super) async fn start_with(
        database_url: &str,
        grpc: Option<SocketAddr>,
        settings: &[(&'static str, &str)],
    ) -> Result<Self, Failure> {
        let grpc = grpc.unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 0)));
        let mut environment = vec![
            ("DATABASE_URL", database_url.to_owned()),
            ("HOOKLANE_AUTH", "none".to_owned()),
            ("HOOKLANE_EGRESS_ALLOW_HTTP", "true".to_owned()),
            ("HOOKLANE_EGRESS_ALLOW_CIDRS", "127.0.0.0/8".to_owned()),
            ("HOOKLANE_GRPC_ADDR", grpc.to_string()),
            ("HOOKLANE_OPS_ADDR", "127.0.0.1:0".to_owned()),
            ("HOOKLANE_LOG", "warn".to_owned()),
            // As in production. It outlasts a service, as its database does.
            ("HOOKLANE_ENCRYPTION_KEYS", "bench:BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=".to_owned()),
        ];
        environment.extend(settings.iter().map(|(name, value)| (*name, (*value).to_owned())));
        let process = Process::start("the service", &["serve"], &environment).await?;
        let grpc = process.address("grpc")?;
        Ok(Self { process, grpc })
    }

    pub(super) const fn grpc(&self) -> SocketAddr {
        self.grpc
    }

    pub(super) const fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// SIGKILL, and waits until it is gone.
    pub(super) async fn kill(&mut self) -> Result<(), Failure> {
        self.process.kill().await
    }

    /// A service that ended by itself has spoiled what was measured.
    pub(super) fn must_live(&mut self) -> Result<(), Failure> {
        if self.process.has_ended() { Err(self.process.failure("ended by itself")) } else { Ok(()) }
    }
}

/// Everything a scenario needs.
#[derive(Debug)]
pub(super) struct Stage<'c> {
    pub(super) cluster: &'c Cluster,
    pub(super) database: String,
    pub(super) database_url: String,
    pub(super) receivers: Receivers,
    pub(super) service: Service,
    /// What the service secures its port with, where it does.
    tls: Option<tls::Files>,
}

impl<'c> Stage<'c> {
    pub(super) async fn set(cluster: &'c Cluster, name: &str) -> Result<Self, Failure> {
        Self::set_with(cluster, name, None).await
    }

    /// The same over a service that secures its port.
    pub(super) async fn set_secured(cluster: &'c Cluster, name: &str) -> Result<Self, Failure> {
        Self::set_with(cluster, name, Some(tls::Files::make()?)).await
    }

    async fn set_with(cluster: &'c Cluster, name: &str, tls: Option<tls::Files>) -> Result<Self, Failure> {
        let database = format!("bench_{}", name.replace('-', "_"));
        let database_url = cluster.create_database(&database).await?;
        let receivers = Receivers::start(false).await?;
        let service = start(&database_url, tls.as_ref()).await?;
        Ok(Self { cluster, database, database_url, receivers, service, tls })
    }

    fn door(&self) -> Door {
        Door { address: self.service.grpc(), authority: self.tls.as_ref().map(|files| files.authority.clone()) }
    }

    /// Registers endpoints, `silent` of them (evenly spread) at the address that never answers.
    pub(super) async fn register(
        &self,
        args: &Args,
        endpoints: usize,
        silent: usize,
        ordering: Ordering,
    ) -> Result<Vec<Target>, Failure> {
        // Every n-th is silent, so that the callers meet one at an even pace.
        let is_live = |place: usize| silent == 0 || !place.is_multiple_of((endpoints / silent).max(1));
        let url =
            |place| if is_live(place) { self.receivers.live_url(place) } else { self.receivers.silent_url(place) };
        let clients = callers::connect(self.door(), args.channels)?;
        let endpoint = |place| Endpoint { url: url(place), ordering: ordering.into(), ..Endpoint::default() };
        let ids = callers::register(&clients[0], (0..endpoints).map(endpoint).collect()).await?;
        Ok(ids.into_iter().enumerate().map(|(place, id)| Target { id, is_live: is_live(place) }).collect())
    }

    /// Callers of the present service.
    pub(super) fn callers(&self, args: &Args, audience: &Audience) -> Result<Callers, Failure> {
        let clients = callers::connect(self.door(), args.channels)?;
        Ok(Callers::new(clients, args.payload_bytes, audience.clone()))
    }

    /// Kills the service and starts another over the same database: its peak memory and pools begin anew.
    pub(super) async fn renew_service(&mut self) -> Result<(), Failure> {
        self.service.kill().await?;
        self.service = start(&self.database_url, self.tls.as_ref()).await?;
        Ok(())
    }

    pub(super) fn cpu(&self) -> Cpu {
        Cpu::now(self.service.pid(), self.cluster.postmaster_pid(), self.receivers.pid())
    }

    pub(super) fn peak_rss_mb(&self) -> f64 {
        usage::peak_rss_mb(self.service.pid())
    }

    /// Ends the processes and removes the database.
    pub(super) async fn strike(mut self) -> Result<(), Failure> {
        self.service.must_live()?;
        self.service.kill().await?;
        self.cluster.drop_database(&self.database).await
    }
}

async fn start(database_url: &str, tls: Option<&tls::Files>) -> Result<Service, Failure> {
    let settings = tls.map(tls::Files::settings);
    let settings: Vec<_> = settings.iter().flatten().map(|(name, value)| (*name, value.as_str())).collect();
    Service::start_with(database_url, None, &settings).await
}
