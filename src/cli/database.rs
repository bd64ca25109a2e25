//! The database that some commands work on by themselves, whether replicas run or not: where it is, and what it means when
//! it refuses something.

use std::fmt;
use std::path::PathBuf;

use super::Failure;
use super::serve::load;
use crate::config::{Config, Flags, Profile};
use crate::store::Error;
use crate::telemetry::log;

// Where it is. Not in the documentation, which would become that of the commands it is the only argument of.
#[derive(Clone, clap::Args)]
pub(super) struct Where {
    /// A TOML file of settings
    #[arg(long, value_name = "FILE", env = "HOOKLANE_CONFIG")]
    config: Option<PathBuf>,
    /// The primary, postgres://… [env: DATABASE_URL]
    #[arg(long, value_name = "URL")]
    database_url: Option<String>,
}

impl Where {
    /// Reads the settings, and logs by them from here on.
    pub(super) fn settings(self) -> Result<Config, Failure> {
        let flags = Flags { config: self.config, database_url: self.database_url, ..Flags::default() };
        let config = load(Profile::Migrate, &flags)?;
        log::start(&config.log);
        Ok(config)
    }
}

/// Without the URL, which may have a password in it.
impl fmt::Debug for Where {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Where").field("config", &self.config).finish_non_exhaustive()
    }
}

/// A statement that failed.
pub(super) fn failed(error: Error) -> Failure {
    if error.is_passing() { Failure::try_again(error.to_string()) } else { Failure::internal(error.to_string()) }
}
