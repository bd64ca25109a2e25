//! How much one credential may ask for at a time: calls a second, calls under way, open streams. And how whoever holds
//! a stream learns that its credential is over.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::api::status;
use crate::domain::time::Timestamp;

/// What one credential may have.
#[derive(Debug, Clone, Copy)]
pub struct CallerLimits {
    /// Calls begun in a second, with as many at once after a pause; 0 means any number.
    pub requests_per_second: u32,
    /// Calls under way, open streams among them.
    pub calls: u32,
    /// Open streams.
    pub streams: u32,
}

impl CallerLimits {
    /// Of everybody together, where nobody is asked who they are, and of those who ask for the health.
    pub(super) const fn shared(streams: u32) -> Self {
        Self { requests_per_second: 0, calls: CALLS_MAX, streams }
    }
}

/// Calls under way in this process.
pub(super) const CALLS_MAX: u32 = 16_384;

/// Why a credential is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Over {
    /// It was revoked, or has expired.
    Revoked,
    /// It could not be looked at for too long.
    Unknown,
}

/// What one credential has at the moment.
#[derive(Debug)]
pub(super) struct Usage {
    bucket: Bucket,
    calls: Arc<Semaphore>,
    streams: Arc<Semaphore>,
    /// Microseconds of the last call; `i64::MIN` before the first.
    used_at: AtomicI64,
    over: OnceLock<Over>,
    ended: CancellationToken,
}

/// The places that a call takes, given back when it is dropped.
#[derive(Debug)]
pub(super) struct Places {
    _call: OwnedSemaphorePermit,
    _stream: Option<OwnedSemaphorePermit>,
}

impl Usage {
    /// Of a credential that has asked for nothing yet.
    pub(super) fn new(limits: CallerLimits) -> Self {
        Self {
            bucket: Bucket::new(limits.requests_per_second),
            calls: Arc::new(Semaphore::new(limits.calls as usize)),
            streams: Arc::new(Semaphore::new(limits.streams as usize)),
            used_at: AtomicI64::new(i64::MIN),
            over: OnceLock::new(),
            ended: CancellationToken::new(),
        }
    }

    /// Places for one call, unless the credential has what it may have.
    pub(super) fn take(&self, is_stream: bool) -> Result<Places, Status> {
        self.bucket.take(Instant::now()).map_err(status::too_many_requests)?;
        let call = Arc::clone(&self.calls).try_acquire_owned().map_err(|_| status::too_many_calls())?;
        let stream = match is_stream {
            true => {
                let place = Arc::clone(&self.streams).try_acquire_owned();
                Some(place.map_err(|_| status::too_many_streams_of_caller())?)
            }
            false => None,
        };
        Ok(Places { _call: call, _stream: stream })
    }

    /// Notes that it is used now.
    pub(super) fn touch(&self, now: Timestamp) {
        self.used_at.store(now.micros(), Ordering::Relaxed);
    }

    /// When it was used last.
    pub(super) fn used_at(&self) -> Option<Timestamp> {
        Some(self.used_at.load(Ordering::Relaxed)).filter(|at| *at != i64::MIN).map(Timestamp::from_micros)
    }

    /// Ends its streams.
    pub(super) fn end(&self, over: Over) {
        let _ = self.over.set(over);
        self.ended.cancel();
    }

    /// Resolves with the credential's end.
    pub(super) const fn ended(&self) -> &CancellationToken {
        &self.ended
    }

    /// What a stream is told then.
    pub(super) fn farewell(&self) -> Status {
        match self.over.get() {
            Some(Over::Unknown) => status::store_unavailable(),
            Some(Over::Revoked) | None => status::credential_invalid(),
        }
    }
}

/// A token bucket as one number: the time at which it will be full again. Source: the generic cell rate algorithm, ITU-T
/// I.371.
#[derive(Debug)]
struct Bucket {
    /// Nanoseconds between two calls at the rate; 0 where there is none.
    pace: u64,
    started: Instant,
    full_at: AtomicU64,
}

impl Bucket {
    fn new(per_second: u32) -> Self {
        let pace = 1_000_000_000_u64.checked_div(u64::from(per_second)).unwrap_or_default();
        Self { pace, started: Instant::now(), full_at: AtomicU64::new(0) }
    }

    /// Takes one; or says how long until there is one. A second's worth is in the bucket when it is full.
    fn take(&self, now: Instant) -> Result<(), Duration> {
        if self.pace == 0 {
            return Ok(());
        }
        const DEPTH: u64 = 1_000_000_000;
        let now = u64::try_from(now.saturating_duration_since(self.started).as_nanos()).unwrap_or(u64::MAX);
        let mut full_at = self.full_at.load(Ordering::Relaxed);
        loop {
            let next = full_at.max(now).saturating_add(self.pace);
            let wait = next.saturating_sub(now).saturating_sub(DEPTH);
            if wait > 0 {
                return Err(Duration::from_nanos(wait));
            }
            match self.full_at.compare_exchange_weak(full_at, next, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return Ok(()),
                Err(moved) => full_at = moved,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;

    #[test]
    fn a_bucket_gives_its_depth_at_once_and_then_the_rate() {
        let bucket = Bucket::new(10);
        let start = bucket.started;
        let taken = |at: Duration| (0..100).take_while(|_| bucket.take(start + at).is_ok()).count();
        assert_eq!(taken(Duration::ZERO), 10);
        assert_eq!(bucket.take(start), Err(Duration::from_millis(100)));
        assert_eq!(taken(Duration::from_millis(350)), 3);
        assert_eq!(taken(Duration::from_secs(60)), 10);
        let unlimited = Bucket::new(0);
        assert!((0..10_000).all(|_| unlimited.take(start).is_ok()));
    }

    #[test]
    fn places_are_bounded_and_given_back() {
        let usage = Usage::new(CallerLimits { requests_per_second: 0, calls: 2, streams: 1 });
        let stream = usage.take(true).expect("a place");
        assert_eq!(usage.take(true).expect_err("no second stream").code(), Code::ResourceExhausted);
        let call = usage.take(false).expect("the stream that was refused took none");
        assert_eq!(usage.take(false).expect_err("no third call").code(), Code::ResourceExhausted);
        drop((stream, call));
        assert!(usage.take(true).is_ok());
    }

    #[test]
    fn a_stream_is_told_why_its_credential_is_over() {
        let usage = Usage::new(CallerLimits::shared(1));
        usage.end(Over::Revoked);
        usage.end(Over::Unknown);
        assert!(usage.ended().is_cancelled());
        assert_eq!(usage.farewell().code(), Code::Unauthenticated);
        let unknown = Usage::new(CallerLimits::shared(1));
        unknown.end(Over::Unknown);
        assert_eq!(unknown.farewell().code(), Code::Unavailable);
    }
}
