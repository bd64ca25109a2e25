//! Who wants what: each tenant's endpoints in memory, for matching events at publish.
//!
//! An entry says which configuration version it is of; the publish statement refuses a batch that was matched against
//! an older one, so an entry is never trusted, only likely right.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{self, AtomicBool};
use std::sync::{Arc, Mutex, PoisonError};

use sqlx::Row;

use super::connections::Connections;
use super::endpoints::rows::read_patterns;
use super::error::Result;
use super::types::stored;
use crate::domain::endpoint::{Ordering, PayloadFormat};
use crate::domain::fields::Tenant;
use crate::domain::filter::Filter;
use crate::domain::id::EndpointId;
use crate::domain::pattern::{EventPattern, any_matches};

/// Known tenants at most; beyond it the cache starts anew.
const TENANTS_MAX: usize = 10_000;

/// The tenants seen lately.
#[derive(Debug, Default)]
pub(super) struct Directory {
    tenants: Mutex<HashMap<Tenant, Arc<TenantEndpoints>>>,
    /// Whether any tenant that was read had a filter.
    has_filters: AtomicBool,
}

/// One tenant's endpoints at one configuration version.
#[derive(Debug, Default)]
pub(super) struct TenantEndpoints {
    pub(super) version: i64,
    endpoints: Vec<Recipient>,
    /// What an event must satisfy, by the place of the endpoint; the common one has none.
    filters: HashMap<usize, Filter>,
    by_id: HashMap<EndpointId, usize>,
    /// Endpoints whose patterns are all exact types, by type: the common case costs one look-up.
    exact: HashMap<String, Vec<usize>>,
    /// The others, matched one by one.
    patterned: Vec<(usize, Vec<EventPattern>)>,
}

/// An endpoint as far as publishing goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Recipient {
    pub(super) id: EndpointId,
    pub(super) format: PayloadFormat,
    pub(super) ordering: Ordering,
}

const LOAD: &str = "
select coalesce(t.config_version, 0) as version, e.id, e.event_types, e.payload_format, e.filter, e.ordering
from (select $1::text as tenant) q
left join tenants t on t.tenant = q.tenant
left join endpoints e on e.tenant = q.tenant and e.delete_time is null and e.inline_digest is null
order by e.id";

const VERSIONS: &str = "select tenant, config_version from tenants where tenant = any($1)";

impl Directory {
    /// Reads anew those of the tenants that have changed since they were read.
    pub(super) async fn refresh(&self, pool: &Connections, tenants: &HashSet<&Tenant>) -> Result<()> {
        let names: Vec<&str> = tenants.iter().map(|tenant| tenant.as_str()).collect();
        let versions: Vec<(String, i64)> = sqlx::query_as(VERSIONS).bind(names).fetch_all(pool).await?;
        for (name, version) in versions {
            let tenant = Tenant::from_stored(name);
            if self.known(&tenant).is_none_or(|known| known.version != version) {
                self.load(pool, &tenant).await?;
            }
        }
        Ok(())
    }

    /// The tenant's endpoints as last read, if they were.
    pub(super) fn known(&self, tenant: &Tenant) -> Option<Arc<TenantEndpoints>> {
        self.tenants.lock().unwrap_or_else(PoisonError::into_inner).get(tenant).cloned()
    }

    /// The tenant's endpoints, where filters are known at all: most installations have none, and need not look.
    pub(super) fn known_with_filters(&self, tenant: &Tenant) -> Option<Arc<TenantEndpoints>> {
        if self.has_filters.load(atomic::Ordering::Relaxed) { self.known(tenant) } else { None }
    }

    /// Reads the tenant's endpoints anew.
    pub(super) async fn load(&self, pool: &Connections, tenant: &Tenant) -> Result<Arc<TenantEndpoints>> {
        let rows = sqlx::query(LOAD).bind(tenant.as_str()).fetch_all(pool).await?;
        let mut loaded = TenantEndpoints {
            version: rows.first().map_or(Ok(0), |row| row.try_get("version"))?,
            ..TenantEndpoints::default()
        };
        // What was compiled before need not be again.
        let before = self.known(tenant);
        let compiled: HashMap<&str, &Filter> =
            before.iter().flat_map(|before| before.filters.values()).map(|filter| (filter.as_str(), filter)).collect();
        for row in &rows {
            let Some(id) = row.try_get::<Option<sqlx::types::Uuid>, _>("id")? else { continue };
            let format = stored("payload format", row.try_get("payload_format")?, PayloadFormat::from_number)?;
            let patterns: Vec<String> = row.try_get("event_types")?;
            let filter = row.try_get::<Option<&str>, _>("filter")?;
            let filter =
                filter.map(|text| compiled.get(text).map_or_else(|| Filter::from_stored(text), |&f| f.clone()));
            let ordering = stored("ordering", row.try_get("ordering")?, Ordering::from_number)?;
            loaded.add(
                Recipient { id: EndpointId::from_uuid(id), format, ordering },
                read_patterns(&patterns)?,
                filter,
            );
        }
        if !loaded.filters.is_empty() {
            self.has_filters.store(true, atomic::Ordering::Relaxed);
        }
        let loaded = Arc::new(loaded);
        let mut tenants = self.tenants.lock().unwrap_or_else(PoisonError::into_inner);
        if tenants.len() >= TENANTS_MAX {
            tenants.clear();
        }
        tenants.insert(tenant.clone(), Arc::clone(&loaded));
        Ok(loaded)
    }
}

impl TenantEndpoints {
    fn add(&mut self, recipient: Recipient, patterns: Vec<EventPattern>, filter: Option<Filter>) {
        let at = self.endpoints.len();
        self.filters.extend(filter.map(|filter| (at, filter)));
        self.by_id.insert(recipient.id, at);
        self.endpoints.push(recipient);
        let all_exact = patterns.iter().all(|pattern| matches!(pattern, EventPattern::Exactly(_)));
        if patterns.is_empty() || !all_exact {
            self.patterned.push((at, patterns));
            return;
        }
        for pattern in patterns {
            if let EventPattern::Exactly(event_type) = pattern {
                let wanted_by = self.exact.entry(event_type).or_default();
                if wanted_by.last() != Some(&at) {
                    wanted_by.push(at);
                }
            }
        }
    }

    /// Every endpoint that wants an event of this type, oldest first, whatever its filter says.
    pub(super) fn matching(&self, event_type: &str) -> Vec<Recipient> {
        self.places(event_type).into_iter().map(|at| self.endpoints[at]).collect()
    }

    /// Whether one of those that want an event of this type has a filter.
    pub(super) fn has_filters(&self, event_type: &str) -> bool {
        !self.filters.is_empty() && self.places(event_type).iter().any(|at| self.filters.contains_key(at))
    }

    /// The filters of those that want an event of this type.
    pub(super) fn filters(&self, event_type: &str) -> Vec<(EndpointId, Filter)> {
        if self.filters.is_empty() {
            return Vec::new();
        }
        let places = self.places(event_type).into_iter();
        places.filter_map(|at| Some((self.endpoints[at].id, self.filters.get(&at)?.clone()))).collect()
    }

    fn places(&self, event_type: &str) -> Vec<usize> {
        let exact = self.exact.get(event_type).into_iter().flatten().copied();
        let patterned =
            self.patterned.iter().filter(|(_, patterns)| any_matches(patterns, event_type)).map(|(at, _)| *at);
        let mut wanted: Vec<usize> = exact.chain(patterned).collect();
        wanted.sort_unstable();
        wanted
    }

    /// One endpoint, whatever it wants.
    pub(super) fn recipient(&self, id: EndpointId) -> Option<Recipient> {
        self.by_id.get(&id).map(|at| self.endpoints[*at])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exact_types_and_patterns_are_found_once_each_and_in_order() {
        let mut tenant = TenantEndpoints::default();
        let wants = [vec!["order.*", "order.created"], vec!["order.created", "order.created"], vec![], vec!["user.*"]];
        let ids: Vec<EndpointId> = (0..4).map(|n| EndpointId::from_uuid(sqlx::types::Uuid::from_u128(n))).collect();
        for (place, (id, texts)) in ids.iter().zip(wants).enumerate() {
            let patterns = texts.iter().map(|text| EventPattern::parse(text).expect("valid")).collect();
            let filter = (place % 2 == 1).then(|| Filter::from_stored("true"));
            tenant.add(
                Recipient { id: *id, format: PayloadFormat::Raw, ordering: Ordering::Unordered },
                patterns,
                filter,
            );
        }
        let found = |event_type| tenant.matching(event_type).iter().map(|r| r.id).collect::<Vec<_>>();
        assert_eq!(found("order.created"), ids[..3]);
        assert_eq!(found("user.deleted"), ids[2..]);
        assert_eq!(found("hooklane.endpoint.failing"), []);
        let filtered = |event_type| tenant.filters(event_type).iter().map(|(id, _)| *id).collect::<Vec<_>>();
        assert_eq!(
            (filtered("order.created"), filtered("user.deleted"), filtered("a")),
            (vec![ids[1]], vec![ids[3]], vec![])
        );
    }
}
