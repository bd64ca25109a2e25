//! What resume tokens rest on: their key, the line of transactions they count in, and how far back transitions are kept.
//!
//! A snapshot means something only to the server whose transactions it numbers. So a cursor carries an epoch, made of the
//! cluster's system identifier, which differs after a dump was restored elsewhere, and its WAL timeline, which differs
//! after a failover or a recovery to a point in time: transactions that were lost then have given their numbers to
//! others, and a cursor that saw the lost ones would skip those. Both are the server's own word, and nothing has to be
//! written at the right moment. A failover that lost nothing ends tokens too; the price is one replay by time.

use sha2::{Digest as _, Sha256};
use sqlx::Row as _;
use sqlx::postgres::PgRow;

use super::position::{Cursor, Snapshot};
use crate::domain::time::Timestamp;
use crate::store::connections::Connections;
use crate::store::error::{Error, Result};
use crate::store::types::PgTime;

/// Both are a row each, and whoever comes second changes nothing.
const INSERT_KEY: &str = "insert into stream_key (key) values ($1) on conflict do nothing";
const INSERT_CLUSTER: &str = "
insert into stream_clusters (system_identifier, since)
select system_identifier, case when exists (select from stream_clusters) then now() else '-infinity' end
from pg_control_system()
on conflict do nothing";

const KEY: &str = "select key from stream_key";

/// The server's line of transactions in a statement: two words, to be made an epoch by [`epoch_of`]. 20 µs.
macro_rules! line {
    () => {
        "(select system_identifier from pg_control_system())::text || ' '
         || left(pg_walfile_name(pg_current_wal_lsn()), 8)"
    };
}
pub(super) use line;

/// The present, and since when every transition is kept: by the bounds of the oldest partitions of the timeline and of the
/// successes, and by the arrival on this cluster. Reads the catalog. Null: there are no partitions.
const STANDING: &str = concat!(
    "
select pg_current_snapshot()::text, now(), ",
    line!(),
    ",
       greatest(
         (select max(p.since) from (
            select min(substring(pg_get_expr(c.relpartbound, c.oid) from '''([^'']+)''')::timestamptz) as since
            from pg_inherits i join pg_class c on c.oid = i.inhrelid
            where i.inhparent in ('timeline'::regclass, 'settled_succeeded'::regclass) and not i.inhdetachpending
            group by i.inhparent) p),
         (select s.since from stream_clusters s
          where s.system_identifier = (select system_identifier from pg_control_system())
            and s.since > '-infinity'))"
);

/// What a token is authenticated with.
#[derive(Clone)]
pub struct StreamKey(pub(super) [u8; 32]);

impl StreamKey {
    /// Its bytes.
    pub const fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl std::fmt::Debug for StreamKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("StreamKey(…)")
    }
}

/// The stream's present and past.
#[derive(Debug, Clone)]
pub(super) struct Standing {
    /// What is committed by now.
    pub(super) present: Cursor,
    /// What happened before this may be gone.
    pub(super) kept_since: Timestamp,
}

/// Reads the key, after drawing one where there is none, and puts the cluster on record.
pub(in crate::store) async fn ensure(connections: &Connections, drawn: [u8; 32]) -> Result<StreamKey> {
    sqlx::query(INSERT_KEY).bind(&drawn[..]).execute(connections).await?;
    sqlx::query(INSERT_CLUSTER).execute(connections).await?;
    let key: Vec<u8> = sqlx::query_scalar(KEY).fetch_one(connections).await?;
    let key = key.try_into().map_err(|_| Error::Unreadable("a stream key of another length".to_owned()))?;
    Ok(StreamKey(key))
}

pub(super) async fn standing(connections: &Connections) -> Result<Standing> {
    let row = sqlx::query(STANDING).fetch_one(connections).await?;
    let present = read_cursor(&row, 0, 1, 2)?;
    let kept_since = row.try_get::<Option<PgTime>, _>(3)?.map_or(present.time, |time| time.0);
    Ok(Standing { present, kept_since })
}

/// A cursor of a row's columns: the snapshot, when it was taken, and the line of transactions.
pub(super) fn read_cursor(row: &PgRow, snapshot: usize, time: usize, line: usize) -> Result<Cursor> {
    let text: String = row.try_get(snapshot)?;
    let snapshot = Snapshot::parse(&text).ok_or_else(|| Error::Unreadable(format!("the snapshot {text}")))?;
    let PgTime(time) = row.try_get(time)?;
    Ok(Cursor { snapshot, time, is_beginning: false, epoch: epoch_of(row.try_get(line)?) })
}

/// 64 bits are ample to tell a few lines apart.
pub(super) fn epoch_of(line: &str) -> u64 {
    let digest = Sha256::digest(line);
    u64::from_be_bytes(std::array::from_fn(|place| digest[place]))
}
