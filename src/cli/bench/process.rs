//! The processes that a benchmark starts from its own binary: started, awaited until ready, killed with the benchmark.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncRead, BufReader};
use tokio::process::{Child, ChildStdin, Command};
use tokio::time::timeout;

use crate::cli::Failure;

/// A service that starts beside a million waiting rows counts them first.
const READY_DEADLINE: Duration = Duration::from_secs(60);
/// How much of what a process said is kept for the case that it fails.
const TAIL_LINES: usize = 30;

/// A child that has said `ready` and where it listens. Dropping it kills it.
#[derive(Debug)]
pub(super) struct Process {
    what: &'static str,
    child: Child,
    pid: u32,
    addresses: HashMap<String, SocketAddr>,
    tail: Arc<Mutex<VecDeque<String>>>,
    // Its end tells a receiver that we are gone, however we went.
    _input: Option<ChildStdin>,
}

impl Process {
    /// Runs this program anew with `arguments`, without the settings of our own environment but with `environment`.
    pub(super) async fn start(
        what: &'static str,
        arguments: &[&str],
        environment: &[(&str, String)],
    ) -> Result<Self, Failure> {
        Self::run(what, Command::new(own_program()?), arguments, environment).await
    }

    /// The same without settings, and behind every other process where the processors do not suffice for all.
    pub(super) async fn start_last(what: &'static str, arguments: &[&str]) -> Result<Self, Failure> {
        // It becomes the program: the process is the same.
        let mut command = Command::new("nice");
        command.args(["-n", "19"]).arg(own_program()?);
        Self::run(what, command, arguments, &[]).await
    }

    async fn run(
        what: &'static str,
        mut command: Command,
        arguments: &[&str],
        environment: &[(&str, String)],
    ) -> Result<Self, Failure> {
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            if text.starts_with("HOOKLANE_") || text.starts_with("OTEL_") || text == "DATABASE_URL" {
                command.env_remove(&name);
            }
        }
        command.args(arguments).envs(environment.iter().map(|(name, value)| (name, value))).kill_on_drop(true);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child =
            command.spawn().map_err(|error| Failure::other(format!("{what} cannot be started: {error}")))?;
        let tail = Arc::new(Mutex::new(VecDeque::new()));
        let (input, output, errors) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        if let Some(errors) = errors {
            tokio::spawn(keep_tail(errors, Arc::clone(&tail)));
        }
        let pid = child.id().unwrap_or_default();
        let mut process = Self { what, child, pid, addresses: HashMap::new(), tail, _input: input };
        let Some(output) = output else { return Err(process.failure("has no output")) };
        let mut lines = BufReader::new(output).lines();
        let ready = async {
            while let Ok(Some(line)) = lines.next_line().await {
                if let Some(addresses) = line.strip_prefix("ready ") {
                    return Some(addresses.to_owned());
                }
            }
            None
        };
        match timeout(READY_DEADLINE, ready).await {
            Ok(Some(line)) => {
                let pairs = line.split_whitespace().filter_map(|word| word.split_once('='));
                let addresses = pairs.filter_map(|(name, value)| Some((name.to_owned(), value.parse().ok()?)));
                process.addresses = addresses.collect();
            }
            Ok(None) => {
                // What it said last is still on its way through the pipe.
                let _ = timeout(Duration::from_secs(5), process.child.wait()).await;
                tokio::time::sleep(Duration::from_millis(50)).await;
                return Err(process.failure("ended before it was ready"));
            }
            Err(_) => return Err(process.failure("was not ready in time")),
        }
        // A full pipe would stop it.
        tokio::spawn(async move { while matches!(lines.next_line().await, Ok(Some(_))) {} });
        Ok(process)
    }

    /// An address of its ready line.
    pub(super) fn address(&self, name: &str) -> Result<SocketAddr, Failure> {
        self.addresses.get(name).copied().ok_or_else(|| self.failure(&format!("did not say where {name} is")))
    }

    pub(super) const fn pid(&self) -> u32 {
        self.pid
    }

    /// SIGKILL, and waits until it is gone.
    pub(super) async fn kill(&mut self) -> Result<(), Failure> {
        self.child.kill().await.map_err(|error| self.failure(&format!("could not be killed: {error}")))
    }

    /// Whether it has ended by itself.
    pub(super) fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    /// What went wrong, with what it said last.
    pub(super) fn failure(&self, what: &str) -> Failure {
        let tail = self.tail.lock().unwrap_or_else(PoisonError::into_inner);
        let said: String = tail.iter().map(|line| format!("\n  {line}")).collect();
        Failure::other(format!("{} {what}{said}", self.what))
    }
}

fn own_program() -> Result<PathBuf, Failure> {
    std::env::current_exe().map_err(|error| Failure::other(format!("who am I? {error}")))
}

async fn keep_tail(errors: impl AsyncRead + Unpin, tail: Arc<Mutex<VecDeque<String>>>) {
    let mut lines = BufReader::new(errors).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        let mut tail = tail.lock().unwrap_or_else(PoisonError::into_inner);
        if tail.len() == TAIL_LINES {
            tail.pop_front();
        }
        tail.push_back(line);
    }
}
