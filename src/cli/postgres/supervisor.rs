//! Runs a program that must not outlive this process, not even when this process is killed by SIGKILL.
//!
//! A small shell stands between: it reads from a pipe whose other end only we hold, and the kernel closes that however
//! we end. It is a process group of its own, so that Ctrl-C in a terminal reaches Hooklane alone, which still needs its
//! database to drain.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{Read as _, Seek as _, SeekFrom};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use super::account::Account;
use super::home::Home;
use super::{Error, POLL};

/// Two processes wait, one for the program's end, one for ours, which shows as the end of its input. The second one
/// ends the program by ever harder signals, 10 s apart, and removes what was only meant to last as long as the program.
const SCRIPT: &str = r#"
log=$1 scratch=$2
shift 2
umask 077
exec 3<&0 </dev/null >>"$log" 2>&1
"$@" 3<&- &
program=$!
(
    while read -r _; do :; done
    trap '' TERM
    for signal in INT QUIT KILL; do
        kill -s $signal $program 2>/dev/null || break
        checks=0
        while [ $checks -lt 200 ] && kill -s 0 $program 2>/dev/null; do
            checks=$((checks + 1))
            sleep 0.05
        done
    done
    [ -z "$scratch" ] || rm -rf "$scratch"
) <&3 &
watch=$!
exec 3<&-
wait $program
status=$?
kill -s TERM $watch 2>/dev/null
wait $watch 2>/dev/null
exit $status
"#;

/// The script's three signals at 10 s each, and some.
const STOP_DEADLINE: Duration = Duration::from_secs(35);

/// Also bounds `initdb`, and a fast stop with its checkpoint.
const EXIT_DEADLINE: Duration = Duration::from_secs(120);

/// How much of the log an error quotes.
const LOG_TAIL_BYTES: u64 = 4 << 10;

/// A program under the shell's eyes. Dropping it ends the program in the background.
#[derive(Debug)]
pub(super) struct Supervised {
    shell: Child,
    pipe: Option<ChildStdin>,
    log: PathBuf,
    /// Where this program's part of the log begins.
    log_start: u64,
}

impl Supervised {
    /// Starts `program` as `account`, with its output appended to the home's log.
    pub(super) fn spawn(
        program: &Path,
        arguments: &[OsString],
        home: &Home,
        account: Option<&Account>,
    ) -> Result<Self, Error> {
        let log_start = fs::metadata(&home.log).map_or(0, |it| it.len());
        let mut command = Command::new("/bin/sh");
        command.args(["-c", SCRIPT, "hooklane-postgres"]).arg(&home.log);
        command.arg(home.scratch.as_deref().unwrap_or(Path::new(""))).arg(program).args(arguments);
        // The caller's PG*, LC_* and TZ variables would change the cluster; macOS needs a locale that starts no threads.
        command.env_clear().env("PATH", "/usr/bin:/bin").env("LC_ALL", "C");
        command.current_dir(&home.dir).process_group(0);
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        if let Some(account) = account {
            command.uid(account.uid).gid(account.gid);
        }
        let mut shell = command.spawn().map_err(Error::io("run", program))?;
        let pipe = shell.stdin.take();
        Ok(Self { shell, pipe, log: home.log.clone(), log_start })
    }

    #[cfg(test)]
    pub(super) fn shell_pid(&self) -> u32 {
        self.shell.id()
    }

    /// The program's status once it has ended.
    pub(super) fn exit_status(&mut self) -> Result<Option<ExitStatus>, Error> {
        // Not the runtime's own child type: a server outlives the runtime of the test that started it.
        self.shell.try_wait().map_err(Error::io("wait for", Path::new("/bin/sh")))
    }

    /// Waits for the program to end by itself.
    pub(super) async fn wait_for_exit(&mut self) -> Result<ExitStatus, Error> {
        self.wait(EXIT_DEADLINE).await
    }

    /// Ends the program and waits until it and its scratch directory are gone.
    pub(super) async fn stop(mut self) -> Result<(), Error> {
        drop(self.pipe.take());
        self.wait(STOP_DEADLINE).await.map(drop)
    }

    /// The last lines that the program printed.
    pub(super) fn log_tail(&self) -> String {
        let read = || -> std::io::Result<String> {
            let mut file = File::open(&self.log)?;
            let length = file.metadata()?.len();
            file.seek(SeekFrom::Start(self.log_start.max(length.saturating_sub(LOG_TAIL_BYTES))))?;
            let mut bytes = Vec::new();
            file.take(LOG_TAIL_BYTES).read_to_end(&mut bytes)?;
            Ok(String::from_utf8_lossy(&bytes).trim_end().to_owned())
        };
        read().unwrap_or_else(|error| format!("({}: {error})", self.log.display()))
    }

    async fn wait(&mut self, patience: Duration) -> Result<ExitStatus, Error> {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(status) = self.exit_status()? {
                return Ok(status);
            }
            if Instant::now() >= deadline {
                return Err(Error::StillRunning { pid: self.shell.id(), seconds: patience.as_secs() });
            }
            tokio::time::sleep(POLL).await;
        }
    }
}

/// Sends a signal by name; a process that is gone already is what the caller wanted.
pub(super) fn send_signal(pid: u32, signal: &str) {
    // The shell's own `kill`: a system call of ours would need unsafe code, and a minimal system has no /bin/kill.
    let _ = Command::new("/bin/sh")
        .args(["-c", "kill -s \"$1\" \"$2\" 2>/dev/null", "sh", signal, &pid.to_string()])
        .status();
}
