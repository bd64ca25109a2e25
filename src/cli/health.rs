//! `hooklane health`: asks a replica whether it is ready. For images without a shell, where nothing else could ask.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use super::Failure;
use super::client::{ConnectionArgs, reachable, refused};

/// Longer than `/readyz` itself waits for the database (3 s).
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// Of the answer; `/readyz` says one line.
const ANSWER_BYTES_MAX: u64 = 4_096;

/// Ask a replica whether it is ready
///
/// Reads /readyz of the operations port, prints what it says, and exits 0 where the replica is ready; 75 where it is not
/// yet or no longer, or does not answer within 5 s. For health checks in containers. With --grpc it asks the gRPC port
/// instead, which is what callers reach; no key is needed for that.
#[derive(Debug, clap::Args)]
#[command(
    after_long_help = "Examples:\n  hooklane health --ops-addr hooklane-ops:9464\n  hooklane health --grpc --addr https://hooks.example.com"
)]
pub struct Args {
    /// The replica's operations port; for one that listens on all addresses, this host's own
    #[arg(long, value_name = "HOST:PORT", env = "HOOKLANE_OPS_ADDR", default_value = "127.0.0.1:9464")]
    ops_addr: String,
    /// Ask the gRPC port, by grpc.health.v1.Health
    #[arg(long)]
    grpc: bool,
    #[command(flatten)]
    connection: ConnectionArgs,
}

/// Asks once.
pub async fn run(args: Args) -> Result<(), Failure> {
    let (addr, is_grpc) = match args.grpc {
        true => (args.connection.place(), true),
        false => (reachable(&args.ops_addr), false),
    };
    let silent = || Failure::try_again(format!("{addr} does not answer within {} s", ANSWER_MAX.as_secs()));
    if is_grpc {
        return tokio::time::timeout(ANSWER_MAX, ask_grpc(&args.connection)).await.map_err(|_| silent())?;
    }
    let asked = tokio::time::timeout(ANSWER_MAX, ask(&addr)).await;
    let answer =
        asked.map_err(|_| silent())?.map_err(|error| Failure::try_again(format!("{addr} does not answer: {error}")))?;
    let (is_ready, said) = read(&answer).ok_or_else(|| {
        Failure::try_again(format!("{addr} does not answer as the operations port of a replica does"))
    })?;
    if is_ready { super::say(said) } else { Err(Failure::try_again(said)) }
}

/// Whatever keeps it from answering, the replica is not ready: 75, unless the flags themselves are wrong.
async fn ask_grpc(connection: &ConnectionArgs) -> Result<(), Failure> {
    let not_ready = |failure: Failure| match failure.code() {
        64 => failure,
        _ => Failure::try_again(failure.to_string()),
    };
    let mut client = HealthClient::new(connection.open().await.map_err(not_ready)?);
    let answer = client.check(HealthCheckRequest::default()).await;
    let answer = answer.map_err(refused("Check")).map_err(not_ready)?.into_inner();
    match answer.status() {
        ServingStatus::Serving => super::say("ok"),
        other => Err(Failure::try_again(other.as_str_name().to_lowercase().replace('_', " "))),
    }
}

/// HTTP/1.0, so that the answer ends with the connection.
async fn ask(addr: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(addr).await?;
    stream.write_all(b"GET /readyz HTTP/1.0\r\n\r\n").await?;
    let mut answer = Vec::new();
    stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer).await?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// Whether it is ready, and in which words.
fn read(answer: &str) -> Option<(bool, &str)> {
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.strip_prefix("HTTP/1.")?.get(2..5)?;
    let is_known = matches!(status, "200" | "503");
    is_known.then(|| (status == "200", body.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_replica_says_whether_it_is_ready() {
        assert_eq!(read("HTTP/1.0 200 OK\r\ncontent-length: 3\r\n\r\nok\n"), Some((true, "ok")));
        assert_eq!(read("HTTP/1.1 503 Service Unavailable\r\n\r\ndraining\n"), Some((false, "draining")));
        for other in ["", "HTTP/1.1 200", "HTTP/1.1 404 Not Found\r\n\r\n", "SSH-2.0\r\n\r\n"] {
            assert_eq!(read(other), None, "{other}");
        }
    }
}
