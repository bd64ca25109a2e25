//! Who wants what: each tenant's endpoints in memory, for matching events at publish.
//!
//! An entry says which configuration version it is of; the publish statement refuses a batch that was matched against
//! an older one, so an entry is never trusted, only likely right.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use sqlx::{PgPool, Row};

use super::endpoints::read_patterns;
use super::error::Result;
use super::types::stored;
use crate::domain::endpoint::PayloadFormat;
use crate::domain::fields::Tenant;
use crate::domain::id::EndpointId;
use crate::domain::pattern::{EventPattern, any_matches};

/// Known tenants at most; beyond it the cache starts anew.
const TENANTS_MAX: usize = 10_000;

/// The tenants seen lately.
#[derive(Debug, Default)]
pub(super) struct Directory {
    tenants: Mutex<HashMap<Tenant, Arc<TenantEndpoints>>>,
}

/// One tenant's endpoints at one configuration version.
#[derive(Debug)]
pub(super) struct TenantEndpoints {
    pub(super) version: i64,
    endpoints: Vec<Recipient>,
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
}

const LOAD: &str = "
select coalesce(t.config_version, 0) as version, e.id, e.event_types, e.payload_format
from (select $1::text as tenant) q
left join tenants t on t.tenant = q.tenant
left join endpoints e on e.tenant = q.tenant and e.delete_time is null
order by e.id";

const VERSIONS: &str = "select tenant, config_version from tenants where tenant = any($1)";

impl Directory {
    /// Reads anew those of the tenants that have changed since they were read.
    pub(super) async fn refresh(&self, pool: &PgPool, tenants: &HashSet<&Tenant>) -> Result<()> {
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

    /// Reads the tenant's endpoints anew.
    pub(super) async fn load(&self, pool: &PgPool, tenant: &Tenant) -> Result<Arc<TenantEndpoints>> {
        let rows = sqlx::query(LOAD).bind(tenant.as_str()).fetch_all(pool).await?;
        let mut loaded = TenantEndpoints {
            version: rows.first().map_or(Ok(0), |row| row.try_get("version"))?,
            endpoints: Vec::with_capacity(rows.len()),
            by_id: HashMap::with_capacity(rows.len()),
            exact: HashMap::new(),
            patterned: Vec::new(),
        };
        for row in &rows {
            let Some(id) = row.try_get::<Option<sqlx::types::Uuid>, _>("id")? else { continue };
            let format = stored("payload format", row.try_get("payload_format")?, PayloadFormat::from_number)?;
            let patterns: Vec<String> = row.try_get("event_types")?;
            loaded.add(Recipient { id: EndpointId::from_uuid(id), format }, read_patterns(&patterns)?);
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
    fn add(&mut self, recipient: Recipient, patterns: Vec<EventPattern>) {
        let at = self.endpoints.len();
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

    /// Every endpoint that wants an event of this type, oldest first.
    pub(super) fn matching(&self, event_type: &str) -> Vec<Recipient> {
        let exact = self.exact.get(event_type).into_iter().flatten().copied();
        let patterned =
            self.patterned.iter().filter(|(_, patterns)| any_matches(patterns, event_type)).map(|(at, _)| *at);
        let mut wanted: Vec<usize> = exact.chain(patterned).collect();
        wanted.sort_unstable();
        wanted.into_iter().map(|at| self.endpoints[at]).collect()
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
        let mut tenant = TenantEndpoints {
            version: 1,
            endpoints: Vec::new(),
            by_id: HashMap::new(),
            exact: HashMap::new(),
            patterned: Vec::new(),
        };
        let wants = [vec!["order.*", "order.created"], vec!["order.created", "order.created"], vec![], vec!["user.*"]];
        let ids: Vec<EndpointId> = (0..4).map(|n| EndpointId::from_uuid(sqlx::types::Uuid::from_u128(n))).collect();
        for (id, texts) in ids.iter().zip(wants) {
            let patterns = texts.iter().map(|text| EventPattern::parse(text).expect("valid")).collect();
            tenant.add(Recipient { id: *id, format: PayloadFormat::Raw }, patterns);
        }
        let found = |event_type| tenant.matching(event_type).iter().map(|r| r.id).collect::<Vec<_>>();
        assert_eq!(found("order.created"), ids[..3]);
        assert_eq!(found("user.deleted"), ids[2..]);
        assert_eq!(found("hooklane.endpoint.failing"), []);
    }
}
