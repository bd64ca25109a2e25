//! What the tests share: one PostgreSQL for the whole run, a fresh database for each test, and waiting with a deadline.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use hooklane::cli::postgres::{DataDir, Durability, Options, Postgres};
use hooklane::domain::address::EgressRules;
use hooklane::domain::keyring::Keyring;
use hooklane::store::{Config, Encryption, Limits, Retention, Store};
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tokio::sync::OnceCell;

/// Dies with this process: its supervisor watches a pipe that we hold.
static POSTGRES: OnceCell<Postgres> = OnceCell::const_new();
static DATABASES: AtomicU32 = AtomicU32::new(0);
const TEMPLATE: &str = "hooklane_template";

/// The master key under which the tests' secrets are.
pub(crate) const KEYS: &str = "tests:BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=";

/// The one PostgreSQL of this run.
pub(crate) async fn postgres() -> &'static Postgres {
    POSTGRES
        .get_or_init(|| async {
            let options = Options {
                data_dir: DataDir::Ephemeral,
                bin_dir: None,
                durability: Durability::Off,
                extra_settings: vec![("max_connections".to_owned(), "300".to_owned())],
            };
            let postgres = Postgres::start(options).await.expect("PostgreSQL starts");
            postgres.create_database(TEMPLATE).await.expect("the template is created");
            Store::migrate(&config(postgres.url(TEMPLATE))).await.expect("the template is migrated");
            postgres
        })
        .await
}

/// A database of this test's own, migrated.
pub(crate) async fn database() -> String {
    let postgres = postgres().await;
    let name = format!("test_{}", DATABASES.fetch_add(1, Ordering::Relaxed));
    // Copies of one template take turns: it may have no other session.
    let statement = format!("create database {name} template {TEMPLATE}");
    eventually("the database is copied", || async {
        let mut connection = PgConnection::connect(&postgres.url("postgres")).await.ok()?;
        sqlx::query(AssertSqlSafe(statement.clone())).execute(&mut connection).await.ok()
    })
    .await;
    postgres.url(&name)
}

/// A store's settings for `url`.
pub(crate) fn config(url: String) -> Config {
    Config {
        database_url: url,
        connections_max: 12,
        notify: true,
        replica: "test".to_owned(),
        limits: Limits::default(),
        retention: Retention::default(),
        encryption: Encryption { keys: Some(Keyring::parse(KEYS).expect("keys")), plaintext: false },
        event_types_max: 100,
    }
}

/// A store over a database of this test's own.
pub(crate) async fn store() -> Arc<Store> {
    Store::open(&config(database().await)).await.expect("the store opens")
}

/// A connection beside the store's, with its schema first.
pub(crate) async fn connection(url: &str) -> PgConnection {
    let mut connection = PgConnection::connect(url).await.expect("connects");
    sqlx::query("set search_path = hooklane, pg_catalog").execute(&mut connection).await.expect("sets");
    connection
}

/// Rules that let receivers of these tests be reached.
pub(crate) fn loopback_rules() -> EgressRules {
    EgressRules {
        allow_http: true,
        allow_cidrs: vec!["127.0.0.0/8".parse().expect("a range")],
        ..EgressRules::default()
    }
}

/// How long a condition may take to come true: far more than it needs, so that a slow machine fails nothing.
const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until `look` gives something.
pub(crate) async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, mut look: impl FnMut() -> F) -> T {
    let began = Instant::now();
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(began.elapsed() < PATIENCE, "{what} did not come true");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
