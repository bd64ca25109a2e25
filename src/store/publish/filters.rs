//! Which of the endpoints that want an event's type refuse the event itself: their filters' word, asked for before the
//! event is queued for its commit.
//!
//! The committer never evaluates: it takes verdicts that are of the configuration it matches against, and sends an event
//! without such back here. What is cheap is evaluated where the caller waits, the rest on threads of its own, of which
//! few run at once: no tenant's filters keep others from a processor.

use std::collections::HashSet;
use std::thread::available_parallelism;

use tokio::sync::Semaphore;

use crate::domain::event::NewEvent;
use crate::domain::filter::{Budget, Facts, Failure, Filter};
use crate::domain::id::EndpointId;
use crate::store::directory::TenantEndpoints;

/// What filters said of an event.
#[derive(Debug, Default)]
pub(super) struct Verdicts {
    /// The tenant's configuration that was asked.
    pub(super) version: i64,
    /// Who does not want it.
    pub(super) refused: HashSet<EndpointId>,
    /// Those of them whose filter failed.
    pub(super) failed: Vec<EndpointId>,
}

/// Up to so large a payload and so many filters an event is judged in place: less than a millisecond, whatever they say.
const IN_PLACE_BYTES_MAX: usize = 16 * 1024;
const IN_PLACE_FILTERS_MAX: usize = 16;

/// Where filters are evaluated that may take their time.
#[derive(Debug)]
pub(in crate::store) struct Judges(Semaphore);

impl Default for Judges {
    /// Half the processors.
    fn default() -> Self {
        Self(Semaphore::new(available_parallelism().map_or(1, |count| count.get() / 2).max(1)))
    }
}

impl Judges {
    /// Asks the filters of those that want the event's type.
    pub(super) async fn judge(&self, tenant: &TenantEndpoints, event: &NewEvent) -> Verdicts {
        let filters = tenant.filters(event.event_type.as_str());
        let version = tenant.version;
        if filters.is_empty() {
            return Verdicts { version, ..Verdicts::default() };
        }
        if event.payload.len() <= IN_PLACE_BYTES_MAX && filters.len() <= IN_PLACE_FILTERS_MAX {
            let (verdicts, is_costly) = ask(version, &filters, event, Budget::modest());
            if !is_costly {
                return verdicts;
            }
        }
        // Never closed.
        let _turn = self.0.acquire().await;
        let (asked, event) = (filters.clone(), event.clone());
        let asking = tokio::task::spawn_blocking(move || ask(version, &asked, &event, Budget::default()).0);
        asking.await.unwrap_or_else(|_| {
            // A panic has been reported by its hook. Who cannot be asked has failed.
            let failed: Vec<_> = filters.into_iter().map(|(id, _)| id).collect();
            Verdicts { version, refused: failed.iter().copied().collect(), failed }
        })
    }
}

/// Asks one after the other; answers whether one of them took more steps than it might, too.
fn ask(version: i64, filters: &[(EndpointId, Filter)], event: &NewEvent, mut budget: Budget) -> (Verdicts, bool) {
    let facts = Facts::of(event);
    let mut verdicts = Verdicts { version, ..Verdicts::default() };
    let mut is_costly = false;
    for (id, filter) in filters {
        match filter.judge(&facts, &mut budget) {
            Ok(true) => continue,
            Ok(false) => {}
            Err(failure) => {
                is_costly |= failure == Failure::TooCostly;
                verdicts.failed.push(*id);
            }
        }
        verdicts.refused.insert(*id);
    }
    (verdicts, is_costly)
}
