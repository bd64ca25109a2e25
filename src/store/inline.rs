//! Unlisted endpoints: those that come with an event. Looked up by digest before the event is queued; made, or given the
//! caller's policies, only where they are not as the caller wants them.

use sqlx::Row;
use sqlx::types::Uuid;

use super::Store;
use super::directory::Recipient;
use super::endpoints::rows::read_spec;
use super::error::{Error, Result};
use super::types::stored;
use crate::domain::endpoint::{Ordering, PayloadFormat};
use crate::domain::event::InlineEndpoint;
use crate::domain::fields::Tenant;
use crate::domain::id::EndpointId;

/// Reads by `endpoints_inline_digest`.
const FIND: &str = "
select e.* from endpoints e where e.inline_digest = $1 and e.inline_digest is not null and e.delete_time is null";

/// Reads by `endpoints_pkey`.
const NAMED: &str = "
select e.id, e.payload_format, e.ordering from endpoints e
where e.id = any($1) and e.tenant = $2 and e.inline_digest is not null and e.delete_time is null";

/// How often it is tried to make the endpoint what the caller wants, while others change it. Whoever loses each time
/// might as well have come before them.
const TRIES: usize = 3;

impl Store {
    /// The endpoint that comes with an event, made or changed where it must be.
    pub(super) async fn inline_recipient(&self, tenant: &Tenant, inline: &InlineEndpoint) -> Result<Recipient> {
        let digest = inline.digest(tenant);
        let (format, ordering) = (inline.spec.payload_format, inline.spec.ordering);
        let mut known = None;
        for _ in 0..TRIES {
            let found = sqlx::query(FIND).bind(digest.as_slice()).fetch_optional(&self.reader).await?;
            let Some(row) = found else {
                match self.insert_endpoint(tenant, &inline.spec, &inline.secret, Some(&digest)).await? {
                    Some(id) => return Ok(Recipient { id, format, ordering }),
                    // Somebody else has made it meanwhile.
                    None => continue,
                }
            };
            let id = EndpointId::from_uuid(row.try_get("id")?);
            let version: i64 = row.try_get("version")?;
            if read_spec(&row, &self.vault)? == inline.spec
                || self.replace_spec(tenant, id, version, &inline.spec).await?
            {
                return Ok(Recipient { id, format, ordering });
            }
            known = Some(Recipient { id, format, ordering });
        }
        known.ok_or_else(|| Error::Unreadable("an unlisted endpoint that comes and goes".to_owned()))
    }

    /// Those of the named endpoints that are unlisted.
    pub(super) async fn unlisted(&self, tenant: &Tenant, ids: &[EndpointId]) -> Result<Vec<Recipient>> {
        let uuids: Vec<Uuid> = ids.iter().map(|id| id.uuid()).collect();
        let rows = sqlx::query(NAMED).bind(uuids).bind(tenant.as_str()).fetch_all(&self.engine).await?;
        rows.iter()
            .map(|row| {
                let format = stored("payload format", row.try_get("payload_format")?, PayloadFormat::from_number)?;
                let ordering = stored("ordering", row.try_get("ordering")?, Ordering::from_number)?;
                Ok(Recipient { id: EndpointId::from_uuid(row.try_get("id")?), format, ordering })
            })
            .collect()
    }
}
