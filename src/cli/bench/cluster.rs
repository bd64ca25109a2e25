//! The benchmark's PostgreSQL: a fresh cluster with production's durability, a fresh database for each scenario, and
//! what the server itself says its statements cost.

use std::time::Duration;

use serde::Serialize;
use sqlx::{AssertSqlSafe, ConnectOptions as _, PgConnection};

use crate::cli::Failure;
use crate::cli::postgres::{DataDir, Durability, Options, Postgres, RestartMode};

/// Statements of a report.
const STATEMENTS_MAX: i64 = 12;

const STATEMENTS: &str = "
select left(regexp_replace(btrim(query), '\\s+', ' ', 'g'), 70), calls, rows, total_exec_time, mean_exec_time
from pg_stat_statements
where dbid = (select oid from pg_database where datname = current_database())
order by total_exec_time desc limit $1";

/// The server.
#[derive(Debug)]
pub(super) struct Cluster {
    postgres: Postgres,
    /// Whether the server counts statements: the extension is not installed everywhere.
    counts_statements: bool,
}

/// What one statement cost since the counts began.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Statement {
    /// Our name of it, or how it begins.
    pub(super) name: String,
    pub(super) calls: i64,
    pub(super) rows: i64,
    pub(super) total_ms: f64,
    pub(super) mean_ms: f64,
}

impl Cluster {
    /// Starts it, fsync and synchronous_commit on.
    pub(super) async fn start() -> Result<Self, Failure> {
        let options = Options {
            data_dir: DataDir::Ephemeral,
            bin_dir: None,
            durability: Durability::Full,
            extra_settings: Vec::new(),
        };
        let postgres = Postgres::start(options).await.map_err(|error| Failure::unavailable(error.to_string()))?;
        let mut cluster = Self { postgres, counts_statements: false };
        cluster.count_statements().await?;
        Ok(cluster)
    }

    /// The library must be loaded at start; whether it is installed only a running server tells.
    async fn count_statements(&mut self) -> Result<(), Failure> {
        let mut connection = self.connect("postgres").await?;
        let is_installed: bool =
            sqlx::query_scalar("select exists (select from pg_available_extensions where name = 'pg_stat_statements')")
                .fetch_one(&mut connection)
                .await
                .map_err(sql_failed)?;
        if is_installed {
            execute(&mut connection, "alter system set shared_preload_libraries = 'pg_stat_statements'").await?;
            drop(connection);
            self.restart(RestartMode::Fast).await?;
            self.counts_statements = true;
        }
        Ok(())
    }

    /// A fresh database; answers its URL.
    pub(super) async fn create_database(&self, name: &str) -> Result<String, Failure> {
        self.postgres.create_database(name).await.map_err(|error| Failure::other(error.to_string()))?;
        if self.counts_statements {
            let mut connection = self.connect(name).await?;
            execute(&mut connection, "create extension if not exists pg_stat_statements").await?;
        }
        Ok(self.postgres.url(name))
    }

    /// Ends a scenario: what it wrote is no longer vacuumed or checkpointed beside the next one.
    pub(super) async fn drop_database(&self, name: &str) -> Result<(), Failure> {
        let mut connection = self.connect("postgres").await?;
        execute(&mut connection, &format!("drop database \"{name}\" with (force)")).await?;
        execute(&mut connection, "checkpoint").await
    }

    /// A connection of the benchmark's own.
    pub(super) async fn connect(&self, database: &str) -> Result<PgConnection, Failure> {
        let url: sqlx::postgres::PgConnectOptions = self.postgres.url(database).parse().map_err(sql_failed)?;
        url.application_name("bench")
            .log_statements(tracing::log::LevelFilter::Trace)
            .connect()
            .await
            .map_err(sql_failed)
    }

    pub(super) async fn restart(&mut self, mode: RestartMode) -> Result<(), Failure> {
        self.postgres.restart(mode).await.map_err(|error| Failure::other(error.to_string()))
    }

    pub(super) fn postmaster_pid(&self) -> u32 {
        self.postgres.postmaster_pid()
    }

    /// The server's version, as it says it.
    pub(super) async fn version(&self) -> Result<String, Failure> {
        let mut connection = self.connect("postgres").await?;
        sqlx::query_scalar("show server_version").fetch_one(&mut connection).await.map_err(sql_failed)
    }

    /// A measurement begins: dirty pages are on disk, statements counted anew.
    pub(super) async fn begin_measurement(&self, database: &str) -> Result<(), Failure> {
        let mut connection = self.connect(database).await?;
        execute(&mut connection, "checkpoint").await?;
        if self.counts_statements {
            execute(&mut connection, "select pg_stat_statements_reset()").await?;
        }
        Ok(())
    }

    /// The costliest statements since the measurement began; none where the server does not count them.
    pub(super) async fn statements(&self, database: &str) -> Result<Vec<Statement>, Failure> {
        if !self.counts_statements {
            return Ok(Vec::new());
        }
        let mut connection = self.connect(database).await?;
        let rows: Vec<(String, i64, i64, f64, f64)> =
            sqlx::query_as(STATEMENTS).bind(STATEMENTS_MAX).fetch_all(&mut connection).await.map_err(sql_failed)?;
        let named = |(text, calls, rows, total_ms, mean_ms): (String, _, _, _, _)| Statement {
            name: name_of(&text).map_or(text, str::to_owned),
            calls,
            rows,
            total_ms,
            mean_ms,
        };
        Ok(rows.into_iter().map(named).collect())
    }

    /// Stops it; what it wrote is gone.
    pub(super) async fn stop(self) -> Result<(), Failure> {
        self.postgres.stop().await.map_err(|error| Failure::other(error.to_string()))
    }
}

/// The store's verbs, by how their statements begin. One that is not known here is reported by its text.
fn name_of(text: &str) -> Option<&'static str> {
    let verbs = [
        ("with lanes as", "claim"),
        ("with offered as", "publish"),
        ("with settled as", "complete"),
        ("with won as", "succeed"),
        ("select id, tenant, event_type, payload", "payloads"),
        ("with recursive e as", "sweep"),
        ("update outstanding o set lease_until", "renew"),
        ("update outstanding o set state = case", "release"),
        ("select endpoint_id, count(*) from outstanding", "count backlog"),
    ];
    verbs.iter().find(|(start, _)| text.starts_with(start)).map(|(_, name)| *name)
}

/// The mean time of one verb, in milliseconds.
pub(super) fn mean_ms(statements: &[Statement], verb: &str) -> Option<f64> {
    statements.iter().find(|statement| statement.name == verb).map(|statement| statement.mean_ms)
}

/// Runs a statement without results.
pub(super) async fn execute(connection: &mut PgConnection, statement: &str) -> Result<(), Failure> {
    // Statements are the benchmark's own, with names and numbers it made.
    sqlx::raw_sql(AssertSqlSafe(statement.to_owned())).execute(connection).await.map(drop).map_err(sql_failed)
}

/// Polls until a query that counts something answers 0.
pub(super) async fn wait_for_none(
    connection: &mut PgConnection,
    count: &'static str,
    patience: Duration,
) -> Result<i64, Failure> {
    let deadline = std::time::Instant::now() + patience;
    loop {
        let left: i64 = sqlx::query_scalar(count).fetch_one(&mut *connection).await.map_err(sql_failed)?;
        if left == 0 || std::time::Instant::now() >= deadline {
            return Ok(left);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

pub(super) fn sql_failed(error: sqlx::Error) -> Failure {
    Failure::other(format!("the benchmark's own SQL failed: {error}"))
}
