//! Where a server lives on disk: its directories, who may enter them, and the lock that keeps two runs apart.
//!
//! ```text
//! DIR/lock                  held by the process that uses DIR
//! DIR/postgres/             0700, the server's user's: the one guard of the socket
//! DIR/postgres/data/        the cluster (PGDATA)
//! DIR/postgres/run/         the socket, unless its path would be too long
//! DIR/postgres/postgres.log
//! ```

use std::env;
use std::fs::{self, DirBuilder, File, Metadata, Permissions, TryLockError};
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process;

use super::account::Account;
use super::{Error, PORT};

/// `sun_path` holds 104 bytes on macOS, 108 on Linux, its final NUL included.
const SOCKET_PATH_BYTES_MAX: usize = 100;

/// A log longer than this is put aside when the next server starts; one older log is kept.
const LOG_BYTES_MAX: u64 = 16 << 20;

/// The directories of one server.
#[derive(Debug)]
pub(super) struct Home {
    pub(super) dir: PathBuf,
    pub(super) data: PathBuf,
    pub(super) sockets: PathBuf,
    pub(super) log: PathBuf,
    /// What is to be removed when the server has ended.
    pub(super) scratch: Option<PathBuf>,
    /// Locked as long as it is open.
    _lock: Option<File>,
}

/// What an earlier run left in a data directory.
#[derive(Debug)]
pub(super) struct Existing {
    pub(super) dir: PathBuf,
    pub(super) owner: u32,
    /// The version that made the cluster; None when there is none yet.
    pub(super) major: Option<u32>,
}

/// Looks at a data directory without changing it.
pub(super) fn existing(dir: &Path) -> Option<Existing> {
    let dir = dir.join("postgres");
    let owner = fs::metadata(&dir).ok()?.uid();
    let major = fs::read_to_string(dir.join("data/PG_VERSION")).ok().and_then(|text| text.trim().parse().ok());
    Some(Existing { dir, owner, major })
}

impl Home {
    /// In `dir`, made if missing and locked; the server gets a directory of its own in it.
    pub(super) fn persistent(dir: &Path, account: Option<&Account>) -> Result<Self, Error> {
        make_missing(dir)?;
        let dir = fs::canonicalize(dir).map_err(Error::io("find", dir))?;
        if let Some((account, closed)) = account.and_then(|account| Some((account, closed_to(account, &dir)?))) {
            return Err(Error::Unreachable { dir, closed, user: account.name.clone() });
        }
        let lock = lock(&dir)?;
        let home = Self::lay_out(dir.join("postgres"), account, None)?;
        Ok(Self { _lock: Some(lock), ..home })
    }

    /// In a fresh directory that goes when the server does.
    pub(super) fn ephemeral(account: Option<&Account>) -> Result<Self, Error> {
        let dir = fresh_dir(account)?;
        Self::lay_out(dir.clone(), account, Some(dir.clone())).inspect_err(|_| remove(&dir))
    }

    /// Removes what is ephemeral, after a failed start.
    pub(super) fn discard(&self) {
        if let Some(scratch) = &self.scratch {
            remove(scratch);
        }
    }

    fn lay_out(dir: PathBuf, account: Option<&Account>, scratch: Option<PathBuf>) -> Result<Self, Error> {
        own_dir(&dir, account)?;
        let (mut sockets, mut scratch) = (dir.join("run"), scratch);
        if socket_path_bytes(&sockets) > SOCKET_PATH_BYTES_MAX {
            sockets = fresh_dir(account)?;
            scratch = Some(sockets.clone());
        }
        own_dir(&sockets, account)?;
        let log = dir.join("postgres.log");
        if fs::metadata(&log).is_ok_and(|it| it.len() > LOG_BYTES_MAX) {
            fs::rename(&log, log.with_extension("log.old")).map_err(Error::io("rename", &log))?;
        }
        Ok(Self { data: dir.join("data"), dir, sockets, log, scratch, _lock: None })
    }
}

fn socket_path_bytes(dir: &Path) -> usize {
    dir.join(format!(".s.PGSQL.{PORT}")).as_os_str().as_bytes().len()
}

/// Makes `dir` and its missing ancestors so that the server's user can pass through them, whatever our umask.
fn make_missing(dir: &Path) -> Result<(), Error> {
    let missing: Vec<&Path> =
        dir.ancestors().filter(|it| !it.as_os_str().is_empty()).take_while(|it| !it.exists()).collect();
    for dir in missing.into_iter().rev() {
        fs::create_dir(dir).map_err(Error::io("create", dir))?;
        fs::set_permissions(dir, Permissions::from_mode(0o755)).map_err(Error::io("open", dir))?;
    }
    Ok(())
}

/// The first directory on the way to `dir`, or `dir` itself, that `account` cannot search.
fn closed_to(account: &Account, dir: &Path) -> Option<PathBuf> {
    let ancestors: Vec<&Path> = dir.ancestors().collect();
    let open = |dir: &Path| fs::metadata(dir).is_ok_and(|it| permitted(account, &it) & 0o1 != 0);
    ancestors.into_iter().rev().find(|dir| !open(dir)).map(Path::to_owned)
}

/// The three bits of the mode that apply to `account`.
fn permitted(account: &Account, metadata: &Metadata) -> u32 {
    let shift = match () {
        () if metadata.uid() == account.uid => 6,
        () if metadata.gid() == account.gid => 3,
        () => 0,
    };
    metadata.mode() >> shift & 0o7
}

/// Locked by the kernel for as long as this process lives: a file left behind by a dead one locks nothing.
fn lock(dir: &Path) -> Result<File, Error> {
    let path = dir.join("lock");
    let mut file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(Error::io("open", &path))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut text = String::new();
            // Who it is only helps the message.
            let holder = match file.read_to_string(&mut text) {
                Ok(_) if !text.trim().is_empty() => format!(" (process {})", text.trim()),
                _ => String::new(),
            };
            return Err(Error::InUse { dir: dir.to_owned(), holder });
        }
        Err(TryLockError::Error(source)) => return Err(Error::io("lock", &path)(source)),
    }
    file.set_len(0).and_then(|()| write!(file, "{}", process::id())).map_err(Error::io("write", &path))?;
    Ok(file)
}

/// Makes `dir` unless it exists, for the server's user alone.
fn own_dir(dir: &Path, account: Option<&Account>) -> Result<(), Error> {
    match DirBuilder::new().mode(0o700).create(dir) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(Error::io("create", dir)(error)),
        _ => {}
    }
    fs::set_permissions(dir, Permissions::from_mode(0o700)).map_err(Error::io("close", dir))?;
    if let Some(account) = account {
        chown(dir, Some(account.uid), Some(account.gid)).map_err(Error::io("hand over", dir))?;
    }
    Ok(())
}

/// A directory that nobody had before, in a place with room for a socket's path below it.
fn fresh_dir(account: Option<&Account>) -> Result<PathBuf, Error> {
    let suits = |base: &Path| {
        let writable = |account| fs::metadata(base).is_ok_and(|it| permitted(account, &it) & 0o2 != 0);
        base.is_absolute()
            && socket_path_bytes(&base.join("hooklane-00000000/run")) <= SOCKET_PATH_BYTES_MAX
            && account.is_none_or(|account| writable(account) && closed_to(account, base).is_none())
    };
    let base = Some(env::temp_dir()).filter(|base| suits(base)).unwrap_or_else(|| PathBuf::from("/tmp"));
    loop {
        let dir = base.join(format!("hooklane-{:08x}", rand::random::<u32>()));
        match DirBuilder::new().mode(0o700).create(&dir) {
            Ok(()) => return Ok(dir),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            Err(error) => return Err(Error::io("create", &dir)(error)),
        }
    }
}

/// Best effort, on the way out with an error that matters more.
fn remove(dir: &Path) {
    let _ = fs::remove_dir_all(dir);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_closed_directory_on_the_way_is_named() {
        let root = tempfile::tempdir().unwrap();
        fs::set_permissions(root.path(), Permissions::from_mode(0o755)).unwrap();
        let (closed, inner) = (root.path().join("closed"), root.path().join("closed/inner"));
        make_missing(&inner).unwrap();
        let stranger = Account { name: "stranger".into(), uid: 4_000_000, gid: 4_000_000 };
        assert_eq!(closed_to(&stranger, &inner), None);
        fs::set_permissions(&closed, Permissions::from_mode(0o750)).unwrap();
        assert_eq!(closed_to(&stranger, &inner), Some(closed.clone()));
        let gid = fs::metadata(&closed).unwrap().gid();
        assert_eq!(closed_to(&Account { gid, ..stranger }, &inner), None);
    }

    #[test]
    fn a_second_user_of_a_directory_is_told_who_has_it() {
        let root = tempfile::tempdir().unwrap();
        let held = lock(root.path()).unwrap();
        let error = lock(root.path()).unwrap_err().to_string();
        assert!(error.contains(&format!("process {}", process::id())), "{error}");
        drop(held);
        lock(root.path()).unwrap();
    }
}
