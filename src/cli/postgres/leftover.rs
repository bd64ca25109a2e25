//! What an earlier run left behind in a cluster: a server that still runs, or the pid file of one that does not.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use super::{Error, POLL, supervisor};

/// How long a left-over server gets for a fast stop, and then for an immediate one.
const PATIENCE: Duration = Duration::from_secs(20);

/// Names a process that cannot be: above every kernel's limit.
const NO_PID: u32 = i32::MAX as u32;

/// The file by which PostgreSQL keeps a second server off its data.
pub(super) fn pid_file(data: &Path) -> PathBuf {
    data.join("postmaster.pid")
}

/// The process that the pid file names.
pub(super) fn pid(data: &Path) -> Option<u32> {
    fs::read_to_string(pid_file(data)).ok()?.lines().next()?.trim().parse().ok()
}

/// Stops a server that still runs over `data`; the caller holds the directory's lock, so nobody is using it.
pub(super) async fn end(data: &Path) -> Result<(), Error> {
    let Some(pid) = pid(data) else { return Ok(()) };
    match command_line(pid) {
        None => Ok(()), // PostgreSQL itself sees that the process is gone
        Some(command) if serves(&command, data) => stop(pid, data).await,
        Some(_) => forget(data),
    }
}

async fn stop(pid: u32, data: &Path) -> Result<(), Error> {
    for signal in ["INT", "QUIT"] {
        supervisor::send_signal(pid, signal);
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if !command_line(pid).is_some_and(|command| serves(&command, data)) {
                return Ok(());
            }
            tokio::time::sleep(POLL).await;
        }
    }
    Err(Error::StillRunning { pid, seconds: 2 * PATIENCE.as_secs() })
}

/// The number has gone to another process since, as it does in a container that starts again; PostgreSQL would take
/// that one for a server and refuse. Only the number is replaced: the rest of the file still lets it check that nobody
/// holds the old server's shared memory.
fn forget(data: &Path) -> Result<(), Error> {
    let path = pid_file(data);
    let text = fs::read_to_string(&path).map_err(Error::io("read", &path))?;
    let rest = text.split_once('\n').map_or("", |(_, rest)| rest);
    fs::write(&path, format!("{NO_PID}\n{rest}")).map_err(Error::io("write", &path))
}

/// Whether it is the command line of a server over `data`.
fn serves(command: &str, data: &Path) -> bool {
    let program = command.split([' ', '\0']).next().unwrap_or_default();
    let name = program.rsplit('/').next().unwrap_or_default();
    matches!(name, "postgres" | "postmaster") && command.contains(&*data.to_string_lossy())
}

/// None when there is no such process, or only its zombie.
pub(super) fn command_line(pid: u32) -> Option<String> {
    let text = if Path::new("/proc/self/cmdline").exists() {
        String::from_utf8_lossy(&fs::read(format!("/proc/{pid}/cmdline")).ok()?).into_owned()
    } else {
        let output = Command::new("ps").args(["-ww", "-o", "command=", "-p", &pid.to_string()]).output().ok()?;
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    };
    Some(text).filter(|text| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_server_over_the_same_data_is_one() {
        let data = Path::new("/var/lib/hooklane/dev/postgres/data");
        for (command, expected) in [
            ("/usr/lib/postgresql/15/bin/postgres\0-D\0/var/lib/hooklane/dev/postgres/data\0-c\0jit=off\0", true),
            ("postgres -D /var/lib/hooklane/dev/postgres/data", true),
            ("/usr/lib/postgresql/15/bin/postgres\0-D\0/var/lib/postgresql/15/main\0", false),
            ("/bin/sh\0-c\0postgres -D /var/lib/hooklane/dev/postgres/data\0", false),
            ("", false),
        ] {
            assert_eq!(serves(command, data), expected, "{command}");
        }
    }
}
