//! Every metric there is: its name, its type, its labels and what it tells. What is not in this table cannot be made.
//!
//! Base units (seconds, bytes) and no unit for numbers of things. Labels have few values, whatever is delivered: no ids.

/// One metric.
#[derive(Debug, Clone, Copy)]
pub(super) struct Family {
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    pub(super) labels: &'static [&'static str],
    pub(super) help: &'static str,
}

/// Its type.
#[derive(Debug, Clone, Copy)]
pub(super) enum Kind {
    Counter,
    Gauge,
    /// The upper bounds of its buckets.
    Histogram(&'static [f64]),
}

/// Of requests to receivers: the longest timeout of an endpoint is 300 s.
const REQUESTS: &[f64] = &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0];
/// From a few milliseconds to the last retry of the preset `long`.
const END_TO_END: &[f64] = &[
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1_800.0, 7_200.0, 43_200.0,
    172_800.0,
];
/// Of statements, which end within 10 s.
const STATEMENTS: &[f64] = &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
/// Of calls, which are answered within 60 s.
const CALLS: &[f64] = &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0];
/// Rows of one statement.
const ROWS: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1_024.0];

/// The table, by name.
pub(super) const FAMILIES: &[Family] = &[
    Family {
        name: "webhook_attempts_total",
        kind: Kind::Counter,
        labels: &["outcome"],
        help: "Ended attempts, by what came of them. Counted by the replica that put them on record.",
    },
    Family {
        name: "webhook_build_info",
        kind: Kind::Gauge,
        labels: &["version"],
        help: "Always 1, with the version of the program.",
    },
    Family {
        name: "webhook_claim_batch_size",
        kind: Kind::Histogram(ROWS),
        labels: &[],
        help: "Deliveries that a claim gave.",
    },
    Family {
        name: "webhook_claim_duration_seconds",
        kind: Kind::Histogram(STATEMENTS),
        labels: &[],
        help: "How long a claim took in the database.",
    },
    Family {
        name: "webhook_claims_with_publish_total",
        kind: Kind::Counter,
        labels: &[],
        help: "Deliveries that were claimed by the statement which published them, and needed no claim of their own.",
    },
    Family {
        name: "webhook_commit_batch_size",
        kind: Kind::Histogram(ROWS),
        labels: &["kind"],
        help: "What one commit held: events (kind publish) or results (kind complete).",
    },
    Family {
        name: "webhook_commit_duration_seconds",
        kind: Kind::Histogram(STATEMENTS),
        labels: &["kind"],
        help: "How long the commit of a batch took in the database.",
    },
    Family {
        name: "webhook_database_connections",
        kind: Kind::Gauge,
        labels: &["pool", "state"],
        help: "This replica's open connections: in use (busy) or not (idle).",
    },
    Family {
        name: "webhook_database_up",
        kind: Kind::Gauge,
        labels: &[],
        help: "Whether the database answered this replica's last look at it.",
    },
    Family {
        name: "webhook_dead_letters",
        kind: Kind::Gauge,
        labels: &[],
        help: "Dead letters on the database, read every 10 s (more rarely where that takes long); every replica reports \
               the same.",
    },
    Family {
        name: "webhook_deliveries_total",
        kind: Kind::Counter,
        labels: &["status"],
        help: "Deliveries that came to an end, by how. One that is retried by hand ends again.",
    },
    Family {
        name: "webhook_delivery_duration_seconds",
        kind: Kind::Histogram(REQUESTS),
        labels: &[],
        help: "How long requests to receivers took, failed ones too.",
    },
    Family {
        name: "webhook_end_to_end_seconds",
        kind: Kind::Histogram(END_TO_END),
        labels: &[],
        help: "From the publish of an event to the receiver's 2xx, retries and waits included.",
    },
    Family {
        name: "webhook_endpoints",
        kind: Kind::Gauge,
        labels: &["state"],
        help: "Registered endpoints on the database, read every 10 s; every replica reports the same.",
    },
    Family {
        name: "webhook_events_total",
        kind: Kind::Counter,
        labels: &["event_type"],
        help: "Committed events. Types beyond metrics.event_types_max count as other.",
    },
    Family {
        name: "webhook_filter_errors_total",
        kind: Kind::Counter,
        labels: &[],
        help: "Events on which an endpoint's filter failed, once for each such endpoint.",
    },
    Family {
        name: "webhook_grpc_request_duration_seconds",
        kind: Kind::Histogram(CALLS),
        labels: &["method"],
        help: "How long calls took to their last byte; streams are not among them.",
    },
    Family {
        name: "webhook_grpc_requests_total",
        kind: Kind::Counter,
        labels: &["method", "code"],
        help: "Ended gRPC calls; a stream is counted when it ends.",
    },
    Family {
        name: "webhook_guard_refusals_total",
        kind: Kind::Counter,
        labels: &[],
        help: "Requests to receivers that the guard forbade.",
    },
    Family {
        name: "webhook_lanes",
        kind: Kind::Gauge,
        labels: &[],
        help: "Endpoints that this replica is delivering to, or was a moment ago.",
    },
    Family {
        name: "webhook_open_circuits",
        kind: Kind::Gauge,
        labels: &[],
        help: "Endpoints on the database whose circuit is open or half open, read every 10 s; every replica reports the \
               same.",
    },
    Family {
        name: "webhook_queue_oldest_seconds",
        kind: Kind::Gauge,
        labels: &[],
        help: "For how long the delivery that is due longest has waited, at endpoints that are active and whose circuit is \
               closed. 0 on replicas that do not deliver.",
    },
    Family {
        name: "webhook_queue_size",
        kind: Kind::Gauge,
        labels: &[],
        help: "Deliveries that are pending, in flight or wait for a retry, as this replica counts them.",
    },
    Family {
        name: "webhook_replicas",
        kind: Kind::Gauge,
        labels: &[],
        help: "Replicas that run on the database, read every 10 s; every replica reports the same.",
    },
    Family {
        name: "webhook_requests_in_flight",
        kind: Kind::Gauge,
        labels: &[],
        help: "This replica's requests to receivers that are under way.",
    },
    Family {
        name: "webhook_spans_dropped_total",
        kind: Kind::Counter,
        labels: &[],
        help: "Spans of traces that the collector did not take, or that came faster than it took them.",
    },
    Family {
        name: "webhook_stream_lag_seconds",
        kind: Kind::Gauge,
        labels: &[],
        help: "For how long the live stream of this replica has not read all there is; 0 without subscribers.",
    },
    Family {
        name: "webhook_stream_subscribers",
        kind: Kind::Gauge,
        labels: &[],
        help: "Open streams of deliveries on this replica.",
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_in_order_and_says_what_each_is() {
        assert!(FAMILIES.is_sorted_by(|one, next| one.name < next.name));
        for family in FAMILIES {
            let name = family.name;
            assert!(name.starts_with("webhook_") && family.help.ends_with('.'), "{name}");
            assert_eq!(name.ends_with("_total"), matches!(family.kind, Kind::Counter), "{name}");
            if let Kind::Histogram(bounds) = family.kind {
                assert!(bounds.is_sorted() && bounds.len() <= 20, "{name}");
            }
        }
    }
}
