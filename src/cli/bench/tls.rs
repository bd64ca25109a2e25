//! A certificate that the benchmark makes for a service of its own, and the files that name it to that service.

use std::fs;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use crate::cli::Failure;

/// The files, removed when dropped.
#[derive(Debug)]
pub(super) struct Files {
    folder: PathBuf,
    /// Whom callers trust: the certificate signs itself.
    pub(super) authority: String,
}

/// Whom the certificate names.
pub(super) const NAME: &str = "localhost";

impl Files {
    pub(super) fn make() -> Result<Self, Failure> {
        let failed = |error: &dyn std::fmt::Display| Failure::other(format!("no certificate: {error}"));
        let made = rcgen::generate_simple_self_signed([NAME.to_owned()]).map_err(|error| failed(&error))?;
        let folder = std::env::temp_dir().join(format!("hooklane-bench-{:016x}", rand::random::<u64>()));
        fs::DirBuilder::new().mode(0o700).create(&folder).map_err(|error| failed(&error))?;
        let files = Self { folder, authority: made.cert.pem() };
        fs::write(files.path("cert"), &files.authority).map_err(|error| failed(&error))?;
        fs::write(files.path("key"), made.signing_key.serialize_pem()).map_err(|error| failed(&error))?;
        Ok(files)
    }

    /// The settings that have a service use them.
    pub(super) fn settings(&self) -> [(&'static str, String); 2] {
        let text = |path: &Path| path.to_string_lossy().into_owned();
        [("HOOKLANE_TLS_CERT_FILE", text(&self.path("cert"))), ("HOOKLANE_TLS_KEY_FILE", text(&self.path("key")))]
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}
