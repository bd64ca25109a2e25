//! `hooklane health`: asks a replica whether it is ready. For images without a shell, where nothing else could ask.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::Failure;

/// Longer than `/readyz` itself waits for the database (3 s).
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// Of the answer; `/readyz` says one line.
const ANSWER_BYTES_MAX: u64 = 4_096;

/// Ask a replica whether it is ready
///
/// Reads /readyz of the operations port, prints what it says, and exits 0 where the replica is ready; 75 where it is not
/// yet or no longer, or does not answer within 5 s. For health checks in containers.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Example:\n  hooklane health --ops-addr hooklane-ops:9464")]
pub struct Args {
    /// The replica's operations port; for one that listens on all addresses, this host's own
    #[arg(long, value_name = "HOST:PORT", env = "HOOKLANE_OPS_ADDR", default_value = "127.0.0.1:9464")]
    ops_addr: String,
}

/// Asks once.
pub async fn run(args: Args) -> Result<(), Failure> {
    let addr = reachable(&args.ops_addr);
    let asked = tokio::time::timeout(ANSWER_MAX, ask(&addr)).await;
    let answer = asked
        .map_err(|_| Failure::try_again(format!("{addr} does not answer within {} s", ANSWER_MAX.as_secs())))?
        .map_err(|error| Failure::try_again(format!("{addr} does not answer: {error}")))?;
    let (is_ready, said) = read(&answer).ok_or_else(|| {
        Failure::try_again(format!("{addr} does not answer as the operations port of a replica does"))
    })?;
    if is_ready { super::say(said) } else { Err(Failure::try_again(said)) }
}

/// A replica may listen on all addresses; nobody can be called there.
fn reachable(ops_addr: &str) -> String {
    match ops_addr.parse::<SocketAddr>() {
        Ok(addr) if addr.ip().is_unspecified() => {
            let loopback = if addr.is_ipv4() { "127.0.0.1" } else { "[::1]" };
            format!("{loopback}:{}", addr.port())
        }
        _ => ops_addr.to_owned(),
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
    fn a_replica_on_all_addresses_is_called_on_loopback() {
        for (given, called) in [
            ("0.0.0.0:9464", "127.0.0.1:9464"),
            ("[::]:9464", "[::1]:9464"),
            ("10.1.2.3:9464", "10.1.2.3:9464"),
            ("hooklane-ops:9464", "hooklane-ops:9464"),
        ] {
            assert_eq!(reachable(given), called);
        }
    }

    #[test]
    fn only_a_replica_says_whether_it_is_ready() {
        assert_eq!(read("HTTP/1.0 200 OK\r\ncontent-length: 3\r\n\r\nok\n"), Some((true, "ok")));
        assert_eq!(read("HTTP/1.1 503 Service Unavailable\r\n\r\ndraining\n"), Some((false, "draining")));
        for other in ["", "HTTP/1.1 200", "HTTP/1.1 404 Not Found\r\n\r\n", "SSH-2.0\r\n\r\n"] {
            assert_eq!(read(other), None, "{other}");
        }
    }
}
