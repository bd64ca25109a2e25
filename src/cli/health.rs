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
/// Of the answer; what is asked for here says one line.
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
    if args.grpc {
        let asked = tokio::time::timeout(ANSWER_MAX, ask_grpc(&args.connection)).await;
        return asked.map_err(|_| silent(&args.connection.place()))?;
    }
    let (status, said) = ask(&args.ops_addr, "GET", "/readyz", "", &[200, 503]).await?;
    if status == 200 { super::say(&said) } else { Err(Failure::try_again(said)) }
}

fn silent(addr: &str) -> Failure {
    Failure::try_again(format!("{addr} does not answer within {} s", ANSWER_MAX.as_secs()))
}

/// Sends a request to a replica's operations port: the status, one of those that are `known`, and what it said.
pub(super) async fn ask(
    ops_addr: &str,
    method: &str,
    path: &str,
    body: &str,
    known: &[u16],
) -> Result<(u16, String), Failure> {
    let addr = reachable(ops_addr);
    let asked = tokio::time::timeout(ANSWER_MAX, exchange(&addr, method, path, body)).await;
    let answer = asked
        .map_err(|_| silent(&addr))?
        .map_err(|error| Failure::try_again(format!("{addr} does not answer: {error}")))?;
    let (status, said) = read(&answer).filter(|(status, _)| known.contains(status)).ok_or_else(|| {
        Failure::try_again(format!("{addr} does not answer as the operations port of a replica does"))
    })?;
    Ok((status, said.to_owned()))
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
async fn exchange(addr: &str, method: &str, path: &str, body: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(addr).await?;
    let head = format!("{method} {path} HTTP/1.0\r\nContent-Type: text/plain\r\nContent-Length: {}", body.len());
    stream.write_all(format!("{head}\r\n\r\n{body}").as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer).await?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// The status of an answer, and its words.
fn read(answer: &str) -> Option<(u16, &str)> {
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.strip_prefix("HTTP/1.")?.get(2..5)?.parse().ok()?;
    Some((status, body.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_has_a_status_and_words() {
        assert_eq!(read("HTTP/1.0 200 OK\r\ncontent-length: 3\r\n\r\nok\n"), Some((200, "ok")));
        assert_eq!(read("HTTP/1.1 503 Service Unavailable\r\n\r\ndraining\n"), Some((503, "draining")));
        for other in ["", "HTTP/1.1 200", "HTTP/1.1 xyz\r\n\r\n", "SSH-2.0\r\n\r\n"] {
            assert_eq!(read(other), None, "{other}");
        }
    }
}
