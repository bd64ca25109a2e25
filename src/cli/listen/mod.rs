//! `hooklane listen`: a webhook receiver on loopback that verifies signatures and prints what arrives.
//!
//! The receiver is [`Receiver`], which demos and tests use in process. Here are only its flags and the loop that prints.

mod behaviour;
mod print;
mod receiver;
mod verdict;

#[cfg(test)]
mod tests;

pub use behaviour::Behaviour;
pub use receiver::{BACKLOG_DEFAULT, BODY_BYTES_MAX, Received, Receiver, ReceiverOptions};
pub use verdict::Verdict;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

use super::Failure;
use super::secrets::{self, Scheme};
use print::Printer;

const SECRET_VARIABLE: &str = "HOOKLANE_LISTEN_SECRET";

const EXAMPLES: &str = "\
Examples:
  Show what arrives, signatures unchecked:
      hooklane listen
  Verify signatures; a bad one is answered 401:
      hooklane listen --secret whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD
  See retries at work: every delivery fails twice, then succeeds:
      hooklane listen --fail-first 2
  A receiver in trouble, which asks for patience:
      hooklane listen --status 503 --retry-after 30
  A receiver that hangs:
      hooklane listen --silent
  In a script: the port, then two requests as JSON, then it ends:
      hooklane listen --addr 127.0.0.1:0 --count 2 --json";

/// Receive webhooks on loopback, verify their signatures and print them
///
/// A receiver for trying things out, for demos and for tests. It prints `listening http://ADDR` first, then a line for
/// each request. It fails, waits or stays silent as told, to see what a sender does about it.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Where to listen; port 0 picks a free one
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:8080")]
    addr: SocketAddr,

    /// Verify signatures with this secret, or with an Ed25519 public key (whpk_…)
    ///
    /// Repeatable, or several with commas between; one that fits is enough. A request whose signature is bad is answered
    /// 401, unless --status is given. Without a secret signatures are shown as unchecked.
    ///
    /// [env: HOOKLANE_LISTEN_SECRET]
    #[arg(long, value_name = "SECRET", value_delimiter = ',')]
    secret: Vec<String>,

    /// How requests are signed; auto goes by the headers that are there
    #[arg(long, value_enum, default_value_t = Scheme::Auto)]
    scheme: Scheme,

    /// Answer with this status, 200 to 599 [default: 200, or 401 to a bad signature]
    #[arg(long, value_name = "STATUS", value_parser = parse_status)]
    status: Option<StatusCode>,

    /// Fail the first N requests of each delivery (by X-Webhook-Delivery)
    #[arg(long, value_name = "N", default_value_t = 0)]
    fail_first: u32,

    /// Fail this share of requests at random, 0.0 to 1.0
    #[arg(long, value_name = "SHARE", default_value_t = 0.0, value_parser = parse_share)]
    fail_rate: f64,

    /// What --fail-first and --fail-rate answer
    #[arg(long, value_name = "STATUS", default_value = "503", value_parser = parse_status)]
    fail_status: StatusCode,

    /// Wait before answering: 250ms, 2s, 1m
    #[arg(long, value_name = "DURATION", default_value = "0", value_parser = super::parse_duration)]
    delay: Duration,

    /// Accept requests and never answer
    #[arg(long)]
    silent: bool,

    /// Send Retry-After with every answer that is not 2xx
    #[arg(long, value_name = "SECONDS")]
    retry_after: Option<u64>,

    /// The answer's body
    #[arg(long, value_name = "TEXT", default_value = "")]
    body: String,

    /// A header of the answer, repeatable
    #[arg(long = "header", value_name = "NAME: VALUE", value_parser = parse_header)]
    headers: Vec<(HeaderName, HeaderValue)>,

    /// Print a JSON object a line for each request
    #[arg(long)]
    json: bool,

    /// Print each request's headers too
    #[arg(long)]
    show_headers: bool,

    /// Print no requests
    #[arg(long, conflicts_with_all = ["json", "show_headers"])]
    quiet: bool,

    /// End after N requests; further ones are turned away
    #[arg(long, value_name = "N", value_parser = super::flags::some)]
    count: Option<u64>,
}

/// Listens until SIGINT, SIGTERM or `--count` requests.
pub async fn run(args: Args) -> Result<(), Failure> {
    let interrupted =
        super::interrupted().map_err(|error| Failure::internal(format!("cannot catch signals: {error}")))?;
    let printer = (!args.quiet).then(|| Printer::for_stdout(args.json, args.show_headers));
    let count = args.count.unwrap_or(u64::MAX);
    let options = options(args, std::env::var(SECRET_VARIABLE).ok())?;
    let addr = options.addr;
    let receiver = Receiver::start(options).await.map_err(|error| {
        Failure::other(format!("cannot listen on {addr}: {error} (--addr names another, port 0 picks a free one)"))
    })?;
    let receiver = Arc::new(receiver);

    let ended = tokio::select! {
        () = interrupted => Ok(()),
        ended = show(&receiver, count, printer, io::stdout()) => ended,
    };
    receiver.abort();
    match ended {
        // The reader of the pipe has seen enough, as in `hooklane listen | head -1`.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        Err(error) => Err(Failure::other(format!("cannot print: {error}"))),
        Ok(()) => Ok(()),
    }
}

/// Shows `count` requests (or none, without a printer) and waits until they are answered.
async fn show(
    receiver: &Arc<Receiver>,
    count: u64,
    printer: Option<Printer>,
    mut out: impl io::Write + Send + 'static,
) -> io::Result<()> {
    // On a thread of its own: a reader that does not keep up with the pipe must not hold up a signal.
    let runtime = tokio::runtime::Handle::current();
    let source = Arc::clone(receiver);
    let showing = tokio::task::spawn_blocking(move || {
        writeln!(out, "listening {}", source.url())?;
        out.flush()?;
        for _ in 0..count {
            let Some(received) = runtime.block_on(source.next()) else { break };
            if let Some(printer) = &printer {
                out.write_all(printer.print(&received).as_bytes())?;
                out.flush()?;
            }
        }
        Ok(())
    });
    let shown = showing.await;
    receiver.stop().await;
    shown.map_err(io::Error::other)?
}

fn options(args: Args, variable: Option<String>) -> Result<ReceiverOptions, Failure> {
    let scheme = args.scheme.named();
    let mut headers = HeaderMap::new();
    for (name, value) in args.headers {
        headers.append(name, value);
    }
    Ok(ReceiverOptions {
        addr: args.addr,
        secrets: secrets::read(&args.secret, &[], (SECRET_VARIABLE, variable), scheme)?,
        scheme,
        behaviour: Behaviour {
            status: args.status,
            fail_first: args.fail_first,
            fail_rate: args.fail_rate,
            fail_status: args.fail_status,
            delay: args.delay,
            silent: args.silent,
            retry_after: args.retry_after,
            headers,
            body: Bytes::from(args.body),
        },
        limit: args.count,
        backlog: 64,
    })
}

fn parse_status(text: &str) -> Result<StatusCode, String> {
    let code = text.parse().ok().filter(|code| (200..=599).contains(code));
    code.and_then(|code| StatusCode::from_u16(code).ok()).ok_or_else(|| "allowed is 200 to 599".to_owned())
}

fn parse_share(text: &str) -> Result<f64, String> {
    let share = text.parse().ok().filter(|share| (0.0..=1.0).contains(share));
    share.ok_or_else(|| "allowed is 0.0 to 1.0".to_owned())
}

fn parse_header(text: &str) -> Result<(HeaderName, HeaderValue), String> {
    let (name, value) = text.split_once(':').ok_or("allowed is 'Name: value'")?;
    let name: HeaderName = name.trim().parse().map_err(|_| "the name is not a header name".to_owned())?;
    let value = HeaderValue::from_str(value.trim()).map_err(|_| "the value is not a header value".to_owned())?;
    if name == CONTENT_LENGTH || name == TRANSFER_ENCODING {
        return Err("it follows from the body and cannot be set".to_owned());
    }
    Ok((name, value))
}
