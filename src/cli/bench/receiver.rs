//! `hooklane bench-receiver`: the receivers of a benchmark in one process that costs as little as one can.
//!
//! One address answers 200, the other reads and never answers; endpoints differ in their paths. It understands of HTTP
//! only what Hooklane and the benchmark send: requests with a content length on kept connections. It ends with its input.

use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::{Buf as _, BytesMut};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use super::stamp;
use super::tally::Tally;
use crate::cli::{Failure, say};

/// Answer the benchmark's deliveries and count them
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Keep every delivery id that arrives, for /record
    #[arg(long)]
    record: bool,
}

type Shared = Arc<Mutex<Tally>>;

/// Connections that wait to be accepted: all lanes of a thousand endpoints may dial at once.
const ACCEPT_BACKLOG: u32 = 4_096;
const BUFFER_BYTES: usize = 16 << 10;
const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";

/// Serves until the input ends.
pub async fn run(args: Args) -> Result<(), Failure> {
    // One thread: its work is a read and a write for each request, and two would only hand it to each other.
    let serving = tokio::task::spawn_blocking(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(serve(args))
    });
    serving
        .await
        .map_err(|error| Failure::internal(format!("the receiver ended: {error}")))?
        .map_err(|error| Failure::other(format!("the receiver cannot listen: {error}")))
}

async fn serve(args: Args) -> std::io::Result<()> {
    // Silent endpoints hold thousands of connections; what the system does not grant shows in the counts.
    let _ = rlimit::increase_nofile_limit(1 << 20);
    let tally = Arc::new(Mutex::new(Tally::new(args.record)));
    let (live, silent) = (listen()?, listen()?);
    let line = format!("ready live={} silent={}", live.local_addr()?, silent.local_addr()?);
    say(&line).map_err(|error| std::io::Error::other(error.to_string()))?;
    let (for_live, for_silent) = (Arc::clone(&tally), tally);
    let live = accept(live, move |stream| answer(stream, Arc::clone(&for_live)));
    let silent = accept(silent, move |stream| keep_silent(stream, Arc::clone(&for_silent)));
    tokio::select! {
        () = live => (),
        () = silent => (),
        () = input_ended() => (),
    }
    Ok(())
}

fn listen() -> std::io::Result<TcpListener> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((Ipv4Addr::LOCALHOST, 0).into())?;
    socket.listen(ACCEPT_BACKLOG)
}

pub(super) async fn input_ended() {
    let mut input = tokio::io::stdin();
    let mut buffer = [0; 64];
    while matches!(input.read(&mut buffer).await, Ok(1..)) {}
}

async fn accept<F>(listener: TcpListener, serve: impl Fn(TcpStream) -> F)
where
    F: Future<Output = std::io::Result<()>> + Send + 'static,
{
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                // A small answer must not wait for the acknowledgement of the one before.
                let _ = stream.set_nodelay(true);
                tokio::spawn(serve(stream));
            }
            // Out of descriptors, most likely: the connections that wait show in the counts.
            Err(_) => tokio::time::sleep(std::time::Duration::from_millis(20)).await,
        }
    }
}

async fn keep_silent(mut stream: TcpStream, tally: Shared) -> std::io::Result<()> {
    let mut buffer = BytesMut::with_capacity(2 << 10);
    while stream.read_buf(&mut buffer).await? > 0 {
        while let Some(request) = Request::parse(&buffer) {
            lock(&tally).silence();
            buffer.advance(request.length);
        }
    }
    Ok(())
}

async fn answer(mut stream: TcpStream, tally: Shared) -> std::io::Result<()> {
    let mut buffer = BytesMut::with_capacity(BUFFER_BYTES);
    let mut answers = Vec::new();
    while stream.read_buf(&mut buffer).await? > 0 {
        while let Some(request) = Request::parse(&buffer) {
            request.answer(&tally, &mut answers);
            let length = request.length;
            buffer.advance(length);
        }
        stream.write_all(&answers).await?;
        answers.clear();
        buffer.reserve(BUFFER_BYTES / 2);
    }
    Ok(())
}

fn lock(tally: &Shared) -> std::sync::MutexGuard<'_, Tally> {
    tally.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A complete request at the beginning of a buffer.
struct Request<'b> {
    line: &'b [u8],
    delivery: &'b [u8],
    body: &'b [u8],
    /// All of it, in bytes.
    length: usize,
}

impl<'b> Request<'b> {
    fn parse(buffer: &'b [u8]) -> Option<Self> {
        let mut request = Self { line: b"", delivery: b"", body: b"", length: 0 };
        let (mut start, mut content_length) = (0, 0);
        loop {
            let end = start + buffer[start..].iter().position(|byte| *byte == b'\n')?;
            let line = buffer[start..end].trim_ascii_end();
            start = end + 1;
            if line.is_empty() {
                break;
            }
            let Some(colon) = line.iter().position(|byte| *byte == b':').filter(|_| !request.line.is_empty()) else {
                request.line = line;
                continue;
            };
            let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
            if name.eq_ignore_ascii_case(b"content-length") {
                content_length = std::str::from_utf8(value).ok()?.parse().ok()?;
            } else if name.eq_ignore_ascii_case(b"x-webhook-id") {
                request.delivery = value;
            }
        }
        request.length = start + content_length;
        request.body = buffer.get(start..request.length)?;
        Some(request)
    }

    fn answer(&self, tally: &Shared, answers: &mut Vec<u8>) {
        let mut tally = lock(tally);
        if self.line.starts_with(b"POST ") {
            tally.arrive(self.delivery, stamp::sent_ns(self.body), stamp::wall_ns());
            tally.place(stamp::place(self.body));
            answers.extend_from_slice(OK);
            return;
        }
        let path = self.line.split(|byte| *byte == b' ').nth(1).unwrap_or_default();
        let report = tally.report();
        let json = match path {
            b"/reset" => {
                tally.reset();
                serde_json::to_vec(&report)
            }
            b"/window" => {
                tally.begin_window();
                serde_json::to_vec(&report)
            }
            b"/record" => serde_json::to_vec(&tally.record()),
            _ => serde_json::to_vec(&report),
        }
        .unwrap_or_default();
        answers.extend_from_slice(format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", json.len()).as_bytes());
        answers.extend_from_slice(&json);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_parsed_only_when_all_of_it_is_there() {
        let whole = b"POST /e/7 HTTP/1.1\r\nHost: x:1\r\nX-Webhook-ID: dlv_1\r\ncontent-length: 5\r\n\r\nhelloPOST";
        let request = Request::parse(whole).expect("a request");
        assert_eq!((request.line, request.delivery), (&b"POST /e/7 HTTP/1.1"[..], &b"dlv_1"[..]));
        assert_eq!(request.body, b"hello");
        assert_eq!(&whole[request.length..], b"POST");
        for cut in 0..request.length {
            assert!(Request::parse(&whole[..cut]).is_none(), "{cut}");
        }
    }
}
