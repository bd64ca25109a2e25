//! What an endpoint is like, as flags or as JSON say it.

use clap::builder::TypedValueParser;

use crate::api::proto::{
    BackoffSchedule, Endpoint, ExponentialBackoff, Ordering, OrderingOnFailure, PayloadFormat, RateLimit, RetryPolicy,
    SignatureScheme, retry_policy::Backoff,
};
use crate::cli::client::Typed;
use crate::cli::{Failure, flags};

/// Flags go over what the file says.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct ShapeArgs {
    /// A file with the endpoint as JSON, every field of the contract, or - for standard input; flags go over it
    #[arg(long, value_name = "FILE")]
    pub(super) from: Option<String>,
    /// What it is for, for people
    #[arg(long, value_name = "TEXT")]
    description: Option<String>,
    /// A type of events it wants: order.created, 'order.*' or '*'; repeatable [default: all]
    #[arg(long = "event-type", value_name = "PATTERN")]
    event_types: Vec<String>,
    /// What events must satisfy, in CEL: 'event.data.amount > 100'
    #[arg(long, value_name = "CEL")]
    filter: Option<String>,
    /// How requests are signed [default: timestamped]
    #[arg(long, value_name = "SCHEME", value_parser = scheme())]
    signature_scheme: Option<SignatureScheme>,
    /// What their body is [default: envelope]
    #[arg(long, value_name = "FORMAT", value_parser = format())]
    payload_format: Option<PayloadFormat>,
    /// A header that each request has, 'Name: value'; repeatable
    #[arg(long = "header", value_name = "HEADER", value_parser = flags::header)]
    headers: Vec<(String, String)>,
    /// A label, NAME=VALUE; repeatable
    #[arg(long = "label", value_name = "PAIR", value_parser = flags::pair)]
    labels: Vec<(String, String)>,
    /// The deadline of a request, 1s to 300s [default: 30s]
    #[arg(long, value_name = "SPAN", value_parser = flags::span)]
    timeout: Option<prost_types::Duration>,
    /// Requests under way at once, 1 to 1024 [default: 64]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    max_in_flight: Option<u32>,
    /// Requests a second [default: any number]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    rate: Option<f64>,
    /// How many may go at once after a quiet spell [default: those of a second]
    #[arg(long, value_name = "N", requires = "rate")]
    burst: Option<u32>,
    /// How often a delivery is tried again, 0 to 100
    #[arg(long, value_name = "N")]
    max_retries: Option<u32>,
    /// When it is tried again: 1m,5m,30m is after 1 min, then 5, then 30
    #[arg(long, value_name = "SPANS", value_parser = flags::span, value_delimiter = ',')]
    #[arg(conflicts_with_all = ["retry_initial", "retry_multiplier", "retry_max"])]
    retry_delays: Vec<prost_types::Duration>,
    /// Or: first after this long [default: 1s]
    #[arg(long, value_name = "SPAN", value_parser = flags::span)]
    retry_initial: Option<prost_types::Duration>,
    /// Then each time after so many times as long [default: 2]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    retry_multiplier: Option<f64>,
    /// And never after more than this [default: 300s]
    #[arg(long, value_name = "SPAN", value_parser = flags::span)]
    retry_max: Option<prost_types::Duration>,
    /// By which share each delay may be shorter or longer, 0 to 1 [default: 0.3]
    #[arg(long, value_name = "SHARE", allow_negative_numbers = true)]
    retry_jitter: Option<f64>,
    /// In which order deliveries go [default: unordered]
    #[arg(long, value_name = "ORDER", value_parser = ordering())]
    ordering: Option<Ordering>,
    /// What follows in an order when a delivery has no retry left [default: block]
    #[arg(long, value_name = "WHAT", value_parser = on_failure())]
    on_failure: Option<OrderingOnFailure>,
}

const SCHEMES: &[&str] = &["timestamped", "standard-webhooks", "standard-webhooks-ed25519", "body-sha256", "body-hex"];
const FORMATS: &[&str] = &["envelope", "standard-webhooks", "raw", "cloudevents-structured", "cloudevents-binary"];
const ORDERINGS: &[&str] = &["unordered", "by-key", "fifo"];
const ON_FAILURE: &[&str] = &["block", "skip"];

pub(super) fn scheme() -> impl TypedValueParser<Value = SignatureScheme> {
    flags::one_of("SIGNATURE_SCHEME", SCHEMES, SignatureScheme::from_str_name)
}

fn format() -> impl TypedValueParser<Value = PayloadFormat> {
    flags::one_of("PAYLOAD_FORMAT", FORMATS, PayloadFormat::from_str_name)
}

fn ordering() -> impl TypedValueParser<Value = Ordering> {
    flags::one_of("ORDERING", ORDERINGS, Ordering::from_str_name)
}

fn on_failure() -> impl TypedValueParser<Value = OrderingOnFailure> {
    flags::one_of("ORDERING_ON_FAILURE", ON_FAILURE, OrderingOnFailure::from_str_name)
}

/// What was typed for what an endpoint is like, by the contract's name.
pub(in crate::cli) const NEW: Typed = &[
    ("endpoint.id", "ID"),
    ("endpoint.url", "URL"),
    ("endpoint.tenant", "--tenant"),
    ("endpoint.external_id", "--external-id"),
    ("secret", "--secret-file"),
    ("update_mask", "--clear"),
    ("endpoint.description", "--description"),
    ("endpoint.event_types", "--event-type"),
    ("endpoint.filter", "--filter"),
    ("endpoint.signature_scheme", "--signature-scheme"),
    ("endpoint.payload_format", "--payload-format"),
    ("endpoint.headers", "--header"),
    ("endpoint.labels", "--label"),
    ("endpoint.timeout", "--timeout"),
    ("endpoint.max_in_flight", "--max-in-flight"),
    ("endpoint.rate_limit.per_second", "--rate"),
    ("endpoint.rate_limit.burst", "--burst"),
    ("endpoint.retry_policy.max_retries", "--max-retries"),
    ("endpoint.retry_policy.schedule.delays", "--retry-delays"),
    ("endpoint.retry_policy.exponential.initial_delay", "--retry-initial"),
    ("endpoint.retry_policy.exponential.multiplier", "--retry-multiplier"),
    ("endpoint.retry_policy.exponential.max_delay", "--retry-max"),
    ("endpoint.retry_policy.jitter", "--retry-jitter"),
    ("endpoint.ordering", "--ordering"),
    ("endpoint.ordering_on_failure", "--on-failure"),
];

impl ShapeArgs {
    /// What was typed for each field; nothing where they come from a file, which has them by their names.
    pub(super) const fn typed(&self) -> Typed {
        if self.from.is_none() { NEW } else { &[] }
    }

    /// The endpoint that is asked for. What is valid the service says.
    pub(super) fn apply(&self) -> Result<Endpoint, Failure> {
        let mut endpoint = match &self.from {
            Some(path) => flags::read_message::<Endpoint>(path)?,
            None => Endpoint::default(),
        };
        if let Some(text) = &self.description {
            endpoint.description.clone_from(text);
        }
        if let Some(text) = &self.filter {
            endpoint.filter.clone_from(text);
        }
        if !self.event_types.is_empty() {
            endpoint.event_types.clone_from(&self.event_types);
        }
        endpoint.headers.extend(self.headers.iter().cloned());
        endpoint.labels.extend(self.labels.iter().cloned());
        endpoint.timeout = self.timeout.or(endpoint.timeout);
        endpoint.max_in_flight = self.max_in_flight.unwrap_or(endpoint.max_in_flight);
        if let Some(per_second) = self.rate {
            endpoint.rate_limit = Some(RateLimit { per_second, burst: self.burst.unwrap_or_default() });
        }
        if let Some(scheme) = self.signature_scheme {
            endpoint.set_signature_scheme(scheme);
        }
        if let Some(format) = self.payload_format {
            endpoint.set_payload_format(format);
        }
        if let Some(ordering) = self.ordering {
            endpoint.set_ordering(ordering);
        }
        if let Some(on_failure) = self.on_failure {
            endpoint.set_ordering_on_failure(on_failure);
        }
        endpoint.retry_policy = self.retries(endpoint.retry_policy.take());
        Ok(endpoint)
    }

    fn retries(&self, of_file: Option<RetryPolicy>) -> Option<RetryPolicy> {
        let grows = self.retry_initial.is_some() || self.retry_multiplier.is_some() || self.retry_max.is_some();
        let has_delays = !self.retry_delays.is_empty();
        if !grows && !has_delays && self.max_retries.is_none() && self.retry_jitter.is_none() {
            return of_file;
        }
        let mut policy = of_file.unwrap_or_default();
        policy.max_retries = self.max_retries.or(policy.max_retries);
        policy.jitter = self.retry_jitter.or(policy.jitter);
        if has_delays {
            policy.backoff = Some(Backoff::Schedule(BackoffSchedule { delays: self.retry_delays.clone() }));
        }
        if grows {
            policy.backoff = Some(Backoff::Exponential(ExponentialBackoff {
                initial_delay: self.retry_initial,
                multiplier: self.retry_multiplier,
                max_delay: self.retry_max,
            }));
        }
        Some(policy)
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::client::to_json;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        shape: ShapeArgs,
    }

    fn shape(line: &[&str]) -> Result<String, String> {
        let line = Line::try_parse_from([&["x"], line].concat()).map_err(|error| error.to_string())?;
        let endpoint = line.shape.apply().map_err(|failure| failure.to_string())?;
        to_json(&endpoint).map_err(|failure| failure.to_string())
    }

    #[test]
    fn flags_become_the_endpoint() {
        let line = [
            "--event-type",
            "order.*",
            "--event-type",
            "user.*",
            "--signature-scheme",
            "body-hex",
            "--header",
            "X-A: b",
            "--label",
            "team=a",
            "--timeout",
            "10s",
            "--rate",
            "2.5",
            "--retry-delays",
            "1m,5m",
            "--ordering",
            "by-key",
            "--on-failure",
            "skip",
            "--payload-format",
            "raw",
        ];
        let text = shape(&line).unwrap();
        for part in [
            r#""eventTypes":["order.*","user.*"]"#,
            r#""signatureScheme":"SIGNATURE_SCHEME_BODY_HEX""#,
            r#""payloadFormat":"PAYLOAD_FORMAT_RAW""#,
            r#""headers":{"X-A":"b"}"#,
            r#""labels":{"team":"a"}"#,
            r#""timeout":"10s""#,
            r#""rateLimit":{"perSecond":2.5}"#,
            r#""retryPolicy":{"schedule":{"delays":["60s","300s"]}}"#,
            r#""ordering":"ORDERING_BY_KEY""#,
            r#""orderingOnFailure":"ORDERING_ON_FAILURE_SKIP""#,
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
        let text = shape(&["--retry-initial", "10s", "--max-retries", "0"]).unwrap();
        assert_eq!(text, r#"{"retryPolicy":{"exponential":{"initialDelay":"10s"},"maxRetries":0}}"#);
        for bad in [
            &["--signature-scheme", "md5"][..],
            &["--timeout", "10"],
            &["--burst", "5"],
            &["--label", "team"],
            &["--retry-delays", "1m", "--retry-initial", "1s"],
        ] {
            assert!(shape(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn flags_go_over_the_file() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(
            file.path(),
            r#"{"url": "https://a.example", "filter": "true", "circuitBreaker": {"failureThreshold": 0}}"#,
        )
        .unwrap();
        let path = file.path().to_str().unwrap();
        let text = shape(&["--from", path, "--filter", "false"]).unwrap();
        let expected = r#"{"url":"https://a.example","filter":"false","circuitBreaker":{"failureThreshold":0}}"#;
        assert_eq!(text, expected);
        std::fs::write(file.path(), r#"{"link": "https://a.example"}"#).unwrap();
        let words = shape(&["--from", path]).unwrap_err();
        assert!(words.contains("link") && words.contains(path), "{words}");
    }

    #[test]
    fn flags_know_every_value_of_the_contract() {
        for (name, known) in [
            ("SignatureScheme", SCHEMES),
            ("PayloadFormat", FORMATS),
            ("Ordering", ORDERINGS),
            ("OrderingOnFailure", ON_FAILURE),
        ] {
            assert_eq!(crate::cli::client::values_of(name), known.len() + 1, "{name}");
        }
    }
}
