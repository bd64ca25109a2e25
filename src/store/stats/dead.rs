//! How many dead letters there are: counted when it is asked while they are few, and remembered for a while where that
//! takes long.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::Store;
use crate::domain::fields::Tenant;
use crate::store::DeadLetterFilter;
use crate::store::error::Result;
use crate::telemetry::log::tried_again;

/// Dead letters that are counted each time.
const EXACT_MAX: i64 = 100_000;
/// What is remembered is counted again after this at the earliest, and after so many times what counting took.
const EVERY_MIN: Duration = Duration::from_secs(10);
const SHARE: u32 = 200;
/// Tenants whose counts are remembered.
const TENANTS_MAX: usize = 10_000;

/// By `settled_failed_dead_tenant` or `settled_failed_dead`.
const COUNT_SOME: &str = "
select count(*) from (
  select from settled_failed f
  where f.state = 5 and f.dismiss_time is null and f.settle_time > now() - make_interval(secs => $1)
    and ($2::text is null or f.tenant = $2)
  limit $3 + 1
) f";

/// What is remembered.
#[derive(Debug, Default)]
pub(in crate::store) struct DeadCounts(Mutex<HashMap<Option<Tenant>, Known>>);

#[derive(Debug, Clone, Copy)]
struct Known {
    count: u64,
    at: Instant,
    took: Duration,
    is_being_counted: bool,
}

impl Store {
    /// How many dead letters there are. Of more than 100,000, how many there were a while ago.
    pub(in crate::store) async fn count_dead_letters(self: &Arc<Self>, tenant: Option<&Tenant>) -> Result<u64> {
        let some: i64 = sqlx::query_scalar(COUNT_SOME)
            .bind(self.retention.dead_letters.as_secs_f64())
            .bind(tenant.map(Tenant::as_str))
            .bind(EXACT_MAX)
            .fetch_one(&self.reader)
            .await?;
        if some <= EXACT_MAX {
            return Ok(u64::try_from(some).unwrap_or_default());
        }
        let tenant = tenant.cloned();
        let Some((count, is_old)) = self.dead_counts.known(&tenant) else {
            return self.count_all_dead_letters(tenant).await;
        };
        if is_old {
            let store = Arc::clone(self);
            tokio::spawn(async move {
                if let Err(error) = store.count_all_dead_letters(tenant).await {
                    tried_again!(error, "dead letters could not be counted");
                }
            });
        }
        Ok(count)
    }

    async fn count_all_dead_letters(&self, tenant: Option<Tenant>) -> Result<u64> {
        let began = Instant::now();
        let filter = DeadLetterFilter { tenant: tenant.clone(), ..DeadLetterFilter::default() };
        let counted = self.dismiss_dead_letters(&filter, false).await;
        let (at, took) = (Instant::now(), began.elapsed());
        let mut known = self.dead_counts.0.lock().unwrap_or_else(PoisonError::into_inner);
        match counted {
            Ok(counted) => {
                if known.len() >= TENANTS_MAX {
                    known.clear();
                }
                known.insert(tenant, Known { count: counted.matched, at, took, is_being_counted: false });
                Ok(counted.matched)
            }
            Err(error) => {
                known.remove(&tenant);
                Err(error)
            }
        }
    }
}

impl DeadCounts {
    /// What is known of a tenant, and whether the caller is to count anew: one at a time.
    fn known(&self, tenant: &Option<Tenant>) -> Option<(u64, bool)> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = all.get_mut(tenant)?;
        let is_old = !known.is_being_counted && known.at.elapsed() > EVERY_MIN.max(known.took * SHARE);
        known.is_being_counted |= is_old;
        Some((known.count, is_old))
    }
}
