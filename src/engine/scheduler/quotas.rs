//! The limits that the settings put on requests: of the whole installation, and of each tenant.
//!
//! Each is shared among the replicas that drive lanes, in equal parts, so that nobody has to ask anybody. A token is taken
//! when a delivery is claimed, and given back where the claim got none. Who gets nothing waits in turn: lanes of other
//! tenants where it is the tenant's limit, and all where it is the installation's.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::time::{Duration, Instant};

use crate::domain::fields::Tenant;
use crate::domain::id::EndpointId;
use crate::domain::rate::{Bucket, RateLimit};

/// What the settings allow; `None` is no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Rates {
    /// Of all replicas together.
    pub global: Option<RateLimit>,
    /// Of all replicas together, for each tenant.
    pub tenant: Option<RateLimit>,
}

/// The limits as they are shared now.
pub(super) struct Quotas {
    rates: Rates,
    drivers: u32,
    global: Option<Bucket>,
    tenants: HashMap<Tenant, Quota>,
    /// When lanes of which tenant may go on.
    openings: BTreeSet<(Instant, Tenant)>,
}

struct Quota {
    bucket: Bucket,
    /// Lanes that got nothing, in turn.
    waiting: VecDeque<EndpointId>,
    opening: Option<Instant>,
}

/// What a lane gets that asked for rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Grant {
    /// So many of them; at least one.
    Rows(u32),
    /// None until its tenant has a token.
    TenantWaits,
    /// None until then, and nor does any other.
    AllWait(Instant),
}

/// Waits are gathered, so that those who wait share their claims.
const GRAIN: Duration = Duration::from_millis(20);

impl Quotas {
    pub(super) fn new(rates: Rates, now: Instant) -> Self {
        let global = rates.global.map(|limit| Bucket::empty(limit, now));
        Self { rates, drivers: 1, global, tenants: HashMap::new(), openings: BTreeSet::new() }
    }

    /// So many replicas drive lanes from now on.
    pub(super) fn share_among(&mut self, drivers: usize, now: Instant) {
        self.drivers = u32::try_from(drivers).unwrap_or(u32::MAX).max(1);
        let (drivers, rates) = (self.drivers, self.rates);
        self.global.iter_mut().zip(rates.global).for_each(|(bucket, limit)| bucket.change(part(limit, drivers), now));
        if let Some(limit) = rates.tenant {
            self.tenants.values_mut().for_each(|quota| quota.bucket.change(part(limit, drivers), now));
        }
    }

    /// Whether there are no limits.
    pub(super) const fn are_none(&self) -> bool {
        self.rates.global.is_none() && self.rates.tenant.is_none()
    }

    /// Whether it matters whose a lane is.
    pub(super) const fn are_by_tenant(&self) -> bool {
        self.rates.tenant.is_some()
    }

    /// Takes tokens for the rows that a lane asks for. One that gets none because of its tenant is kept here.
    pub(super) fn take(
        &mut self,
        endpoint: EndpointId,
        tenant: Option<&Tenant>,
        rows: u32,
        since: Instant,
        now: Instant,
    ) -> Grant {
        let at_most = self.global.map_or(rows, |bucket| bucket.count_within(Duration::ZERO, now).min(rows));
        if at_most == 0 {
            return Grant::AllWait(self.global.map_or(now, |bucket| bucket.next_at(now)) + GRAIN);
        }
        let granted = match (tenant, self.rates.tenant) {
            (Some(tenant), Some(limit)) => {
                let empty = || Quota {
                    bucket: Bucket::empty(part(limit, self.drivers), since),
                    waiting: VecDeque::new(),
                    opening: None,
                };
                let quota = self.tenants.entry(tenant.clone()).or_insert_with(empty);
                let granted = quota.bucket.take_up_to(at_most, now);
                if granted == 0 {
                    quota.waiting.push_back(endpoint);
                    if quota.opening.is_none() {
                        let at = quota.bucket.next_at(now) + GRAIN;
                        quota.opening = Some(at);
                        self.openings.insert((at, tenant.clone()));
                    }
                    return Grant::TenantWaits;
                }
                granted
            }
            _ => at_most,
        };
        if let Some(bucket) = &mut self.global {
            bucket.take_up_to(granted, now);
        }
        Grant::Rows(granted)
    }

    /// Gives back what was taken for rows that there were none of.
    pub(super) fn give_back(&mut self, tenant: Option<&Tenant>, rows: u32) {
        self.global.iter_mut().for_each(|bucket| bucket.give_back(rows));
        if let Some(quota) = tenant.and_then(|tenant| self.tenants.get_mut(tenant)) {
            quota.bucket.give_back(rows);
        }
    }

    /// The lanes that may ask again, those first that wait longest.
    pub(super) fn opened(&mut self, now: Instant) -> Vec<EndpointId> {
        let mut opened = Vec::new();
        while let Some((_, tenant)) = self.openings.first().filter(|(at, _)| *at <= now).cloned() {
            self.openings.pop_first();
            if let Some(quota) = self.tenants.get_mut(&tenant) {
                quota.opening = None;
                opened.extend(quota.waiting.drain(..));
            }
        }
        opened
    }

    /// When there will be such, if at any time.
    pub(super) fn next_opening(&self) -> Option<Instant> {
        self.openings.first().map(|(at, _)| *at)
    }

    /// Forgets tenants of which nothing is lost by it.
    pub(super) fn forget_quiet(&mut self, now: Instant) {
        self.tenants.retain(|_, quota| !quota.waiting.is_empty() || !quota.bucket.is_full(now));
    }
}

/// One of `drivers` equal parts; the burst is that of the part's own rate.
fn part(limit: RateLimit, drivers: u32) -> RateLimit {
    RateLimit { per_second: limit.per_second / f64::from(drivers), burst: limit.burst.div_ceil(drivers) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn rates(global: Option<f64>, tenant: Option<f64>) -> Rates {
        let limit = |per_second| RateLimit { per_second, burst: 0 };
        Rates { global: global.map(limit), tenant: tenant.map(limit) }
    }

    fn endpoint(n: u128) -> EndpointId {
        EndpointId::from_uuid(uuid::Uuid::from_u128(n))
    }

    fn tenant(name: &str) -> Tenant {
        Tenant::parse(name).expect("a tenant")
    }

    #[test]
    fn without_limits_everything_is_granted() {
        let now = Instant::now();
        let mut quotas = Quotas::new(Rates::default(), now);
        assert_eq!(quotas.take(endpoint(1), None, 64, now, now), Grant::Rows(64));
        assert!(!quotas.are_by_tenant() && quotas.next_opening().is_none());
    }

    #[test]
    fn the_installations_limit_is_shared_in_equal_parts() {
        let start = Instant::now();
        let mut quotas = Quotas::new(rates(Some(30.0), None), start);
        let Grant::AllWait(at) = quotas.take(endpoint(1), None, 64, start, start) else { panic!("it begins empty") };
        assert!(at > start && at < start + SECOND);
        quotas.share_among(3, start);
        let now = start + SECOND;
        assert_eq!(quotas.take(endpoint(1), None, 64, start, now), Grant::Rows(10));
        assert!(matches!(quotas.take(endpoint(2), None, 64, start, now), Grant::AllWait(_)));
        quotas.give_back(None, 4);
        assert_eq!(quotas.take(endpoint(2), None, 64, start, now), Grant::Rows(4));
    }

    #[test]
    fn a_tenant_at_its_limit_waits_in_turn_and_holds_nobody_else_up() {
        let start = Instant::now();
        let mut quotas = Quotas::new(rates(None, Some(2.0)), start);
        let (busy, other) = (tenant("busy"), tenant("other"));
        let now = start + SECOND;
        assert_eq!(quotas.take(endpoint(9), Some(&busy), 64, start, now), Grant::Rows(2));
        for lane in [3, 1, 2] {
            assert_eq!(quotas.take(endpoint(lane), Some(&busy), 1, start, now), Grant::TenantWaits);
        }
        assert_eq!(quotas.take(endpoint(4), Some(&other), 1, start, now), Grant::Rows(1));
        let at = quotas.next_opening().expect("it opens");
        assert!(quotas.opened(at - Duration::from_millis(1)).is_empty());
        assert_eq!(quotas.opened(at), [3, 1, 2].map(endpoint));
        assert_eq!(quotas.take(endpoint(3), Some(&busy), 64, start, at), Grant::Rows(1));
        quotas.forget_quiet(at);
        assert!(quotas.tenants.contains_key(&busy), "it has spent what it had");
        quotas.forget_quiet(at + 10 * SECOND);
        assert!(quotas.tenants.is_empty());
    }
}
