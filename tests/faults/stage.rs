//! What a case runs on: a PostgreSQL of its own that loses nothing it acknowledged, replicas of the service as processes,
//! callers, and the receiver with its record.

use std::time::{Duration, Instant};

use hooklane::api::proto::{PublishRequest, publish_request};
use hooklane::cli::postgres::{DataDir, Durability, Options, Postgres, RestartMode};
use hooklane::store::{Config, Limits, Retention, Store};
use sqlx::PgConnection;
use tonic::{Code, Status};

use crate::load::{Client, Load};
use crate::program::Replica;
use crate::proxy::Proxy;
use crate::record::Record;
use crate::support::{connection, eventually};

/// Requests that an endpoint has under way at most in one replica.
pub(crate) const IN_FLIGHT_MAX: usize = 64;
/// By when everything goes on after a fault is over.
pub(crate) const RESUMES_WITHIN: Duration = Duration::from_secs(15);

/// By when a caller is told: the wait for a connection and the one for its commit, and some.
const TOLD_WITHIN: Duration = Duration::from_secs(18);

const DATABASE: &str = "hooklane";

/// A service with its surroundings.
pub(crate) struct Stage {
    // In the order in which they go.
    pub(crate) replicas: Vec<Replica>,
    pub(crate) proxy: Proxy,
    pub(crate) postgres: Postgres,
    pub(crate) record: Record,
    /// What the replicas are started with.
    settings: Vec<(String, String)>,
}

/// How a stage differs from the plain one: a replica, in reach of a server that has its data where it likes.
pub(crate) struct Plan {
    pub(crate) replicas: usize,
    pub(crate) data_dir: DataDir,
    pub(crate) server_settings: Vec<(String, String)>,
    /// Of every replica.
    pub(crate) settings: Vec<(String, String)>,
}

impl Default for Plan {
    fn default() -> Self {
        Self { replicas: 1, data_dir: DataDir::Ephemeral, server_settings: Vec::new(), settings: Vec::new() }
    }
}

impl Stage {
    /// Starts everything, with the receiver registered for all events.
    pub(crate) async fn start(plan: Plan) -> Self {
        let options = Options {
            data_dir: plan.data_dir,
            bin_dir: None,
            durability: Durability::Full,
            extra_settings: plan.server_settings,
        };
        let postgres = Postgres::start(options).await.expect("PostgreSQL starts");
        postgres.create_database(DATABASE).await.expect("created");
        let config = Config {
            database_url: postgres.url(DATABASE),
            connections_max: 5,
            replica: "migrates".to_owned(),
            notify: true,
            limits: Limits::default(),
            retention: Retention::default(),
            encryption: Default::default(),
            event_types_max: 100,
        };
        Store::migrate(&config).await.expect("migrated");
        let proxy = Proxy::start(postgres.socket_dir(), DATABASE).await;
        let mut stage =
            Self { replicas: Vec::new(), proxy, postgres, record: Record::start().await, settings: plan.settings };
        for _ in 0..plan.replicas {
            stage.add_replica(&[]).await;
        }
        stage
    }

    /// Starts one replica more, with settings of its own beside those of all.
    pub(crate) async fn add_replica(&mut self, more: &[(&str, &str)]) {
        let common = self.settings.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        let settings: Vec<_> = common.chain(more.iter().copied()).collect();
        let replica = Replica::start(self.proxy.url(), &settings).await;
        if self.replicas.is_empty() && self.record.count() == 0 {
            self.record.register(&mut Client::connect(replica.grpc.clone()).await.expect("connects")).await;
        }
        self.replicas.push(replica);
    }

    /// The place of the replica that has most in flight; its lanes are where the work is.
    pub(crate) async fn busiest(&self) -> usize {
        let mut names = Vec::new();
        for replica in &self.replicas {
            names.push(replica.name().await);
        }
        let busiest: String = sqlx::query_scalar(
            "select replica from outstanding where state = 2 and replica = any($1)
             group by replica order by count(*) desc limit 1",
        )
        .bind(&names)
        .fetch_one(&mut self.database().await)
        .await
        .expect("somebody has something in flight");
        names.iter().position(|name| *name == busiest).expect("one of them")
    }

    /// Kills a replica and starts another in its place; answers how many attempts it had in flight.
    pub(crate) async fn kill(&mut self, place: usize) -> usize {
        let name = self.replicas[place].name().await;
        self.replicas[place].signal("KILL").await;
        self.replicas[place].ended().await;
        let in_flight: i64 = sqlx::query_scalar("select count(*) from outstanding where state = 2 and replica = $1")
            .bind(name)
            .fetch_one(&mut self.database().await)
            .await
            .expect("counted");
        let settings: Vec<_> = self.settings.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        self.replicas[place] = Replica::start(self.proxy.url(), &settings).await;
        usize::try_from(in_flight).expect("a count")
    }

    /// Ends PostgreSQL as `mode` says, and starts it again as its operator would.
    pub(crate) async fn restart(&mut self, mode: RestartMode) {
        self.postgres.restart(mode).await.expect("restarted");
    }

    /// A connection past the link, for looking.
    pub(crate) async fn database(&self) -> PgConnection {
        connection(&self.postgres.url(DATABASE)).await
    }

    /// Attempts in flight now.
    pub(crate) async fn in_flight(&self) -> usize {
        let counted: i64 = sqlx::query_scalar("select count(*) from outstanding where state = 2")
            .fetch_one(&mut self.database().await)
            .await
            .expect("counted");
        usize::try_from(counted).expect("a count")
    }

    /// The first replica's service.
    pub(crate) async fn client(&self) -> Client {
        Client::connect(self.replicas[0].grpc.clone()).await.expect("connects")
    }

    /// Publishes one event to the first replica; answers its deliveries.
    pub(crate) async fn publish(&self, key: &str) -> Result<Vec<String>, Status> {
        let request = PublishRequest {
            event_type: "order.created".to_owned(),
            idempotency_key: key.to_owned(),
            body: Some(publish_request::Body::Payload("{}".into())),
            ..PublishRequest::default()
        };
        let mut client = self.client().await;
        let answered = tokio::time::timeout(TOLD_WITHIN, client.publish(request)).await;
        let published =
            answered.unwrap_or_else(|_| panic!("a caller waited for {TOLD_WITHIN:?} and was told nothing"))?;
        Ok(published.into_inner().deliveries.into_iter().map(|delivery| delivery.delivery_id).collect())
    }

    /// Asserts that a caller learns in time that nothing is known of its event.
    pub(crate) async fn is_unavailable(&self, key: &str) {
        let refusal = self.publish(key).await.expect_err("nothing can be committed");
        assert_eq!(refusal.code(), Code::Unavailable, "{refusal:?}");
    }

    /// Callers of all replicas.
    pub(crate) fn load(&self) -> Load {
        Load::start_on(self.addresses(), 1)
    }

    /// Where the replicas are.
    pub(crate) fn addresses(&self) -> Vec<String> {
        self.replicas.iter().map(|replica| replica.grpc.clone()).collect()
    }

    /// Waits until publishes are acknowledged, requests arrive and the replicas are ready again: within
    /// [`RESUMES_WITHIN`] of `over`.
    pub(crate) async fn resumes(&self, load: &Load, over: Instant) {
        let (acknowledged, arrived) = (load.count(), self.record.count());
        eventually("publishes are acknowledged again", || async { (load.count() > acknowledged).then_some(()) }).await;
        // More than one replica had in flight is surely new.
        eventually("requests arrive again", || async {
            (self.record.count() > arrived + IN_FLIGHT_MAX * self.replicas.len()).then_some(())
        })
        .await;
        for replica in &self.replicas {
            eventually("a replica is ready again", || async {
                (replica.look("/readyz").await == Some(200)).then_some(())
            })
            .await;
        }
        assert!(over.elapsed() < RESUMES_WITHIN, "it took {:?} to go on", over.elapsed());
    }
}

/// What a client tells of a connection that ends in the middle of a call, whether it is known or not.
pub(crate) fn is_of_a_broken_connection(code: Code) -> bool {
    matches!(code, Code::Unavailable | Code::Unknown | Code::Cancelled | Code::Internal)
}
