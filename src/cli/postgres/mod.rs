//! A PostgreSQL server of one's own, for `hooklane dev`, `hooklane bench` and the tests.
//!
//! Nothing has to be set up: the installed binaries are found, a cluster is made, and a server listens on a Unix socket
//! in a directory that only its user can enter. It ends with this process, however this process ends.
//! `create_database` is the one SQL statement outside `store`, which cannot work before its database exists.

mod account;
mod binaries;
mod error;
mod home;
mod leftover;
mod settings;
mod supervisor;
#[cfg(test)]
mod tests;

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _, PgConnection};
use url::form_urlencoded;

use account::Account;
use binaries::Binaries;
pub use error::Error;
use home::Home;
use supervisor::Supervised;

/// The superuser of every cluster made here; the socket's directory is what keeps others out, so it has no password.
pub const USER: &str = "hooklane";

/// Part of the socket's name only: the server listens on no network address.
const PORT: u16 = 5432;

/// Recovery after a crash replays at most `max_wal_size` of log: tens of seconds on a slow disk.
const READY_DEADLINE: Duration = Duration::from_secs(90);

/// How often something is looked at that gives no sign of its own.
const POLL: Duration = Duration::from_millis(10);

/// What server to start.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where its data lives.
    pub data_dir: DataDir,
    /// The directory of `postgres` and `initdb`. None: `HOOKLANE_POSTGRES_BIN`, else looked for in the usual places.
    pub bin_dir: Option<PathBuf>,
    /// What an acknowledged commit survives.
    pub durability: Durability,
    /// Server settings by name that override this module's.
    pub extra_settings: Vec<(String, String)>,
}

/// Where a server's data lives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DataDir {
    /// In this directory, made if missing and kept. One process at a time uses it.
    Persistent(PathBuf),
    /// In a fresh directory below the temporary one, removed when the server stops.
    Ephemeral,
}

/// What an acknowledged commit survives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// Anything but the loss of the disk, as in production.
    Full,
    /// The end of any process, SIGKILL of the server included, but not a power failure: for tests.
    Off,
}

/// How [`Postgres::restart`] ends the running server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RestartMode {
    /// SIGINT: connections are closed, a checkpoint is written.
    Fast,
    /// SIGQUIT: connections are dropped, the next start recovers from the log.
    Immediate,
    /// SIGKILL to the postmaster: the crash.
    Kill,
}

/// A running server. Dropping it stops the server in the background; [`Postgres::stop`] waits for that.
#[derive(Debug)]
pub struct Postgres {
    // First, so that the pipe closes before the lock on the directory is let go.
    server: Supervised,
    postmaster_pid: u32,
    binaries: Binaries,
    account: Option<Account>,
    durability: Durability,
    extra_settings: Vec<(String, String)>,
    home: Home,
}

/// The directory of `hooklane dev` when none is named: `/var/lib/hooklane/dev` for root, whose home no server can reach,
/// else `$XDG_DATA_HOME/hooklane/dev`, by default `~/.local/share/hooklane/dev`.
pub fn default_data_dir() -> Result<PathBuf, Error> {
    if account::we_are_root()? {
        return Ok(PathBuf::from("/var/lib/hooklane/dev"));
    }
    // The XDG specification: a relative path is to be ignored.
    let named = |variable| env::var_os(variable).map(PathBuf::from).filter(|path| path.is_absolute());
    let base = named("XDG_DATA_HOME").or_else(|| Some(named("HOME")?.join(".local/share")));
    base.map(|base| base.join("hooklane/dev")).ok_or(Error::NoHome)
}

impl Postgres {
    /// Makes the cluster if there is none (about 1 s), starts its server and waits until it takes connections.
    ///
    /// A server that an earlier run left over the same directory is stopped first; one that another living process holds
    /// is [`Error::InUse`].
    pub async fn start(options: Options) -> Result<Self, Error> {
        let existing = match &options.data_dir {
            DataDir::Persistent(dir) => home::existing(dir),
            DataDir::Ephemeral => None,
        };
        let binaries = binaries::find(options.bin_dir.as_deref(), existing.as_ref().and_then(|it| it.major))?;
        let account = account::for_server(existing.as_ref())?;
        let home = match &options.data_dir {
            DataDir::Persistent(dir) => Home::persistent(dir, account.as_ref())?,
            DataDir::Ephemeral => Home::ephemeral(account.as_ref())?,
        };
        let parts = Parts {
            binaries: &binaries,
            account: account.as_ref(),
            durability: options.durability,
            extra_settings: &options.extra_settings,
            home: &home,
        };
        match parts.make_and_launch().await {
            Ok((server, postmaster_pid)) => Ok(Self {
                server,
                postmaster_pid,
                binaries,
                account,
                durability: options.durability,
                extra_settings: options.extra_settings,
                home,
            }),
            Err(error) => {
                home.discard();
                Err(error)
            }
        }
    }

    /// The URL of a database of this server, for sqlx and for libpq.
    pub fn url(&self, database: &str) -> String {
        url(&self.home.sockets, database)
    }

    /// The process id of the postmaster; another one after [`Postgres::restart`].
    pub fn postmaster_pid(&self) -> u32 {
        self.postmaster_pid
    }

    /// The directory of the Unix socket: `psql -h` takes it.
    pub fn socket_dir(&self) -> &Path {
        &self.home.sockets
    }

    /// The cluster's own directory (`PGDATA`).
    pub fn data_dir(&self) -> &Path {
        &self.home.data
    }

    /// What the server and `initdb` printed.
    pub fn log_file(&self) -> &Path {
        &self.home.log
    }

    /// The directory of the server's binaries, for its other tools.
    pub fn bin_dir(&self) -> &Path {
        &self.binaries.dir
    }

    /// Creates the database unless it exists.
    pub async fn create_database(&self, name: &str) -> Result<(), Error> {
        let mut connection = connect(&self.home.sockets, "postgres").await?;
        let exists: bool = sqlx::query_scalar("select exists (select from pg_database where datname = $1)")
            .bind(name)
            .fetch_one(&mut connection)
            .await?;
        if !exists {
            let statement = format!("create database \"{}\"", name.replace('"', "\"\""));
            match sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut connection).await {
                Ok(_) => {}
                // Another caller made it meanwhile: duplicate_database, or its unique_violation underneath.
                Err(sqlx::Error::Database(error)) if matches!(error.code().as_deref(), Some("42P04" | "23505")) => {}
                Err(error) => return Err(error.into()),
            }
        }
        connection.close().await?;
        Ok(())
    }

    /// Ends the server as `mode` says and starts it again over the same data; URLs stay valid.
    pub async fn restart(&mut self, mode: RestartMode) -> Result<(), Error> {
        let signal = match mode {
            RestartMode::Fast => "INT",
            RestartMode::Immediate => "QUIT",
            RestartMode::Kill => "KILL",
        };
        supervisor::send_signal(self.postmaster_pid, signal);
        self.server.wait_for_exit().await?;
        let parts = Parts {
            binaries: &self.binaries,
            account: self.account.as_ref(),
            durability: self.durability,
            extra_settings: &self.extra_settings,
            home: &self.home,
        };
        (self.server, self.postmaster_pid) = parts.launch().await?;
        Ok(())
    }

    /// Stops the server (fast, then harder) and returns when it has ended and what was ephemeral is gone.
    pub async fn stop(self) -> Result<(), Error> {
        self.server.stop().await
    }
}

/// What a start and a restart have in common.
struct Parts<'a> {
    binaries: &'a Binaries,
    account: Option<&'a Account>,
    durability: Durability,
    extra_settings: &'a [(String, String)],
    home: &'a Home,
}

impl Parts<'_> {
    async fn make_and_launch(&self) -> Result<(Supervised, u32), Error> {
        if self.home.data.exists() {
            leftover::end(&self.home.data).await?;
        } else {
            self.make_cluster().await?;
        }
        self.launch().await
    }

    /// Runs `initdb` beside the final place and renames: an interrupted one leaves no half of a cluster behind.
    async fn make_cluster(&self) -> Result<(), Error> {
        let unfinished = self.home.data.with_extension("new");
        if unfinished.exists() {
            fs::remove_dir_all(&unfinished).map_err(Error::io("remove", &unfinished))?;
        }
        let mut arguments = vec!["-D".into(), unfinished.clone().into_os_string()];
        // The C locale is the same everywhere and sorts by bytes, as Rust does.
        arguments.extend(["-U", USER, "-E", "UTF8", "--locale=C", "--auth=trust", "--no-instructions"].map(Into::into));
        if self.durability == Durability::Off {
            arguments.push("--no-sync".into());
        }
        let mut initdb = Supervised::spawn(&self.binaries.dir.join("initdb"), &arguments, self.home, self.account)?;
        let status = initdb.wait_for_exit().await?;
        if !status.success() {
            return Err(Error::Ended { program: "initdb", status, log: initdb.log_tail() });
        }
        fs::rename(&unfinished, &self.home.data).map_err(Error::io("rename", &unfinished))
    }

    async fn launch(&self) -> Result<(Supervised, u32), Error> {
        let deadline = Instant::now() + READY_DEADLINE;
        let mut arguments = vec!["-D".into(), self.home.data.clone().into_os_string()];
        arguments.extend(settings::arguments(self.durability, &self.home.sockets, self.extra_settings));
        loop {
            let mut server =
                Supervised::spawn(&self.binaries.dir.join("postgres"), &arguments, self.home, self.account)?;
            match self.ready(&mut server, deadline).await {
                Ok(pid) => return Ok((server, pid)),
                // A crashed postmaster's children hold the shared memory until they notice; the server refuses to start
                // meanwhile and leaves the pid file of the dead one in place.
                Err(Error::Ended { .. })
                    if leftover::pid_file(&self.home.data).exists() && Instant::now() < deadline =>
                {
                    tokio::time::sleep(POLL).await;
                }
                Err(error) => {
                    // The first error is the one that explains.
                    let _ = server.stop().await;
                    return Err(error);
                }
            }
        }
    }

    /// The postmaster's pid once a connection succeeds.
    async fn ready(&self, server: &mut Supervised, deadline: Instant) -> Result<u32, Error> {
        loop {
            if let Some(status) = server.exit_status()? {
                return Err(Error::Ended { program: "postgres", status, log: server.log_tail() });
            }
            let refused = match connect(&self.home.sockets, "postgres").await {
                Ok(connection) => {
                    connection.close().await?;
                    let file = leftover::pid_file(&self.home.data);
                    return leftover::pid(&self.home.data).ok_or(Error::NoPid { file });
                }
                Err(error) => error,
            };
            if Instant::now() >= deadline {
                return Err(Error::NotReady { seconds: READY_DEADLINE.as_secs(), refused, log: server.log_tail() });
            }
            tokio::time::sleep(POLL).await;
        }
    }
}

async fn connect(sockets: &Path, database: &str) -> Result<PgConnection, sqlx::Error> {
    let options: PgConnectOptions = url(sockets, database).parse()?;
    options.connect().await
}

/// Port and `sslmode` are named because `PGPORT` and `PGSSLMODE` of the environment would fill them in.
fn url(sockets: &Path, database: &str) -> String {
    // Form encoding writes a space as `+`, which libpq takes literally; `%20` both understand.
    let encode = |text: &str| form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>().replace('+', "%20");
    let (database, sockets) = (encode(database), encode(&sockets.to_string_lossy()));
    format!("postgres://{USER}@localhost:{PORT}/{database}?host={sockets}&sslmode=disable")
}
