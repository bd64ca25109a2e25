//! Gathers every part's own `Config` from the settings: built-in defaults < TOML file < environment < flags.
//!
//! Every problem is reported, not the first alone, and nothing is bound or opened before all are solved.

mod alerts;
mod edge;
mod retry;
mod source;
mod values;

use std::collections::BTreeMap;

pub use self::source::{Flags, SettingProblems};
use self::source::{Reader, Source};
pub(crate) use self::values::parse_span;
use self::values::{parse_addr, parse_bool, parse_cidrs, parse_rate, parse_retention, parse_roles, parse_within};
use crate::domain::address::EgressRules;
use crate::domain::alert::AlertRules;
use crate::domain::cloudevents::SourceTemplate;
use crate::domain::retry::RetryDefaults;
pub use crate::store::Roles;
use crate::{api, egress, engine, ops, store, telemetry};

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
    pub telemetry: telemetry::Config,
}

/// Every setting that there is: its key in the file, and what it is for.
pub(crate) const SETTINGS: &[Setting] = &[
    Setting::new("alerts.backlog_age", "an alert once a due delivery of an endpoint has waited so long", Built::Yes),
    Setting::new("alerts.backlog_outstanding", "an alert once an endpoint has so many outstanding", Built::Yes),
    Setting::new("alerts.dead_letters", "an alert once so many of an endpoint's fail in the window", Built::Yes),
    Setting::new("alerts.failing", "an alert, and raised, at so many failures of an endpoint in a row", Built::Yes),
    Setting::new("alerts.failure_rate", "an alert once such a share of attempts in the window fails", Built::Yes),
    Setting::new("alerts.failure_rate_attempts", "fewer attempts in the window say nothing", Built::Yes),
    Setting::new("alerts.retention", "how long closed alerts are kept", Built::Yes),
    Setting::new("alerts.window", "how far back attempts and dead letters count", Built::Yes),
    Setting::new("auth", "none, api-key or mtls", Built::Yes),
    Setting::new("cloudevents.source", "the source of CloudEvents; {tenant} stands for the event's tenant", Built::Yes),
    Setting::new("database.connections", "connections to the database this replica opens at most", Built::Yes),
    Setting::new("database.notify", "whether this replica wakes the others by NOTIFY", Built::Yes),
    Setting::new("database.url", "the primary, postgres://…", Built::Yes).secret().env("DATABASE_URL"),
    Setting::new("egress.allow_cidrs", "otherwise forbidden ranges that may be dialled, comma-separated", Built::Yes),
    Setting::new("egress.allow_http", "plain http receivers", Built::Yes),
    Setting::new("encryption.keys", "id:base64,…, the first encrypts", Built::No).secret(),
    Setting::new("engine.in_flight_max", "requests under way at once in this replica, about", Built::Yes),
    Setting::new("grpc.addr", "gRPC and gRPC-Web; port 0 picks one", Built::Yes),
    Setting::new("grpc.reflection", "server reflection", Built::Yes),
    Setting::new("limits.calls_per_key", "calls under way of one credential, open streams among them", Built::Yes),
    Setting::new("limits.connections_per_address", "connections of one address at once", Built::Yes),
    Setting::new("limits.payload_bytes", "the largest payload of an event", Built::Yes),
    Setting::new("limits.requests_per_second", "calls of one credential in a second; 0 for any number", Built::Yes),
    Setting::new("limits.streams_per_key", "open streams of one credential", Built::Yes),
    Setting::new("log", "a tracing filter, such as info or hooklane=debug", Built::Yes),
    Setting::new("log.format", "text or json", Built::Yes),
    Setting::new("ops.addr", "/livez /readyz /health; port 0 picks one", Built::Yes),
    Setting::new("queue.max_outstanding", "outstanding deliveries at most", Built::Yes),
    Setting::new("queue.max_outstanding_per_endpoint", "outstanding deliveries of one endpoint at most", Built::Yes),
    Setting::new("rate.global_per_second", "requests a second of all replicas together, or unlimited", Built::Yes),
    Setting::new("rate.tenant_per_second", "the same for each tenant", Built::Yes),
    Setting::new("retention.dead_letters", "how long a failed delivery is a dead letter", Built::Yes),
    Setting::new("retention.failed", "how long failed deliveries are kept", Built::No),
    Setting::new("retention.succeeded", "how long succeeded deliveries are kept", Built::No),
    Setting::new("retry.event_policies", "retries by event type, such as order.*: 1m 5m 30m 2h 24h", Built::Yes),
    Setting::new("retry.policy", "retries of endpoints that do not say: exponential, long, or delays", Built::Yes),
    Setting::new("roles", "what this replica does: api, worker or both, comma-separated", Built::Yes),
    Setting::new("shutdown.grace", "how long requests under way may go on after SIGTERM", Built::Yes),
    Setting::new("tls.cert_file", "the gRPC port's certificate chain, in PEM", Built::Yes),
    Setting::new("tls.client_ca_file", "who signs the certificates that callers must have, in PEM", Built::Yes),
    Setting::new(
        "tls.clients",
        "who calls with which certificate, such as uri:spiffe://prod/shop publisher shop",
        Built::Yes,
    ),
    Setting::new("tls.key_file", "the certificate's private key, in PEM", Built::Yes),
];

/// One setting.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Setting {
    pub(crate) key: &'static str,
    /// What it is for.
    pub(crate) purpose: &'static str,
    built: Built,
    is_secret: bool,
    env: Option<&'static str>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Built {
    Yes,
    /// Setting it stops the start: nothing is accepted and ignored.
    No,
}

impl Setting {
    const fn new(key: &'static str, purpose: &'static str, built: Built) -> Self {
        Self { key, purpose, built, is_secret: false, env: None }
    }

    const fn secret(self) -> Self {
        Self { is_secret: true, ..self }
    }

    const fn env(self, name: &'static str) -> Self {
        Self { env: Some(name), ..self }
    }

    /// Its name in the environment.
    pub(crate) fn variable(&self) -> String {
        self.env.map_or_else(|| format!("HOOKLANE_{}", self.key.replace('.', "_").to_uppercase()), str::to_owned)
    }
}

impl Config {
    /// Reads the settings of this process. `environment` holds its variables.
    pub fn load(
        profile: Profile,
        flags: &Flags,
        environment: BTreeMap<String, String>,
    ) -> Result<Self, SettingProblems> {
        let source = Source::gather(flags, environment)?;
        let mut reader = Reader::new(source);
        let config = Self::read(profile, flags, &mut reader);
        reader.finish(config)
    }

    /// `None` where a setting was refused. Everything is read before that is looked at, so that every problem shows.
    fn read(profile: Profile, flags: &Flags, reader: &mut Reader) -> Option<Self> {
        let is_dev = profile == Profile::Dev;
        let loopback = if is_dev { "127.0.0.0/8,::1/128" } else { "" };
        let allow_http = reader.get("egress.allow_http", if is_dev { "true" } else { "false" }, parse_bool);
        let allow_cidrs = reader.get("egress.allow_cidrs", loopback, parse_cidrs);
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
            "" if !is_dev => Err("is not set; allowed is postgres://user:password@host:port/database".to_owned()),
            _ => Ok(text.to_owned()),
        });
        let connections_max = reader.get("database.connections", "12", |text| parse_within(text, 6, 1_000));
        let notify = reader.get("database.notify", "true", parse_bool);
        let in_flight_max = reader.get("engine.in_flight_max", "16000", |text| parse_within(text, 1, 1_000_000));
        let global_rate = reader.get("rate.global_per_second", "unlimited", parse_rate);
        let tenant_rate = reader.get("rate.tenant_per_second", "unlimited", parse_rate);
        let dead_letters = reader.get("retention.dead_letters", "7d", parse_retention);
        let retry_policy = reader.get("retry.policy", "exponential", retry::parse_policy);
        let event_policies = reader.get("retry.event_policies", "", retry::parse_event_policies);
        let grace = reader.get("shutdown.grace", "30s", parse_span);
        let filter = reader.get("log", telemetry::DEFAULT_FILTER, telemetry::parse_filter);
        let format = reader.get("log.format", "text", telemetry::parse_format);
        let alerts = alerts::read(reader);
        let edge = edge?;
        let rules = EgressRules { allow_http: allow_http?, allow_cidrs: allow_cidrs? };
        Some(Self {
            roles: roles?,
            api: api::Config {
                grpc_addr: grpc_addr?,
                payload_bytes_max: usize::try_from(payload_bytes_max?).ok()?,
                egress_rules: rules.clone(),
                cloudevents_source: cloudevents_source?,
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
                },
                retention: store::Retention { dead_letters: dead_letters? },
            },
            egress: egress::Config { rules, user_agent: concat!("hooklane/", env!("CARGO_PKG_VERSION")).to_owned() },
            engine: engine::Config {
                in_flight_max: usize::try_from(in_flight_max?).ok()?,
                rates: engine::Rates { global: global_rate?, tenant: tenant_rate? },
                grace: grace?,
                retries: RetryDefaults { by_event: event_policies?, policy: retry_policy? },
            },
            alerts: alerts?,
            telemetry: telemetry::Config { filter: filter?, format: format? },
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
    fn every_bad_setting_is_named_with_its_value_and_what_is_allowed() {
        let problems = load(
            Profile::Dev,
            &[
                ("HOOKLANE_GRPC_ADDR", "here"),
                ("HOOKLANE_AUTH", "password"),
                ("HOOKLANE_EGRESS_ALLOW_HTTP", "maybe"),
                ("HOOKLANE_EGRESS_ALLOW_CIDRS", "10.0.0.0/8, nowhere"),
                ("HOOKLANE_ROLES", "api,cook"),
                ("HOOKLANE_LIMITS_PAYLOAD_BYTES", "0"),
                ("HOOKLANE_SHUTDOWN_GRACE", "soon"),
                ("HOOKLANE_CLOUDEVENTS_SOURCE", "/hook lane"),
                ("HOOKLANE_LOG_FORMAT", "xml"),
                ("HOOKLANE_RATE_GLOBAL_PER_SECOND", "0"),
                ("HOOKLANE_RATE_TENANT_PER_SECOND", "inf"),
                ("HOOKLANE_RETRY_POLICY", "shorter"),
                ("HOOKLANE_RETRY_EVENT_POLICIES", "order.*: long, user*: long"),
                ("HOOKLANE_RETENTION_DEAD_LETTERS", "59s"),
                ("HOOKLANE_RETENTION_FAILED", "30d"),
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
            "api,cook",
            "from 1 to",
            "soon",
            "/hook lane",
            "xml",
            "HOOKLANE_RATE_GLOBAL_PER_SECOND",
            "HOOKLANE_RATE_TENANT_PER_SECOND",
            "shorter",
            "user*",
            "from 1m to 3650d",
            "HOOKLANE_RETENTION_FAILED",
            "not built yet",
            "HOOKLANE_GRCP_ADDR",
            "unknown",
        ] {
            assert!(problems.contains(part), "{part} in:\n{problems}");
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
