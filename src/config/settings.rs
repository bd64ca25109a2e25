//! Every setting that there is, and what it means. `docs/settings.md` is made of this table (`reference`).
//!
//! Defaults and bounds stand where a setting is read, in the files beside this one.

/// By key, in the order of the alphabet.
#[rustfmt::skip]
pub(crate) const SETTINGS: &[Setting] = &[
    Setting::new("alerts.backlog_age", "an alert once a due delivery of an endpoint has waited so long, 1 s to 7 d"),
    Setting::new("alerts.backlog_outstanding", "an alert once an endpoint has so many outstanding"),
    Setting::new("alerts.dead_letters", "an alert once so many of an endpoint's deliveries fail for good in the window"),
    Setting::new("alerts.failing", "an alert, and raised, at so many failures of an endpoint in a row: up to ten ascending numbers").more("being-told"),
    Setting::new("alerts.failure_rate", "an alert once such a share of an endpoint's attempts in the window fails, above 0 and up to 1"),
    Setting::new("alerts.failure_rate_attempts", "fewer attempts in the window say nothing"),
    Setting::new("alerts.retention", "how long closed alerts are kept, 1 h to 3650 d"),
    Setting::new("alerts.window", "how far back attempts, dead letters and filter errors count, 1 m to 1 h"),
    Setting::new("auth", "who may call: `none`, `api-key` or `mtls`").more("who-may-call"),
    Setting::new("cloudevents.source", "the `source` of CloudEvents: a URI reference; `{tenant}` stands for the event's tenant").more("receiving"),
    Setting::new("database.connections", "connections to the database this replica opens at most, 6–1,000"),
    Setting::new("database.notify", "whether this replica wakes the others by NOTIFY; without, they find new work within seconds and streams tell of it within some 0.2 s"),
    Setting::new("database.url", "the primary, `postgres://user:password@host:port/database`; `serve` and `migrate` require it, `dev` starts a server of its own and reads the flag alone").secret().env("DATABASE_URL").flag("--database-url"),
    Setting::new("egress.allow_cidrs", "otherwise forbidden ranges that may be dialled, comma-separated (in the file also a list)"),
    Setting::new("egress.allow_http", "plain http receivers"),
    Setting::new("egress.allow_ports", "ports that may be dialled at public addresses, comma-separated (in the file also a list), or `any`; with `egress.allow_http` the default is `443,80`").more("the-way-out"),
    Setting::new("egress.proxy", "the one way out, `http://host:port` or `http://user:password@host:port`").secret().more("the-way-out"),
    Setting::new("egress.proxy_resolves", "whether names are resolved, and judged, by the proxy").more("the-way-out"),
    Setting::new("encryption.keys", "the master keys of secrets at rest, `id:base64,…`, 32 bytes each; the first seals. `serve` requires it, `dev` makes a key of its own").secret().more("secrets-at-rest"),
    Setting::new("encryption.plaintext", "whether secrets are written as they are; keys, where there are any, open alone").more("secrets-at-rest"),
    Setting::new("engine.in_flight_max", "requests under way at once in this replica, about; beyond it each endpoint gets one at a time"),
    Setting::new("grpc.addr", "gRPC and gRPC-Web; port 0 picks one").flag("--grpc-addr"),
    Setting::new("grpc.reflection", "server reflection"),
    Setting::new("limits.calls_per_key", "calls under way of one credential in this replica, open streams among them, 1–16,384"),
    Setting::new("limits.connections_per_address", "connections of one address to this replica, 1–8,192 (all together 8,192); raise it behind a proxy that hides its callers' addresses"),
    Setting::new("limits.payload_bytes", "the largest payload of an event, 1–67,108,864"),
    Setting::new("limits.requests_per_second", "calls of one credential in a second in this replica, with as many at once after a pause; 0 for any number"),
    Setting::new("limits.streams_per_key", "open streams of one credential in this replica, 1–10,240 (all together 10,240)"),
    Setting::new("log.filter", "a tracing filter, such as `info` or `info,hooklane=debug`; `sqlx=warn,sqlx_core::pool=error` go with it where it would say more of these and does not name them").env("HOOKLANE_LOG"),
    Setting::new("log.format", "`text` or `json`"),
    Setting::new("metrics.event_types_max", "event types that metrics tell apart, 0–10,000; all others count as `other`"),
    Setting::new("ops.addr", "`/livez` `/readyz` `/health` `/metrics`; port 0 picks one").flag("--ops-addr"),
    Setting::new("queue.max_outstanding", "outstanding deliveries at most; beyond it Publish answers RESOURCE_EXHAUSTED (`QUEUE_FULL`)"),
    Setting::new("queue.max_outstanding_per_endpoint", "of one endpoint; beyond it the event is accepted and that delivery is FAILED (`QUEUE_FULL`), to be retried later"),
    Setting::new("rate.global_per_second", "requests a second of all replicas together: each that delivers takes an equal part, so give all the same"),
    Setting::new("rate.tenant_per_second", "the same for each tenant; one whose endpoints all fall to one of three replicas gets a third"),
    Setting::new("retention.dead_letters", "how long a failed delivery is a dead letter, 1m–3650d; not longer than `retention.failed`").more("dead-letters"),
    Setting::new("retention.failed", "how long deliveries are kept that failed, expired or were canceled, 1d–3650d").more("how-long-things-are-kept"),
    Setting::new("retention.payloads", "how long events are kept, 1d–3650d, or `longest`: as deliveries; not shorter").more("how-long-things-are-kept"),
    Setting::new("retention.succeeded", "how long deliveries are kept that succeeded, 1d–3650d").more("how-long-things-are-kept"),
    Setting::new("retention.timeline", "how long attempts that failed and other transitions are kept, 1d–3650d, or `longest`: as deliveries; not shorter. Successes are kept with their deliveries, and streams reach back no further").more("how-long-things-are-kept"),
    Setting::new("retry.event_policies", "retries by event type, comma-separated (in the file a list): patterns, a colon, a policy; the first that matches counts").more("retries"),
    Setting::new("retry.policy", "retries of endpoints that do not say: `exponential` (with `initial=1s multiplier=2 max=5m`), `long`, or delays such as `1m 5m 30m`; each with `jitter=0.3 retries=5`").more("retries"),
    Setting::new("roles", "what this replica does: `api`, `worker` or both").flag("--roles"),
    Setting::new("shutdown.grace", "how long requests under way may go on after SIGTERM"),
    Setting::new("tls.cert_file", "switches TLS on: the certificate and what leads from it to a root, in PEM").more("tls"),
    Setting::new("tls.client_ca_file", "who signs the certificates that callers must have, in PEM"),
    Setting::new("tls.clients", "for `auth = \"mtls\"`: a name, a role and a tenant or `*` for each client, comma-separated (in the file a list)").more("who-may-call"),
    Setting::new("tls.key_file", "the certificate's private key, in PEM"),
];

/// One setting.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Setting {
    /// Its name in a file, and as the program calls it.
    pub(crate) key: &'static str,
    /// What it is for and what is allowed, in Markdown without links.
    pub(super) meaning: &'static str,
    /// Its value is never shown, and can be in a file of its own.
    pub(super) is_secret: bool,
    env: Option<&'static str>,
    pub(super) flag: Option<&'static str>,
    /// The chapter of the README that has more.
    pub(super) more: Option<&'static str>,
}

impl Setting {
    const fn new(key: &'static str, meaning: &'static str) -> Self {
        Self { key, meaning, is_secret: false, env: None, flag: None, more: None }
    }

    const fn secret(self) -> Self {
        Self { is_secret: true, ..self }
    }

    const fn env(self, name: &'static str) -> Self {
        Self { env: Some(name), ..self }
    }

    const fn flag(self, name: &'static str) -> Self {
        Self { flag: Some(name), ..self }
    }

    const fn more(self, chapter: &'static str) -> Self {
        Self { more: Some(chapter), ..self }
    }

    /// By its key.
    pub(super) fn find(key: &str) -> Option<&'static Self> {
        SETTINGS.iter().find(|setting| setting.key == key)
    }

    /// Its name in the environment.
    pub(crate) fn variable(&self) -> String {
        self.env.map_or_else(|| format!("HOOKLANE_{}", self.key.replace('.', "_").to_uppercase()), str::to_owned)
    }

    /// The name in the environment of a file with its value; only secrets have one.
    pub(super) fn file_variable(&self) -> Option<String> {
        self.is_secret.then(|| format!("{}_FILE", self.variable()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_sorted_and_each_is_there_once() {
        assert!(SETTINGS.is_sorted_by(|one, next| one.key < next.key));
    }
}
