//! The settings of traces: the variables of OpenTelemetry, by their own names.
//!
//! Source: <https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/>. They belong to no section
//! of ours, and many a pod has some for other programs: what says nothing of traces is left alone, but what would send
//! them otherwise than we can is refused.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::domain::trace::Sampler;
use crate::telemetry::traces::{Batch, Config, Protocol};

/// Reads them; `None` where no collector is named. Problems go to `problems`, each with its variable.
pub(super) fn read(environment: &BTreeMap<String, String>, problems: &mut Vec<String>) -> Option<Config> {
    let mut variables = Variables { environment, problems };
    if variables.get("OTEL_SDK_DISABLED").is_some_and(|text| text.eq_ignore_ascii_case("true")) {
        return None;
    }
    let exporter = variables.get("OTEL_TRACES_EXPORTER");
    let named = variables.of_traces("ENDPOINT");
    match exporter {
        Some("none") => return None,
        None if named.is_none() => return None,
        None | Some("otlp") => {}
        Some(other) => {
            variables.refuse("OTEL_TRACES_EXPORTER", other, "is not supported; allowed are otlp and none");
            return None;
        }
    }
    let protocol = variables.parse("PROTOCOL", Protocol::Http, |text| match text {
        "grpc" => Ok(Protocol::Grpc),
        "http/protobuf" => Ok(Protocol::Http),
        _ => Err("is not supported; allowed are grpc and http/protobuf".to_owned()),
    });
    variables.parse("COMPRESSION", (), |text| match text {
        "none" => Ok(()),
        _ => Err("is not supported; allowed is none".to_owned()),
    });
    for unsupported in ["CERTIFICATE", "CLIENT_CERTIFICATE", "CLIENT_KEY"] {
        variables.parse(unsupported, (), |_| {
            Err("is not supported; the system's certificates count, and those of SSL_CERT_FILE".to_owned())
        });
    }
    let default = if protocol == Protocol::Grpc { "http://localhost:4317" } else { "http://localhost:4318" };
    let (variable, endpoint) = named.unwrap_or(("OTEL_EXPORTER_OTLP_ENDPOINT", default));
    let endpoint = match endpoint.parse::<url::Url>() {
        Ok(url) if matches!(url.scheme(), "http" | "https") && url.has_host() => {
            let is_whole = protocol == Protocol::Grpc || variable == "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT";
            if is_whole { endpoint.to_owned() } else { format!("{}/v1/traces", endpoint.trim_end_matches('/')) }
        }
        _ => {
            // What stands before an `@` is a credential.
            let shown = if endpoint.contains('@') { "its value" } else { endpoint };
            variables.refuse(variable, shown, "is no address; allowed is http://HOST:PORT or https://HOST:PORT");
            String::new()
        }
    };
    let timeout = variables.parse("TIMEOUT", Duration::from_secs(10), parse_millis);
    let headers = variables.parse("HEADERS", Vec::new(), parse_pairs);
    let resource = variables.resource();
    let sampler = variables.sampler();
    let batch = variables.batch();
    Some(Config { protocol, endpoint, headers, timeout, sampler, resource, batch })
}

struct Variables<'v> {
    environment: &'v BTreeMap<String, String>,
    problems: &'v mut Vec<String>,
}

impl<'v> Variables<'v> {
    /// An empty one counts as not set: so says the standard.
    fn get(&self, name: &str) -> Option<&'v str> {
        self.environment.get(name).map(|text| text.trim()).filter(|text| !text.is_empty())
    }

    /// One of the exporter's, that of traces before that of everything; with its name.
    fn of_traces(&self, what: &str) -> Option<(&'static str, &'v str)> {
        let known = NAMES.iter().find(|(name, ..)| *name == what)?;
        [known.1, known.2].into_iter().find_map(|name| Some((name, self.get(name)?)))
    }

    fn parse<T>(&mut self, what: &str, default: T, parse: impl Fn(&str) -> Result<T, String>) -> T {
        let Some((name, text)) = self.of_traces(what) else { return default };
        parse(text).unwrap_or_else(|problem| {
            // Headers carry credentials.
            let shown = if what == "HEADERS" { "its value" } else { text };
            self.refuse(name, shown, &problem);
            default
        })
    }

    fn refuse(&mut self, name: &str, text: &str, problem: &str) {
        self.problems.push(format!("{name}: {text:?} {problem}"));
    }

    fn resource(&mut self) -> Vec<(String, String)> {
        let attributes = self.get("OTEL_RESOURCE_ATTRIBUTES").unwrap_or_default();
        let mut said = parse_pairs(attributes).unwrap_or_else(|problem| {
            self.refuse("OTEL_RESOURCE_ATTRIBUTES", attributes, &problem);
            Vec::new()
        });
        said.extend(self.get("OTEL_SERVICE_NAME").map(|name| ("service.name".to_owned(), name.to_owned())));
        said
    }

    fn sampler(&mut self) -> Sampler {
        let share = match self.get("OTEL_TRACES_SAMPLER_ARG") {
            None => 1.0,
            Some(text) => Sampler::parse_share(text).unwrap_or_else(|problem| {
                self.refuse("OTEL_TRACES_SAMPLER_ARG", text, &problem.to_string());
                1.0
            }),
        };
        let Some(name) = self.get("OTEL_TRACES_SAMPLER") else { return Sampler::default() };
        Sampler::parse(name, share).unwrap_or_else(|problem| {
            self.refuse("OTEL_TRACES_SAMPLER", name, &problem.to_string());
            Sampler::default()
        })
    }

    fn batch(&mut self) -> Batch {
        let queue_max = self.count("OTEL_BSP_MAX_QUEUE_SIZE", 2_048, 1_000_000);
        let size_max = self.count("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", 512, 100_000).min(queue_max);
        let delay = self.count("OTEL_BSP_SCHEDULE_DELAY", 5_000, 60_000);
        Batch { size_max, queue_max, delay: Duration::from_millis(delay as u64) }
    }

    fn count(&mut self, name: &str, default: usize, max: usize) -> usize {
        let Some(text) = self.get(name) else { return default };
        match text.parse().ok().filter(|number| (1..=max).contains(number)) {
            Some(number) => number,
            None => {
                self.refuse(name, text, &format!("is not a whole number from 1 to {max}"));
                default
            }
        }
    }
}

/// Of the exporter, by what they end in: the one of traces, and the one of everything.
const NAMES: [(&str, &str, &str); 8] = [
    ("ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"),
    ("PROTOCOL", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"),
    ("COMPRESSION", "OTEL_EXPORTER_OTLP_TRACES_COMPRESSION", "OTEL_EXPORTER_OTLP_COMPRESSION"),
    ("CERTIFICATE", "OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE", "OTEL_EXPORTER_OTLP_CERTIFICATE"),
    ("CLIENT_CERTIFICATE", "OTEL_EXPORTER_OTLP_TRACES_CLIENT_CERTIFICATE", "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE"),
    ("CLIENT_KEY", "OTEL_EXPORTER_OTLP_TRACES_CLIENT_KEY", "OTEL_EXPORTER_OTLP_CLIENT_KEY"),
    ("TIMEOUT", "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "OTEL_EXPORTER_OTLP_TIMEOUT"),
    ("HEADERS", "OTEL_EXPORTER_OTLP_TRACES_HEADERS", "OTEL_EXPORTER_OTLP_HEADERS"),
];

fn parse_millis(text: &str) -> Result<Duration, String> {
    let millis = text.parse().ok().filter(|millis| (1..=600_000).contains(millis));
    millis.map(Duration::from_millis).ok_or_else(|| "is not a number of milliseconds from 1 to 600000".to_owned())
}

/// `name=value,name=value`, values percent-encoded, as in W3C's baggage.
fn parse_pairs(text: &str) -> Result<Vec<(String, String)>, String> {
    let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
    let pairs = parts.map(|part| {
        let (name, value) = part.split_once('=').filter(|(name, _)| !name.trim().is_empty())?;
        let value = percent_encoding::percent_decode_str(value.trim()).decode_utf8().ok()?;
        Some((name.trim().to_owned(), value.into_owned()))
    });
    pairs.collect::<Option<_>>().ok_or_else(|| "is not a list; allowed is name=value,name=value".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(variables: &[(&str, &str)]) -> Result<Option<Config>, Vec<String>> {
        let environment = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let mut problems = Vec::new();
        let config = read(&environment, &mut problems);
        if problems.is_empty() { Ok(config) } else { Err(problems) }
    }

    #[test]
    fn nothing_is_traced_unless_a_collector_is_named() {
        let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318");
        for off in [
            &[][..],
            &[("OTEL_SERVICE_NAME", "hooks"), ("OTEL_METRICS_EXPORTER", "otlp")],
            &[("OTEL_EXPORTER_OTLP_ENDPOINT", "")],
            &[endpoint, ("OTEL_SDK_DISABLED", "true")],
            &[endpoint, ("OTEL_TRACES_EXPORTER", "none")],
        ] {
            assert_eq!(load(off), Ok(None), "{off:?}");
        }
        assert!(load(&[endpoint]).is_ok_and(|config| config.is_some()));
        assert!(load(&[("OTEL_TRACES_EXPORTER", "otlp")]).is_ok_and(|config| config.is_some()));
    }

    #[test]
    fn the_address_follows_from_variable_and_protocol() {
        let all = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://all:1/");
        let traces = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "https://traces:2/in");
        let grpc = ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc");
        let otlp = ("OTEL_TRACES_EXPORTER", "otlp");
        for (variables, protocol, endpoint) in [
            (&[all][..], Protocol::Http, "http://all:1/v1/traces"),
            (&[all, traces], Protocol::Http, "https://traces:2/in"),
            (&[all, grpc], Protocol::Grpc, "http://all:1/"),
            (&[all, traces, grpc], Protocol::Grpc, "https://traces:2/in"),
            (&[otlp], Protocol::Http, "http://localhost:4318/v1/traces"),
            (&[otlp, grpc], Protocol::Grpc, "http://localhost:4317"),
            (
                &[otlp, grpc, ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/protobuf")],
                Protocol::Http,
                "http://localhost:4318/v1/traces",
            ),
        ] {
            let config = load(variables).expect("allowed").expect("on");
            assert_eq!((config.protocol, config.endpoint.as_str()), (protocol, endpoint), "{variables:?}");
        }
    }

    #[test]
    fn everything_else_is_read_by_its_standard_name() {
        let config = load(&[
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "api-key=a%20secret, x-tenant=1"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "2500"),
            ("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=staging,service.name=other"),
            ("OTEL_SERVICE_NAME", "hooks"),
            ("OTEL_TRACES_SAMPLER", "parentbased_traceidratio"),
            ("OTEL_TRACES_SAMPLER_ARG", "0.25"),
            ("OTEL_BSP_MAX_QUEUE_SIZE", "100"),
            ("OTEL_BSP_SCHEDULE_DELAY", "20"),
        ]);
        let config = config.expect("allowed").expect("on");
        let pairs = |pairs: &[(&str, &str)]| -> Vec<(String, String)> {
            pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
        };
        assert_eq!(config.headers, pairs(&[("api-key", "a secret"), ("x-tenant", "1")]));
        assert_eq!(config.timeout, Duration::from_millis(2_500));
        // The later counts.
        assert_eq!(config.resource.last(), pairs(&[("service.name", "hooks")]).first());
        assert_eq!(config.sampler, Sampler::parse("parentbased_traceidratio", 0.25).expect("known"));
        let batch = Batch { size_max: 100, queue_max: 100, delay: Duration::from_millis(20) };
        assert_eq!(config.batch, batch);
    }

    #[test]
    fn what_cannot_be_done_is_refused_by_its_name() {
        let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318");
        for (name, bad) in [
            ("OTEL_TRACES_EXPORTER", "zipkin"),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json"),
            ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "collector:4318"),
            ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip"),
            ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/ca.pem"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "soon"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "secret"),
            ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "user:secret@collector"),
            ("OTEL_RESOURCE_ATTRIBUTES", "=x"),
            ("OTEL_TRACES_SAMPLER", "jaeger_remote"),
            ("OTEL_TRACES_SAMPLER_ARG", "2"),
            ("OTEL_BSP_MAX_QUEUE_SIZE", "0"),
        ] {
            let problems = load(&[endpoint, (name, bad)]).expect_err(name);
            assert!(problems.len() == 1 && problems[0].starts_with(name), "{problems:?}");
            assert_eq!(problems[0].contains(bad), !bad.contains("secret"), "{problems:?}");
        }
    }
}
