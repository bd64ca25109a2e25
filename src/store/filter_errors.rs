//! Events on which endpoints' filters failed: counted here and put on record now and then, so that a filter that fails on
//! every event costs no write for each.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use prometheus::IntCounter;
use sqlx::types::Uuid;

use super::Store;
use super::error::Result;
use crate::domain::id::EndpointId;

/// What is not on record yet; lost with the process.
#[derive(Debug)]
pub(super) struct FilterErrors {
    counts: Mutex<BTreeMap<EndpointId, i64>>,
    /// All of them, ever.
    counter: IntCounter,
}

impl FilterErrors {
    pub(super) fn new(counter: IntCounter) -> Self {
        Self { counts: Mutex::default(), counter }
    }

    /// Counts an event on which these endpoints' filters failed.
    pub(super) fn note(&self, endpoints: &[EndpointId]) {
        if endpoints.is_empty() {
            return;
        }
        self.counter.inc_by(endpoints.len() as u64);
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        for endpoint in endpoints {
            *counts.entry(*endpoint).or_default() += 1;
        }
    }

    fn take(&self) -> BTreeMap<EndpointId, i64> {
        std::mem::take(&mut *self.counts.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn give_back(&self, counts: BTreeMap<EndpointId, i64>) {
        let mut kept = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        for (endpoint, count) in counts {
            *kept.entry(endpoint).or_default() += count;
        }
    }
}

/// Locks the endpoints' health in id order, as completions do.
const RECORD: &str = "
update endpoint_health h set filter_error_count = h.filter_error_count + f.count
from unnest($1::uuid[], $2::bigint[]) as f (endpoint_id, count)
where h.endpoint_id = f.endpoint_id";

impl Store {
    /// Puts on record on how many events filters have failed since the last time.
    pub async fn record_filter_errors(&self) -> Result<()> {
        let counts = self.filter_errors.take();
        if counts.is_empty() {
            return Ok(());
        }
        let (ids, numbers): (Vec<Uuid>, Vec<i64>) = counts.iter().map(|(id, count)| (id.uuid(), *count)).unzip();
        match sqlx::query(RECORD).bind(ids).bind(numbers).execute(&self.engine).await {
            Ok(_) => {
                let noted = counts.into_iter();
                self.tallies.note_filter_errors(noted.map(|(id, count)| (id, count.unsigned_abs())));
                Ok(())
            }
            Err(error) => {
                self.filter_errors.give_back(counts);
                Err(error.into())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn errors() -> FilterErrors {
        FilterErrors::new(IntCounter::new("errors", "Failures.").expect("a counter"))
    }

    #[test]
    fn every_failure_is_in_the_metric() {
        let endpoints = [1, 2].map(|number| EndpointId::from_uuid(Uuid::from_u128(number)));
        let errors = errors();
        errors.note(&endpoints);
        errors.note(&endpoints[..1]);
        errors.note(&[]);
        assert_eq!(errors.counter.get(), 3);
    }

    #[test]
    fn what_could_not_be_recorded_is_kept_beside_what_came_meanwhile() {
        let [one, other] = [1, 2].map(|number| EndpointId::from_uuid(Uuid::from_u128(number)));
        let errors = errors();
        errors.note(&[one, other]);
        let taken = errors.take();
        errors.note(&[one]);
        errors.give_back(taken);
        assert_eq!(errors.take(), BTreeMap::from([(one, 2), (other, 1)]));
        assert!(errors.take().is_empty());
    }
}
