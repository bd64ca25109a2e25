//! The program as a child: started with nothing in its environment but what a test names, spoken to by signals.

use std::fs::File;
use std::net::SocketAddr;
use std::process::{ExitStatus, Output, Stdio};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

/// How long a program may take for anything; far more than it needs.
pub(crate) const PATIENCE: Duration = Duration::from_secs(90);

/// What `serve` needs here beside a database.
pub(crate) const SERVE: &[(&str, &str)] = &[
    ("HOOKLANE_AUTH", "none"),
    ("HOOKLANE_GRPC_ADDR", "127.0.0.1:0"),
    ("HOOKLANE_OPS_ADDR", "127.0.0.1:0"),
    ("HOOKLANE_EGRESS_ALLOW_HTTP", "true"),
    ("HOOKLANE_EGRESS_ALLOW_CIDRS", "127.0.0.0/8"),
    ("HOOKLANE_ENCRYPTION_KEYS", "tests:BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc="),
];

/// A program whose environment is a path to look for programs on, and `variables`.
fn command(arguments: &[&str], variables: &[(&str, &str)]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hooklane"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    command.args(arguments).env_clear().env("PATH", path).envs(variables.iter().copied());
    command.stdin(Stdio::null()).kill_on_drop(true);
    command
}

/// Runs a program that ends by itself: its exit code, standard output and standard error.
pub(crate) async fn run(arguments: &[&str], variables: &[(&str, &str)]) -> (Option<i32>, String, String) {
    let running = command(arguments, variables).output();
    let Output { status, stdout, stderr } =
        tokio::time::timeout(PATIENCE, running).await.expect("it ends").expect("it runs");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
    (status.code(), text(stdout), text(stderr))
}

/// A program that is not waited for.
pub(crate) struct Program(Child);

impl Program {
    /// Starts it.
    pub(crate) fn start(arguments: &[&str], variables: &[(&str, &str)]) -> Self {
        let mut command = command(arguments, variables);
        Self(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it runs"))
    }

    /// SIGKILL, wherever it is.
    pub(crate) async fn kill(mut self) {
        self.0.kill().await.expect("killed");
    }
}

/// A running replica.
pub(crate) struct Replica {
    child: Child,
    log: File,
    /// Where gRPC is served.
    pub(crate) grpc: String,
    /// Where the operations port is.
    pub(crate) ops: SocketAddr,
}

impl Replica {
    /// Starts `hooklane serve` on `database_url` and waits until it says that it is ready.
    pub(crate) async fn start(database_url: &str, more: &[(&str, &str)]) -> Self {
        let settings = [SERVE, &[("DATABASE_URL", database_url)], more].concat();
        Self::start_as(&["serve"], &settings).await
    }

    /// Starts a replica by any command that prints the same line.
    pub(crate) async fn start_as(arguments: &[&str], settings: &[(&str, &str)]) -> Self {
        let log = tempfile::tempfile().expect("a file");
        let mut command = command(arguments, settings);
        command.stdout(Stdio::piped()).stderr(log.try_clone().expect("a handle"));
        let mut child = command.spawn().expect("it runs");
        let mut line = String::new();
        let mut output = BufReader::new(child.stdout.take().expect("piped"));
        let read = tokio::time::timeout(PATIENCE, output.read_line(&mut line)).await;
        read.expect("it says something").expect("text");
        let words: Vec<_> = line.split_whitespace().collect();
        let ["ready", grpc, ops] = words[..] else {
            panic!("it is not ready: {line:?}\n{}", text_of(&log));
        };
        let grpc = format!("http://{}", grpc.strip_prefix("grpc=").expect("an address"));
        let ops = ops.strip_prefix("ops=").expect("an address").parse().expect("an address");
        Self { child, log, grpc, ops }
    }

    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id().expect("it runs")
    }

    /// Sends a signal by its name.
    pub(crate) async fn signal(&self, name: &str) {
        let id = self.child.id().expect("it runs").to_string();
        let status = Command::new("/bin/sh").args(["-c", "kill -s \"$1\" \"$2\"", "sh", name, &id]).status();
        assert!(status.await.expect("a shell").success(), "it takes {name}");
    }

    /// How it ended.
    pub(crate) async fn ended(&mut self) -> ExitStatus {
        let ended = tokio::time::timeout(PATIENCE, self.child.wait()).await;
        ended.unwrap_or_else(|_| panic!("it does not end\n{}", text_of(&self.log))).expect("its status")
    }

    /// Whether it still runs.
    pub(crate) fn runs(&mut self) -> bool {
        self.child.try_wait().expect("its status").is_none()
    }

    /// The status of a path of the operations port; `None` when nobody answers.
    pub(crate) async fn look(&self, path: &str) -> Option<u16> {
        self.read(path).await?.split(' ').nth(1)?.parse().ok()
    }

    /// What `/health` tells of the replicas on the database; `None` when nobody answers.
    pub(crate) async fn replicas(&self) -> Option<Vec<serde_json::Value>> {
        let answer = self.read("/health").await?;
        let health: serde_json::Value = serde_json::from_str(answer.split_once("\r\n\r\n")?.1).ok()?;
        health["replicas"].as_array().cloned()
    }

    /// The name it has in attempts.
    pub(crate) async fn name(&self) -> String {
        let answer = self.read("/health").await.expect("it answers");
        let body = answer.split_once("\r\n\r\n").expect("a body").1;
        let health: serde_json::Value = serde_json::from_str(body).expect("JSON");
        health["replica"].as_str().expect("a name").to_owned()
    }

    /// A path of the operations port as it is answered.
    pub(crate) async fn read(&self, path: &str) -> Option<String> {
        self.send("GET", path, "\r\n").await
    }

    /// What the operations port answers to a request with further headers and a body.
    pub(crate) async fn send(&self, method: &str, path: &str, rest: &str) -> Option<String> {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let mut stream = TcpStream::connect(self.ops).await.ok()?;
        let request = format!("{method} {path} HTTP/1.1\r\nHost: ops\r\nConnection: close\r\n{rest}");
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.ok()?;
        Some(answer)
    }

    /// What it logged.
    pub(crate) fn log(&self) -> String {
        text_of(&self.log)
    }
}

impl Drop for Replica {
    #[expect(clippy::print_stderr, reason = "a test that fails has no better place for what its child said")]
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let tail: Vec<_> = log.lines().rev().take(30).collect();
            eprintln!("the replica's last words:");
            tail.into_iter().rev().for_each(|line| eprintln!("  {line}"));
        }
    }
}

/// A file from its beginning; where its writer stands stays as it is.
pub(crate) fn text_of(file: &File) -> String {
    use std::os::unix::fs::FileExt as _;
    let (mut bytes, mut chunk) = (Vec::new(), [0; 8_192]);
    while let Ok(count) = file.read_at(&mut chunk, bytes.len() as u64) {
        if count == 0 {
            break;
        }
        bytes.extend_from_slice(&chunk[..count]);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
