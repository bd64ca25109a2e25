//! Finds the installed PostgreSQL: a directory that holds `postgres` and `initdb` of a version that will do.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Error, account};

/// Partition DETACH CONCURRENTLY, which the store relies on, came with 14.
const OLDEST: u32 = 14;

/// The directory of a server's binaries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Binaries {
    pub(super) dir: PathBuf,
    pub(super) major: u32,
}

/// The first suitable one among `configured` (else `HOOKLANE_POSTGRES_BIN`) alone, or without them the usual places.
/// A cluster can be served by its own major version only: `cluster` names it.
pub(super) fn find(configured: Option<&Path>, cluster: Option<u32>) -> Result<Binaries, Error> {
    let configured = configured
        .map(Path::to_owned)
        .or_else(|| env::var_os("HOOKLANE_POSTGRES_BIN").filter(|value| !value.is_empty()).map(PathBuf::from));
    let (candidates, looked_in) = match configured {
        Some(dir) => (vec![dir.clone()], dir.display().to_string()),
        None => (usual_places(), "PATH, /usr/lib/postgresql, /usr/pgsql-*, Homebrew".to_owned()),
    };
    choose(candidates, cluster, looked_in)
}

fn choose(candidates: Vec<PathBuf>, cluster: Option<u32>, looked_in: String) -> Result<Binaries, Error> {
    let mut unsuitable = Vec::new();
    for binaries in candidates.into_iter().filter_map(probe) {
        if binaries.major >= OLDEST && cluster.is_none_or(|major| major == binaries.major) {
            return Ok(binaries);
        }
        let words = format!("PostgreSQL {} in {}", binaries.major, binaries.dir.display());
        if !unsuitable.contains(&words) {
            unsuitable.push(words);
        }
    }
    let install = install_command();
    if unsuitable.is_empty() {
        return Err(Error::Missing { looked_in, install });
    }
    let wanted = match cluster {
        Some(major) => format!("the data directory was made by PostgreSQL {major} and needs that version"),
        None => format!("Hooklane needs version {OLDEST} or newer"),
    };
    Err(Error::Version { found: unsuitable.join(", "), wanted, install })
}

/// What is in `dir`, if it is a server. A link such as Debian's or Homebrew's is followed to where its siblings are.
fn probe(dir: PathBuf) -> Option<Binaries> {
    let server = fs::canonicalize(dir.join("postgres")).ok()?;
    let dir = server.parent()?.to_owned();
    if !dir.join("initdb").is_file() {
        return None;
    }
    let output = Command::new(&server).arg("--version").output().ok()?;
    let major = parse_major(&String::from_utf8_lossy(&output.stdout))?;
    Some(Binaries { dir, major })
}

/// `postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)` is 15, `… 19beta1` is 19.
fn parse_major(version: &str) -> Option<u32> {
    let number = version.split_once("(PostgreSQL) ")?.1;
    let digits = number.find(|character: char| !character.is_ascii_digit()).unwrap_or(number.len());
    number[..digits].parse().ok()
}

fn usual_places() -> Vec<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let mut places: Vec<PathBuf> = env::split_paths(&path).filter(|dir| dir.is_absolute()).collect();
    for (parent, prefix) in [
        ("/usr/lib/postgresql", ""),
        ("/usr", "pgsql-"),
        ("/opt/homebrew/opt", "postgresql@"),
        ("/usr/local/opt", "postgresql@"),
        ("/home/linuxbrew/.linuxbrew/opt", "postgresql@"),
    ] {
        places.extend(newest_first(Path::new(parent), prefix));
    }
    places
}

/// The `bin` of each directory below `parent` whose name is `prefix` and a version.
fn newest_first(parent: &Path, prefix: &str) -> Vec<PathBuf> {
    let version = |name: &str| name.strip_prefix(prefix)?.parse::<u32>().ok();
    let entries = fs::read_dir(parent).into_iter().flatten().flatten();
    let mut found: Vec<(u32, PathBuf)> =
        entries.filter_map(|entry| Some((version(entry.file_name().to_str()?)?, entry.path().join("bin")))).collect();
    found.sort_by_key(|(major, _)| std::cmp::Reverse(*major));
    found.into_iter().map(|(_, dir)| dir).collect()
}

fn install_command() -> &'static str {
    let root = account::we_are_root().unwrap_or(false);
    let has = |manager| Path::new("/usr/bin").join(manager).exists();
    match () {
        () if cfg!(target_os = "macos") => "brew install postgresql@17",
        () if has("dnf") && root => "dnf install -y postgresql-server",
        () if has("dnf") => "sudo dnf install -y postgresql-server",
        () if root => "apt-get install -y postgresql",
        () => "sudo apt-get install -y postgresql",
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    /// A directory with a `postgres` that prints `version`, and an `initdb`.
    fn fake(root: &Path, name: &str, version: &str) -> PathBuf {
        let dir = root.join(name).join("bin");
        fs::create_dir_all(&dir).unwrap();
        for (program, text) in
            [("postgres", format!("#!/bin/sh\necho 'postgres (PostgreSQL) {version}'\n")), ("initdb", String::new())]
        {
            fs::write(dir.join(program), text).unwrap();
            fs::set_permissions(dir.join(program), fs::Permissions::from_mode(0o755)).unwrap();
        }
        fs::canonicalize(dir).unwrap()
    }

    #[test]
    fn versions_are_read() {
        for (text, major) in [
            ("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)\n", Some(15)),
            ("postgres (PostgreSQL) 9.6.24", Some(9)),
            ("postgres (PostgreSQL) 19beta1", Some(19)),
            ("postgres (PostgreSQL) 18", Some(18)),
            ("something else 15", None),
            ("postgres (PostgreSQL) ", None),
        ] {
            assert_eq!(parse_major(text), major, "{text}");
        }
    }

    #[test]
    fn not_finding_binaries_names_the_command_that_installs_them() {
        let empty = tempfile::tempdir().unwrap();
        let error = find(Some(empty.path()), None).unwrap_err().to_string();
        for words in
            ["is not installed", empty.path().to_str().unwrap(), "install -y postgresql", "HOOKLANE_POSTGRES_BIN"]
        {
            assert!(cfg!(target_os = "macos") || error.contains(words), "{words}: {error}");
        }
    }

    #[test]
    fn the_first_suitable_one_is_taken_and_an_old_one_is_named() {
        let root = tempfile::tempdir().unwrap();
        let [old, newer, newest] =
            [("13", "13.2"), ("15", "15.1 (Debian)"), ("17", "17.0")].map(|(name, text)| fake(root.path(), name, text));
        let choose =
            |dirs: &[&PathBuf], cluster| choose(dirs.iter().copied().cloned().collect(), cluster, String::new());

        assert_eq!(choose(&[&old, &newest, &newer], None).unwrap(), Binaries { dir: newest.clone(), major: 17 });
        assert_eq!(choose(&[&old, &newest, &newer], Some(15)).unwrap(), Binaries { dir: newer.clone(), major: 15 });
        let error = choose(&[&old], None).unwrap_err().to_string();
        assert!(error.contains("PostgreSQL 13 in") && error.contains("14 or newer"), "{error}");
        let error = choose(&[&newest], Some(15)).unwrap_err().to_string();
        assert!(error.contains("PostgreSQL 17 in") && error.contains("made by PostgreSQL 15"), "{error}");
        assert_eq!(newest_first(root.path(), "").len(), 3);
        assert_eq!(fs::canonicalize(&newest_first(root.path(), "")[0]).unwrap(), newest);
    }

    #[test]
    fn a_link_is_followed_to_where_its_siblings_are() {
        let root = tempfile::tempdir().unwrap();
        let real = fake(root.path(), "17", "17.0");
        std::os::unix::fs::symlink(real.join("postgres"), root.path().join("postgres")).unwrap();
        assert_eq!(probe(root.path().to_owned()), Some(Binaries { dir: real, major: 17 }));
    }
}
