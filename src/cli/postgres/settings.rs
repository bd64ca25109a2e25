//! The server's settings: for a queue on a developer's machine, and each with its reason.
//!
//! They are given on the command line, not written to `postgresql.conf`: a newer Hooklane changes them by starting.

use std::ffi::OsString;
use std::path::Path;

use super::{Durability, PORT};

/// The rest is PostgreSQL's default, as it is in production.
const SETTINGS: &[(&str, &str)] = &[
    // No network: the socket's directory is the only way in.
    ("listen_addresses", ""),
    ("unix_socket_permissions", "0700"),
    // Room for two replicas, their pools and a test's own connections.
    ("max_connections", "100"),
    // The hot tables, their indexes and the newest partitions stay in memory.
    ("shared_buffers", "256MB"),
    // Every statement is short: compiling one costs more than running it, and parallel workers need a large /dev/shm,
    // which containers do not have.
    ("jit", "off"),
    ("max_parallel_workers_per_gather", "0"),
    // Deliveries are found by index on storage without seeks.
    ("random_page_cost", "1.1"),
    // A checkpoint makes every page's next change a full page in the log: they come by time, not by volume.
    ("max_wal_size", "2GB"),
    ("checkpoint_timeout", "15min"),
    // Log files are reused instead of being made while a commit waits.
    ("min_wal_size", "512MB"),
    // Less to write and to fsync after a checkpoint.
    ("wal_compression", "on"),
    // A queue's table is rewritten within minutes: dead rows are looked for often, and removed without pauses.
    ("autovacuum_naptime", "10s"),
    ("autovacuum_vacuum_cost_limit", "2000"),
    // Retention and test set-up touch many partitions in one transaction.
    ("max_locks_per_transaction", "256"),
    // One file that says when and who, in a zone that does not jump.
    ("logging_collector", "off"),
    ("log_destination", "stderr"),
    ("log_line_prefix", "%m [%p] %d "),
    ("log_timezone", "UTC"),
    ("timezone", "UTC"),
];

/// Production's promises, stated so that no `postgresql.conf` takes them back.
const FULL: &[(&str, &str)] = &[("fsync", "on"), ("full_page_writes", "on"), ("synchronous_commit", "on")];

/// The kernel keeps what a killed process wrote, so commits still survive every crash that a test can cause, and they
/// queue behind one another as in production.
const OFF: &[(&str, &str)] = &[("fsync", "off"), ("full_page_writes", "off"), ("synchronous_commit", "on")];

/// The arguments for `postgres`; of a setting given twice the last one holds.
pub(super) fn arguments(durability: Durability, sockets: &Path, extra: &[(String, String)]) -> Vec<OsString> {
    let promises = match durability {
        Durability::Full => FULL,
        Durability::Off => OFF,
    };
    let mut arguments = Vec::new();
    let mut set = |name: &str, value: &str| arguments.extend(["-c".into(), format!("{name}={value}").into()]);
    for (name, value) in SETTINGS.iter().chain(promises) {
        set(name, value);
    }
    for (name, value) in extra {
        set(name, value);
    }
    // Last: everything else relies on them. The value is a list; quotes keep a comma in a path from ending its entry.
    set("unix_socket_directories", &format!("\"{}\"", sockets.to_string_lossy().replace('"', "\"\"")));
    set("port", &PORT.to_string());
    arguments
}
