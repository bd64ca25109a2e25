//! Whom the server runs as: PostgreSQL refuses to run as root, so root hands it to another user.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::Error;
use super::home::Existing;

/// An entry of the passwd file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Account {
    pub(super) name: String,
    pub(super) uid: u32,
    pub(super) gid: u32,
}

/// The standard library tells no user id, and a crate for one number is not worth it: `id` is POSIX.
pub(super) fn we_are_root() -> Result<bool, Error> {
    Ok(our_uid()? == 0)
}

/// The user to hand the server to; None to run it as ourselves. What exists stays with its owner.
pub(super) fn for_server(existing: Option<&Existing>) -> Result<Option<Account>, Error> {
    let uid = our_uid()?;
    match existing {
        Some(existing) if uid != 0 && existing.owner != uid => {
            Err(Error::Foreign { dir: existing.dir.clone(), owner: existing.owner })
        }
        _ if uid != 0 => Ok(None),
        Some(existing) if existing.owner != 0 => {
            let found = passwd()?.into_iter().find(|account| account.uid == existing.owner);
            found.map(Some).ok_or_else(|| Error::NoAccount(format!("with uid {}", existing.owner)))
        }
        _ => {
            let found = preferred(passwd()?);
            found.map(Some).ok_or_else(|| Error::NoAccount("postgres or nobody".into()))
        }
    }
}

fn our_uid() -> Result<u32, Error> {
    let program = Path::new("id");
    let output = Command::new(program).arg("-u").output().map_err(Error::io("run", program))?;
    let text = String::from_utf8_lossy(&output.stdout);
    text.trim().parse().map_err(|error| Error::io("read the answer of", program)(std::io::Error::other(error)))
}

fn passwd() -> Result<Vec<Account>, Error> {
    let path = Path::new("/etc/passwd");
    let text = fs::read_to_string(path).map_err(Error::io("read", path))?;
    Ok(text.lines().filter_map(parse).collect())
}

/// The packages' own user, else the one that owns nothing.
fn preferred(accounts: Vec<Account>) -> Option<Account> {
    ["postgres", "nobody"].iter().find_map(|name| accounts.iter().find(|account| account.name == *name)).cloned()
}

/// `name:password:uid:gid:…`; macOS writes nobody's ids as -2, which no process is given: such a line is passed over.
fn parse(line: &str) -> Option<Account> {
    let mut fields = line.split(':');
    let name = fields.next()?.to_owned();
    let uid = fields.nth(1)?.parse().ok()?;
    let gid = fields.next()?.parse().ok()?;
    Some(Account { name, uid, gid })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_packages_user_is_preferred_to_nobody() {
        let accounts = |text: &str| text.lines().filter_map(parse).collect::<Vec<_>>();
        let both =
            "root:x:0:0:root:/root:/bin/bash\nnobody:x:65534:65534::/:/bin/false\npostgres:x:101:104:,,,:/:/bin/sh";
        let chosen = preferred(accounts(both)).unwrap();
        assert_eq!((chosen.name.as_str(), chosen.uid, chosen.gid), ("postgres", 101, 104));
        assert_eq!(preferred(accounts("a:b\nnobody:x:65534:65533::/:/")).map(|it| it.gid), Some(65533));
        assert_eq!(preferred(accounts("# comment\nnobody:*:-2:-2:x:/:/\nroot:x:0:0::/:/")), None);
    }
}
