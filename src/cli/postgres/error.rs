//! What can go wrong with a server of one's own, in words for the person at the terminal.

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;

/// Why there is no server.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No binaries were found.
    #[error(
        "PostgreSQL is not installed (looked in {looked_in}); install it with `{install}`, \
         or name the directory of its binaries in HOOKLANE_POSTGRES_BIN"
    )]
    Missing {
        /// Where they were looked for.
        looked_in: String,
        /// The one command that installs them.
        install: &'static str,
    },
    /// Only unsuitable binaries were found.
    #[error(
        "{found} cannot be used: {wanted}; install one with `{install}`, or name its directory in HOOKLANE_POSTGRES_BIN"
    )]
    Version {
        /// Versions and their directories.
        found: String,
        /// What would do, and why.
        wanted: String,
        /// The one command that installs a current one.
        install: &'static str,
    },
    /// Another process uses the directory.
    #[error("{} is in use by another hooklane{holder}; stop that one or choose another data directory", dir.display())]
    InUse {
        /// The data directory.
        dir: PathBuf,
        /// ` (process 42)`, if known.
        holder: String,
    },
    /// The server's user cannot get to the directory.
    #[error(
        "PostgreSQL does not run as root, and its user {user} cannot search {}, which {} is in; \
         choose a data directory elsewhere (default: /var/lib/hooklane/dev)",
        closed.display(), dir.display()
    )]
    Unreachable {
        /// The data directory.
        dir: PathBuf,
        /// The directory on the way to it that is closed.
        closed: PathBuf,
        /// The user the server would run as.
        user: String,
    },
    /// The directory was made by another user.
    #[error("{} belongs to another user (uid {owner}); run as that user or choose another data directory", dir.display())]
    Foreign {
        /// The cluster's directory.
        dir: PathBuf,
        /// Its owner.
        owner: u32,
    },
    /// Run as root where no other user can be found.
    #[error(
        "PostgreSQL does not run as root, and /etc/passwd has no user {0} to run it as; run hooklane as an ordinary user"
    )]
    NoAccount(String),
    /// No default for the data directory.
    #[error("neither HOME nor XDG_DATA_HOME is set; name a data directory")]
    NoHome,
    /// `initdb` failed or the server ended.
    #[error("{program} ended with {status}; its log ends:\n{log}")]
    Ended {
        /// Which program.
        program: &'static str,
        /// How it ended.
        status: ExitStatus,
        /// The end of what it printed.
        log: String,
    },
    /// The server runs but takes no connections.
    #[error("PostgreSQL took no connection within {seconds} s ({refused}); its log ends:\n{log}")]
    NotReady {
        /// How long was waited.
        seconds: u64,
        /// The last refusal.
        refused: sqlx::Error,
        /// The end of what it printed.
        log: String,
    },
    /// The server runs but its pid file cannot be read.
    #[error("{} does not name the server's process", file.display())]
    NoPid {
        /// The file.
        file: PathBuf,
    },
    /// A process outlived every signal.
    #[error("process {pid} did not end within {seconds} s")]
    StillRunning {
        /// Which one.
        pid: u32,
        /// How long was waited.
        seconds: u64,
    },
    /// A step on a file or of starting a program failed.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// A verb.
        action: &'static str,
        /// Its object.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// A statement failed.
    #[error(transparent)]
    Sql(#[from] sqlx::Error),
}

impl Error {
    pub(super) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { action, path: path.to_owned(), source }
    }
}
