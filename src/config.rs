//! Gathers every part's own `Config` from the settings: built-in defaults < TOML file < environment < flags.
//!
//! Every problem is reported, not the first alone, and nothing is bound or opened before all are solved.

mod alerts;
mod edge;
mod encryption;
mod reference;
mod retention;
mod retry;
mod settings;
mod source;
mod traces;
mod values;

use std::collections::BTreeMap;

pub use self::reference::{Described, describe, markdown};
use self::settings::{SETTINGS, Setting};
pub use self::source::{Effective, Flags, SettingProblems};
use self::source::{Reader, Source};
pub(crate) use self::values::parse_span;
use self::values::{parse_addr, parse_bool, parse_cidrs, parse_ports, parse_rate, parse_roles, parse_within};
use crate::domain::address::EgressRules;
use crate::domain::alert::AlertRules;
use crate::domain::cloudevents::SourceTemplate;
use crate::domain::retry::RetryDefaults;
pub use crate::store::Roles;
use crate::telemetry::log;
use crate::telemetry::traces::Config as TracesConfig;
use crate::{api, egress, engine, ops, store};

/// Which defaults hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Profile {
    /// For production: nothing is allowed that a setting does not allow.
    Serve,
    /// For a developer's machine: everything on loopback, receivers there too.
    Dev,
    /// For a command that only needs the database.
    Migrate,
}

/// Everything a replica is started with.
#[derive(Debug, Clone)]
pub struct Config {
    /// What this replica does.
    pub roles: Roles,
    /// The gRPC edge.
    pub api: api::Config,
    /// The operations port.
    pub ops: ops::Config,
    /// The database.
    pub store: store::Config,
    /// The way out.
    pub egress: egress::Config,
    /// Delivering.
    pub engine: engine::Config,
    /// When somebody is told of trouble.
    pub alerts: AlertRules,
    /// Logs.
    pub log: log::Config,
    /// Where traces go; `None` for nowhere.
    pub traces: Option<TracesConfig>,
}

impl Config {
    /// Reads the settings of this process. `environment` holds its variables.
    pub fn load(
        profile: Profile,
        flags: &Flags,
        environment: BTreeMap<String, String>,
    ) -> Result<Self, SettingProblems> {
        Self::explain(profile, flags, environment).map(|(config, _)| config)
    }

    /// The same, and what each setting is and comes from.
    pub fn explain(
        profile: Profile,
        flags: &Flags,
        environment: BTreeMap<String, String>,
    ) -> Result<(Self, Vec<Effective>), SettingProblems> {
        let mut problems = Vec::new();
        let traces = traces::read(&environment, &mut problems);
        let source = Source::gather(flags, environment)?;
        let mut reader = Reader::new(source);
        let config = Self::read(profile, flags, &mut reader);
        problems.into_iter().for_each(|problem| reader.report(problem));
        let effective = reader.effective();
        Ok((reader.finish(config.map(|config| Self { traces, ..config }))?, effective))
    }

    /// `None` where a setting was refused. Everything is read before that is looked at, so that every problem shows.
    fn read(profile: Profile, flags: &Flags, reader: &mut Reader) -> Option<Self> {
        let is_dev = profile == Profile::Dev;
        let loopback = if is_dev { "127.0.0.0/8,::1/128" } else { "" };
        let allow_http = reader.get("egress.allow_http", if is_dev { "true" } else { "false" }, parse_bool);
        let allow_cidrs = reader.get("egress.allow_cidrs", loopback, parse_cidrs);
        let ports = match (is_dev, allow_http) {
            (true, _) => "any",
            (false, Some(true)) => "443,80",
            (false, _) => "443",
        };
        let allow_ports = reader.get("egress.allow_ports", ports, parse_ports);
        let proxy_resolves = reader.get("egress.proxy_resolves", "false", parse_bool);
        let proxy = reader.get("egress.proxy", "", |text| match text {
            "" if proxy_resolves == Some(true) => Err("is not set, so egress.proxy_resolves has no meaning".to_owned()),
            "" => Ok(None),
            text => egress::Proxy::parse(text, proxy_resolves.unwrap_or_default()).map(Some),
        });
        let grpc_addr = reader.get("grpc.addr", "127.0.0.1:50051", parse_addr);
        let payload_bytes_max = reader.get("limits.payload_bytes", "262144", |text| parse_within(text, 1, 64 << 20));
        let outstanding = |text: &str| parse_within(text, 1, 1_000_000_000);
        let outstanding_max = reader.get("queue.max_outstanding", "10000000", outstanding);
        let outstanding_per_endpoint_max = reader.get("queue.max_outstanding_per_endpoint", "1000000", outstanding);
        let roles = reader.get("roles", "api,worker", parse_roles);
        let has_api = profile != Profile::Migrate && roles.is_none_or(|roles| roles.api);
        let edge = edge::read(profile, flags, reader, grpc_addr.filter(|_| has_api));
        let cloudevents_source = reader.get("cloudevents.source", SourceTemplate::DEFAULT, |text| {
            SourceTemplate::parse(text).map_err(|problem| problem.to_string())
        });
        let reflection = reader.get("grpc.reflection", "true", parse_bool);
        let ops_addr = reader.get("ops.addr", "127.0.0.1:9464", parse_addr);
        let database_url = reader.get("database.url", "", |text| match text {
            "" if is_dev => Ok(String::new()),
            "" => Err(format!("is not set; allowed is {}", store::URL_ALLOWED)),
            _ => store::check_url(text).map(|()| text.to_owned()).map_err(|problem| problem.to_string()),
        });
        let connections_max = reader.get("database.connections", "12", |text| parse_within(text, 6, 1_000));
        let notify = reader.get("database.notify", "true", parse_bool);
        let in_flight_max = reader.get("engine.in_flight_max", "16000", |text| parse_within(text, 1, 1_000_000));
        let global_rate = reader.get("rate.global_per_second", "unlimited", parse_rate);
        let tenant_rate = reader.get("rate.tenant_per_second", "unlimited", parse_rate);
        let retention = retention::read(reader);
        let retry_policy = reader.get("retry.policy", "exponential", retry::parse_policy);
        let event_policies = reader.get("retry.event_policies", "", retry::parse_event_policies);
        let grace = reader.get("shutdown.grace", "30s", parse_span);
        let filter = reader.get("log.filter", log::DEFAULT_FILTER, log::parse_filter);
        let format = reader.get("log.format", "text", log::parse_format);
        let event_types_max = reader.get("metrics.event_types_max", "100", |text| parse_within(text, 0, 10_000));
        let alerts = alerts::read(reader);
        let encryption = encryption::read(profile, reader);
        let edge = edge?;
        let rules = EgressRules { allow_http: allow_http?, allow_cidrs: allow_cidrs?, allow_ports: allow_ports? };
        Some(Self {
            roles: roles?,
            api: api::Config {
                grpc_addr: grpc_addr?,
                payload_bytes_max: usize::try_from(payload_bytes_max?).ok()?,
                egress_rules: rules.clone(),
                cloudevents_source: cloudevents_source.clone()?,
                reflection: reflection?,
                edge,
            },
            ops: ops::Config { addr: ops_addr? },
            store: store::Config {
                database_url: database_url?,
                connections_max: u32::try_from(connections_max?).ok()?,
                notify: notify?,
                replica: replica_name(),
                limits: store::Limits {
                    outstanding_max: outstanding_max?,
                    outstanding_per_endpoint_max: outstanding_per_endpoint_max?,
                    payload_bytes_max: payload_bytes_max?,
                },
                retention: retention?,
                encryption: encryption?,
                event_types_max: usize::try_from(event_types_max?).ok()?,
            },
            egress: egress::Config {
                rules,
                proxy: proxy?,
                user_agent: concat!("hooklane/", env!("CARGO_PKG_VERSION")).to_owned(),
            },
            engine: engine::Config {
                in_flight_max: usize::try_from(in_flight_max?).ok()?,
                rates: engine::Rates { global: global_rate?, tenant: tenant_rate? },
                grace: grace?,
                retries: RetryDefaults { by_event: event_policies?, policy: retry_policy? },
                cloudevents_source: cloudevents_source?,
            },
            alerts: alerts?,
            log: log::Config { filter: filter?, format: format? },
            // Read apart: its variables are not ours.
            traces: None,
        })
    }
}

/// Names this process in attempts: the host, and something that no other process of it has.
fn replica_name() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host: String = host.trim().chars().filter(char::is_ascii_graphic).take(64).collect();
    let suffix: u32 = rand::random();
    if host.is_empty() { format!("replica-{suffix:08x}") } else { format!("{host}-{suffix:08x}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(profile: Profile, variables: &[(&str, &str)]) -> Result<Config, SettingProblems> {
        let environment = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Config::load(profile, &Flags::default(), environment)
    }

    #[test]
    fn dev_needs_no_setting() {
        let config = load(Profile::Dev, &[]).expect("defaults");
        assert!(config.egress.rules.allow_http && config.roles.api && config.roles.worker);
        assert_eq!(config.api.payload_bytes_max, 262_144);
        assert_eq!(config.api.edge.auth, api::Auth::None);
    }

    #[test]
    fn what_is_printed_for_debugging_has_no_secret() {
        let secrets = [
            ("DATABASE_URL", "postgres://u:canary-password@localhost/x"),
            ("HOOKLANE_ENCRYPTION_KEYS", "k1:AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE="),
        ];
        let shown = format!("{:?}", load(Profile::Serve, &secrets).expect("good"));
        assert!(!shown.contains("canary") && !shown.contains("AQEB") && shown.contains("k1"), "{shown}");
    }

    #[test]
    fn every_bad_setting_is_named_with_its_value_and_what_is_allowed() {
        let problems = load(
            Profile::Dev,
            &[
                ("HOOKLANE_GRPC_ADDR", "here"),
                ("HOOKLANE_AUTH", "password"),
                ("HOOKLANE_EGRESS_ALLOW_HTTP", "maybe"),
                ("HOOKLANE_EGRESS_ALLOW_CIDRS", "10.0.0.0/8, nowhere"),
                ("HOOKLANE_EGRESS_ALLOW_PORTS", "443, 65536"),
                ("HOOKLANE_EGRESS_PROXY", "https://canary@proxy"),
                ("HOOKLANE_ROLES", "api,cook"),
                ("HOOKLANE_LIMITS_PAYLOAD_BYTES", "0"),
                ("HOOKLANE_SHUTDOWN_GRACE", "soon"),
                ("HOOKLANE_CLOUDEVENTS_SOURCE", "/hook lane"),
                ("HOOKLANE_LOG", "debg"),
                ("OTEL_TRACES_EXPORTER", "zipkin"),
                ("HOOKLANE_LOG_FORMAT", "xml"),
                ("HOOKLANE_METRICS_EVENT_TYPES_MAX", "10001"),
                ("HOOKLANE_RATE_GLOBAL_PER_SECOND", "0"),
                ("HOOKLANE_RATE_TENANT_PER_SECOND", "inf"),
                ("HOOKLANE_RETRY_POLICY", "shorter"),
                ("HOOKLANE_RETRY_EVENT_POLICIES", "order.*: long, user*: long"),
                ("HOOKLANE_RETENTION_DEAD_LETTERS", "59s"),
                ("HOOKLANE_RETENTION_FAILED", "23h"),
                ("HOOKLANE_GRCP_ADDR", "127.0.0.1:1"),
            ],
        )
        .expect_err("many problems")
        .to_string();
        for part in [
            "HOOKLANE_GRPC_ADDR",
            "here",
            "maybe",
            "nowhere",
            "has 65536, which is no port",
            "HOOKLANE_EGRESS_PROXY: is not the address of a proxy",
            "api,cook",
            "from 1 to",
            "soon",
            "/hook lane",
            "debg",
            "zipkin",
            "xml",
            "HOOKLANE_METRICS_EVENT_TYPES_MAX",
            "HOOKLANE_RATE_GLOBAL_PER_SECOND",
            "HOOKLANE_RATE_TENANT_PER_SECOND",
            "shorter",
            "user*",
            "from 1m to 3650d",
            "HOOKLANE_RETENTION_FAILED",
            "from 1d to 3650d",
            "HOOKLANE_GRCP_ADDR",
            "unknown",
        ] {
            assert!(problems.contains(part), "{part} in:\n{problems}");
        }
    }

    #[test]
    fn a_setting_that_is_misspelt_is_told_with_the_one_that_was_meant() {
        let told = |name: &str| load(Profile::Dev, &[(name, "1")]).expect_err("unknown").to_string();
        for (name, meant) in [
            ("HOOKLANE_GRCP_ADDR", "HOOKLANE_GRPC_ADDR"),
            ("HOOKLANE_SHUTDOWN_GRACES", "HOOKLANE_SHUTDOWN_GRACE"),
            ("HOOKLANE_RETENTION_DEADLETTERS", "HOOKLANE_RETENTION_DEAD_LETTERS"),
            ("HOOKLANE_LOG_FILTER", "HOOKLANE_LOG"),
            ("HOOKLANE_LOG_LEVEL", "HOOKLANE_LOG"),
            ("HOOKLANE_DATABASE_URL", "DATABASE_URL"),
            ("HOOKLANE_DATABASE_URL_FILE", "DATABASE_URL_FILE"),
            ("HOOKLANE_ENCRYPTION_KEY_FILE", "HOOKLANE_ENCRYPTION_KEYS_FILE"),
            ("HOOKLANE_GRPC_ADDRESS", "HOOKLANE_GRPC_ADDR"),
            ("HOOKLANE_AUTH_FILE", "HOOKLANE_AUTH"),
        ] {
            assert_eq!(
                told(name),
                format!("{name}: is an unknown setting; is {meant} meant? `hooklane settings` has all")
            );
        }
        assert!(!told("HOOKLANE_COLOUR").contains("meant"));
    }

    /// What is a text of any kind, or of a kind that this is.
    const FREE: &[&str] = &["tls.cert_file", "tls.key_file", "tls.client_ca_file", "cloudevents.source"];

    #[test]
    fn nonsense_is_refused_by_every_setting_with_its_name_and_what_is_allowed() {
        for setting in SETTINGS.iter().filter(|setting| !FREE.contains(&setting.key)) {
            let variable = setting.variable();
            let words = load(Profile::Dev, &[(variable.as_str(), "=?!")]).expect_err(setting.key).to_string();
            assert!(words.starts_with(&format!("{variable}: ")), "{words}");
            assert_eq!(words.contains("\"=?!\""), !setting.is_secret, "{words}");
            let says = ["allowed", " neither ", " from "];
            assert!(says.iter().any(|part| words.contains(part)), "{words}");
        }
    }

    #[test]
    fn a_bad_database_url_is_told_by_its_variable_and_without_its_password() {
        for bad in [
            "mysql://u:canary@localhost/x",
            "postgres://u:canary#1@localhost/x",
            "postgres://u:canary@localhost:70000/x",
            "postgres://u:canary@localhost/x?sslmode=maybe",
        ] {
            let words = load(Profile::Migrate, &[("DATABASE_URL", bad)]).expect_err(bad).to_string();
            assert!(words.starts_with("DATABASE_URL: is no URL of PostgreSQL"), "{words}");
            assert!(words.contains("allowed is postgres://user:password@host:port/database"), "{words}");
            assert!(!words.contains("canary"), "{words}");
        }
    }

    #[test]
    fn retries_are_read_from_the_file() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let text =
            "[retry]\npolicy = \"long\"\nevent_policies = [\"order.*: 1m 5m retries=7\", \"user.*: exponential\"]\n";
        std::fs::write(file.path(), text).expect("written");
        let flags = Flags { config: Some(file.path().to_owned()), ..Flags::default() };
        let retries = Config::load(Profile::Dev, &flags, BTreeMap::new()).expect("settings").engine.retries;
        assert_eq!(retries.policy, crate::domain::retry::RetryPolicy::long());
        assert_eq!(retries.by_event.iter().map(|one| one.policy.max_retries).collect::<Vec<_>>(), [7, 5]);
    }

    #[test]
    fn variables_that_kubernetes_sets_for_a_service_are_left_alone() {
        load(
            Profile::Dev,
            &[("HOOKLANE_PORT_50051_TCP", "tcp://10.0.0.1:50051"), ("HOOKLANE_SERVICE_HOST", "10.0.0.1")],
        )
        .expect("not ours");
    }
}
