//! gRPC calls by method and code.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::time::Duration;

use prometheus::{Histogram, HistogramVec, IntCounter, IntCounterVec};

/// The codes by their numbers, as the protocol names them.
/// Source: <https://grpc.io/docs/guides/status-codes/>.
const CODES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];
const UNKNOWN: usize = 2;

/// The counters of all methods; each is made when it is first needed.
pub struct Calls {
    ended: IntCounterVec,
    durations: HistogramVec,
    known: RwLock<HashMap<&'static str, Arc<Call>>>,
}

/// The counters of one method.
pub struct Call {
    method: &'static str,
    ended: IntCounterVec,
    codes: [OnceLock<IntCounter>; CODES.len()],
    durations: HistogramVec,
    duration: OnceLock<Histogram>,
}

impl Calls {
    pub(super) fn new(ended: IntCounterVec, durations: HistogramVec) -> Self {
        Self { ended, durations, known: RwLock::default() }
    }

    /// A method's. Names are the program's own, so there are few.
    pub fn of(&self, method: &'static str) -> Arc<Call> {
        if let Some(call) = self.known.read().unwrap_or_else(PoisonError::into_inner).get(method) {
            return Arc::clone(call);
        }
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        let made = || {
            Arc::new(Call {
                method,
                ended: self.ended.clone(),
                codes: std::array::from_fn(|_| OnceLock::new()),
                durations: self.durations.clone(),
                duration: OnceLock::new(),
            })
        };
        Arc::clone(known.entry(method).or_insert_with(made))
    }
}

impl Call {
    /// Counts a call that ended with a code of the protocol; of a stream how long it took says nothing.
    pub fn end(&self, code: usize, took: Option<Duration>) {
        let code = if code < CODES.len() { code } else { UNKNOWN };
        self.codes[code].get_or_init(|| self.ended.with_label_values(&[self.method, CODES[code]])).inc();
        if let Some(took) = took {
            let duration = self.duration.get_or_init(|| self.durations.with_label_values(&[self.method]));
            duration.observe(took.as_secs_f64());
        }
    }
}
