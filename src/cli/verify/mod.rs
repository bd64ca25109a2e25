//! `hooklane verify`: checks the signature of one captured request, and says in words what it found.
//!
//! The rules are the domain's, those of `hooklane listen`; here are the flags, and how the answer is given.

mod captured;
mod examination;

use std::path::PathBuf;
use std::time::Duration;

use http::{HeaderName, HeaderValue};

use super::Failure;
use super::secrets::{self, Scheme};
use captured::{Captured, parse_header};
use examination::{Clock, examine};

const SECRET_VARIABLE: &str = "HOOKLANE_SECRET";

const EXAMPLES: &str = "\
Examples:
  A request in parts:
      hooklane verify --secret whsec_… --body-file body.json \\
          --header 'X-Webhook-Signature: t=1768996800,v1=5257a869e7ec…'
  A whole request as it came over the wire, captured a while ago:
      hooklane verify --secret-file key --request captured.http --ignore-time
  By an endpoint's public key, the body on standard input:
      hooklane verify --secret whpk_… --headers-file headers.txt < body";

/// Check the signature of one captured request
///
/// It prints by which scheme and secret the request is signed, and when. If it is not to be trusted, it says why, as far
/// as can be told: a secret that is another one, a body that was changed on its way, a time that is too far away, a header
/// that is missing.
///
/// Exit codes: 0 the request is verified, 1 it is not, 64 bad usage or a file that cannot be read.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// A header of the request, repeatable
    #[arg(long = "header", value_name = "NAME: VALUE", value_parser = parse_header)]
    headers: Vec<(HeaderName, HeaderValue)>,

    /// A file with the request's headers, one a line
    #[arg(long, value_name = "FILE")]
    headers_file: Option<PathBuf>,

    /// A file with the body, byte for byte as it came [default: standard input]
    #[arg(long, value_name = "FILE")]
    body_file: Option<PathBuf>,

    /// A file with all of the request: request line, headers, an empty line, the body; - is standard input
    #[arg(long, value_name = "FILE", conflicts_with_all = ["headers", "headers_file", "body_file"])]
    request: Option<PathBuf>,

    /// Verify with this secret, or with an Ed25519 public key (whpk_…)
    ///
    /// Repeatable, or several with commas between; one that fits is enough.
    ///
    /// [env: HOOKLANE_SECRET]
    #[arg(long, value_name = "SECRET", value_delimiter = ',')]
    secret: Vec<String>,

    /// A file with secrets, one a line; repeatable
    #[arg(long, value_name = "FILE")]
    secret_file: Vec<PathBuf>,

    /// How the request is signed; auto goes by the headers that are there
    #[arg(long, value_enum, default_value_t = Scheme::Auto)]
    scheme: Scheme,

    /// How far the signed time may be from now, to either side
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = super::parse_duration)]
    tolerance: Duration,

    /// Verify as if it were this time: unix seconds, or 2026-01-21T12:00:00Z
    #[arg(long, value_name = "TIME", value_parser = parse_time, allow_negative_numbers = true)]
    now: Option<i64>,

    /// Take any signed time, as an old capture needs
    #[arg(long, conflicts_with_all = ["now", "tolerance"])]
    ignore_time: bool,
}

/// Verifies the request.
pub async fn run(args: Args) -> Result<(), Failure> {
    let scheme = args.scheme.named();
    let variable = (SECRET_VARIABLE, std::env::var(SECRET_VARIABLE).ok());
    let verifiers = secrets::read(&args.secret, &args.secret_file, variable, scheme)?;
    if verifiers.is_empty() {
        return Err(Failure::usage(format!("no secret; allowed are --secret, --secret-file and {SECRET_VARIABLE}")));
    }
    let clock = Clock {
        now: args.now.unwrap_or_else(|| jiff::Timestamp::now().as_second()),
        tolerance: (!args.ignore_time).then_some(args.tolerance.as_secs()),
    };
    let captured = match &args.request {
        Some(file) => Captured::of_dump(file)?,
        None if args.headers.is_empty() && args.headers_file.is_none() => {
            return Err(Failure::usage("no request; allowed are --header, --headers-file and --request"));
        }
        None => Captured::of_parts(args.headers, args.headers_file.as_deref(), args.body_file.as_deref())?,
    };
    let examination = examine(&captured, &verifiers, scheme, clock);
    for line in &examination.lines {
        super::say(line)?;
    }
    match examination.verdict {
        Ok(()) => super::say("verified"),
        Err(reason) => Err(Failure::other(format!("not verified: {reason}"))),
    }
}

fn parse_time(text: &str) -> Result<i64, String> {
    let time = || text.parse().ok().map(jiff::Timestamp::as_second);
    text.parse()
        .ok()
        .or_else(time)
        .ok_or_else(|| "is no time; allowed are unix seconds, or 2026-01-21T12:00:00Z".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_unix_seconds_or_a_date() {
        for (text, seconds) in [("1768996800", 1_768_996_800), ("2026-01-21T12:00:00Z", 1_768_996_800), ("-1", -1)] {
            assert_eq!(parse_time(text), Ok(seconds));
        }
        for bad in ["", "now", "2026-01-21", "1.5"] {
            assert!(parse_time(bad).is_err(), "{bad}");
        }
    }
}
