//! Act 1, and what all of it plays on: a PostgreSQL, the service and two receivers, each on a port that was free.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Instant;

use super::Client;
use super::recipient::Recipient;
use super::screen::{Paint, Screen};
use crate::app::App;
use crate::cli::Failure;
use crate::cli::postgres::{DataDir, Durability, Error, Options, Postgres};
use crate::cli::serve::start_failure;
use crate::config::{Config, Flags, Profile};
use crate::telemetry::log;

/// Everything that runs.
pub(super) struct Stage {
    postgres: Postgres,
    app: App,
    /// Where gRPC is served.
    pub(super) grpc_addr: SocketAddr,
    /// The receivers; an index into them names an endpoint throughout the demo.
    pub(super) recipients: [Recipient; 2],
}

/// The database inside the server.
const DATABASE: &str = "hooklane";

impl Stage {
    /// Starts everything.
    pub(super) async fn set(screen: &Screen) -> Result<Self, Failure> {
        screen.heading("1", "Start", "all on this machine, each on a port that was free")?;
        let began = Instant::now();
        let postgres = start_postgres().await.map_err(|error| Failure::unavailable(error.to_string()))?;
        let socket_dir = postgres.socket_dir().display();
        item(screen, "PostgreSQL", &format!("on a socket in {socket_dir}, after {}", since(began)))?;

        let began = Instant::now();
        let config = config(postgres.url(DATABASE))?;
        log::start(&config.log);
        let app = App::start(config).await.map_err(start_failure)?;
        let grpc_addr = app.grpc_addr().ok_or_else(|| Failure::internal("the demo serves no gRPC"))?;
        let ops_addr = app.ops_addr();
        item(screen, "Hooklane", &format!("gRPC {grpc_addr}, operations http://{ops_addr}, after {}", since(began)))?;

        let recipients = [Recipient::steady().await?, Recipient::flaky().await?];
        for recipient in &recipients {
            let whom = format!("{} receiver", recipient.name);
            item(screen, &whom, &format!("{}, answers {}", recipient.receiver.url(), recipient.manners))?;
        }
        Ok(Self { postgres, app, grpc_addr, recipients })
    }

    /// A client of the service, over the network as any other.
    pub(super) async fn client(&self) -> Result<Client, Failure> {
        let connected = Client::connect(format!("http://{}", self.grpc_addr)).await;
        connected.map_err(|error| Failure::internal(format!("cannot connect to the service: {error}")))
    }

    /// Where the operations port is.
    pub(super) const fn ops_addr(&self) -> SocketAddr {
        self.app.ops_addr()
    }

    /// Takes it all down again, senders before receivers and the database last.
    pub(super) async fn strike(self) {
        self.app.stop().await;
        for recipient in &self.recipients {
            recipient.receiver.stop().await;
        }
        if let Err(error) = self.postgres.stop().await {
            tracing::warn!(%error, "PostgreSQL did not stop as it should");
        }
    }
}

/// One line of what runs now.
fn item(screen: &Screen, name: &str, what: &str) -> Result<(), Failure> {
    screen.line(&format!("{} {what}", screen.paint(Paint::Name, &format!("{name:<16}"))))
}

fn since(began: Instant) -> String {
    format!("{:.1} s", began.elapsed().as_secs_f64())
}

async fn start_postgres() -> Result<Postgres, Error> {
    let options = Options {
        data_dir: DataDir::Ephemeral,
        bin_dir: None,
        // As in production: the acknowledgement times shown are those of commits that reached the disk.
        durability: Durability::Full,
        extra_settings: Vec::new(),
    };
    let postgres = Postgres::start(options).await?;
    postgres.create_database(DATABASE).await?;
    Ok(postgres)
}

/// The settings of `hooklane dev`. Of the environment only the logging counts: what is set there for another service,
/// such as a `DATABASE_URL`, must not reach into a demo.
fn config(database_url: String) -> Result<Config, Failure> {
    let any_port = || Some("127.0.0.1:0".to_owned());
    let flags =
        Flags { grpc_addr: any_port(), ops_addr: any_port(), database_url: Some(database_url), ..Flags::default() };
    let mut environment = BTreeMap::from([("HOOKLANE_LOG".to_owned(), "warn".to_owned())]);
    for name in ["HOOKLANE_LOG", "HOOKLANE_LOG_FORMAT"] {
        environment.extend(std::env::var(name).ok().map(|value| (name.to_owned(), value)));
    }
    Config::load(Profile::Dev, &flags, environment).map_err(|problems| Failure::usage(problems.to_string()))
}
