//! What can go wrong between us and PostgreSQL, told apart by SQLSTATE, never by text.

use sqlx::error::DatabaseError;

use crate::domain::keyring::OpenError;

/// A statement that did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The database cannot be reached or is going away; nothing is known of a commit that was under way.
    #[error("the database cannot be reached: {0}")]
    Unavailable(#[source] sqlx::Error),
    /// A row was refused (SQLSTATE classes 22, 23, 54): the data's fault, so only its own row may fail.
    #[error("the database refused a row: {0}")]
    Data(#[source] sqlx::Error),
    /// The transaction lost against another one (40001, 40P01); again, it may win.
    #[error("the transaction must be tried again: {0}")]
    Conflict(#[source] sqlx::Error),
    /// Anything else: a fault of ours or of the installation.
    #[error("the database failed: {0}")]
    Internal(#[source] sqlx::Error),
    /// A value in the database that this version cannot read.
    #[error("the database holds {0}, which this version cannot read")]
    Unreadable(String),
    /// A secret in the database that the keys of the settings do not open.
    #[error("a secret in the database cannot be opened: {0}")]
    Sealed(#[source] OpenError),
    /// The operating system gave no random bytes.
    #[error("the operating system gave no random bytes: {0}")]
    Random(#[source] rand::rngs::SysError),
}

/// What a verb of the store answers.
pub type Result<T> = std::result::Result<T, Error>;

impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        match &error {
            sqlx::Error::Database(refusal) => match kind_of(refusal.as_ref()) {
                Kind::Data => Self::Data(error),
                Kind::Conflict => Self::Conflict(error),
                Kind::Unavailable => Self::Unavailable(error),
                Kind::Internal => Self::Internal(error),
            },
            sqlx::Error::Io(_)
            | sqlx::Error::Tls(_)
            | sqlx::Error::Protocol(_)
            | sqlx::Error::PoolTimedOut
            | sqlx::Error::PoolClosed
            | sqlx::Error::WorkerCrashed => Self::Unavailable(error),
            _ => Self::Internal(error),
        }
    }
}

enum Kind {
    Data,
    Conflict,
    Unavailable,
    Internal,
}

/// Source: PostgreSQL's appendix A, error codes.
fn kind_of(refusal: &dyn DatabaseError) -> Kind {
    let code = refusal.code().unwrap_or_default();
    match (code.get(..2).unwrap_or_default(), code.as_ref()) {
        (_, "40001" | "40P01") => Kind::Conflict,
        // A deleted pooled plan or a canceled statement is no fault of a row; 57P0x: the server goes away; 55000 is said of
        // a database that takes no connections.
        ("08" | "53" | "57" | "58", _) | (_, "25006" | "55000" | "55P03") => Kind::Unavailable,
        ("22" | "23" | "54", _) => Kind::Data,
        _ => Kind::Internal,
    }
}

impl Error {
    /// Whether the same call may well succeed a little later.
    pub const fn is_passing(&self) -> bool {
        matches!(self, Self::Unavailable(_) | Self::Conflict(_))
    }

    /// Whether there was no connection to be had, or it ended: the database is away, as everybody finds at once. One that
    /// answers, if only that a statement took too long, is not.
    pub fn is_absence(&self) -> bool {
        let Self::Unavailable(error) = self else { return false };
        let sqlx::Error::Database(refusal) = error else { return true };
        let code = refusal.code().unwrap_or_default();
        code.starts_with("08") || matches!(code.as_ref(), "53300" | "55000" | "57P01" | "57P02" | "57P03")
    }

    /// The constraint that a row violated, if one did.
    pub fn constraint(&self) -> Option<&str> {
        match self {
            Self::Data(sqlx::Error::Database(refusal)) => refusal.constraint(),
            _ => None,
        }
    }
}
