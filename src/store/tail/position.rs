//! Where a reader of the timeline stands, to the row: what a resume token tells.
//!
//! Rows are read in batches. A batch is what became visible between two snapshots; within it rows stand in the order of
//! their keys. So a place is the snapshot before a batch, and in the middle of one also the snapshot after it and the
//! key of the last row that was read. Whoever reads that batch again, on whatever replica, finds the same rows in it.

use std::fmt;
use std::sync::Arc;

use uuid::Uuid;

use crate::domain::time::Timestamp;

/// A `pg_snapshot`: which transactions were over when it was taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    xmin: u64,
    xmax: u64,
    xip: Box<[u64]>,
}

impl Snapshot {
    /// Every transaction below `xmin` was over, none from `xmax` on, and of those between all but `xip`, which ascends.
    /// `None` where the numbers make no snapshot.
    pub fn new(xmin: u64, xmax: u64, xip: Vec<u64>) -> Option<Self> {
        let bounds_hold = 0 < xmin && xmin <= xmax && i64::try_from(xmax).is_ok();
        let is_ascending = xip.windows(2).all(|pair| pair[0] < pair[1]);
        let is_inside = xip.first().is_none_or(|first| *first >= xmin) && xip.last().is_none_or(|last| *last < xmax);
        (bounds_hold && is_ascending && is_inside).then(|| Self { xmin, xmax, xip: xip.into() })
    }

    /// The one that sees nothing.
    pub(super) fn everything_to_come() -> Self {
        Self { xmin: 1, xmax: 1, xip: Box::default() }
    }

    /// As PostgreSQL writes it.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split(':');
        let (xmin, xmax, xip) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?, parts.next()?);
        let xip = xip.split(',').filter(|xid| !xid.is_empty()).map(|xid| xid.parse().ok()).collect::<Option<_>>()?;
        Self::new(xmin, xmax, xip)
    }

    /// The oldest transaction that was running.
    pub const fn xmin(&self) -> u64 {
        self.xmin
    }

    /// The first transaction that had not begun.
    pub const fn xmax(&self) -> u64 {
        self.xmax
    }

    /// Those that were running. As many as the server has connections, at most.
    pub fn xip(&self) -> &[u64] {
        &self.xip
    }
}

impl fmt::Display for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:", self.xmin, self.xmax)?;
        for (place, xid) in self.xip.iter().enumerate() {
            write!(f, "{}{xid}", if place == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

/// A snapshot, and what tells whether it still means anything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cursor {
    /// What has been read, or precedes what is wanted.
    pub snapshot: Snapshot,
    /// When it was taken; of a replay's beginning, the time asked for.
    pub time: Timestamp,
    /// Whether this is a replay's beginning: then rows that happened before `time` are not wanted, though the snapshot
    /// could not see them.
    pub is_beginning: bool,
    /// Of which line of transactions it tells: see `super::epoch`.
    pub epoch: u64,
}

/// A row's place in its batch. One transaction writes no two rows of one delivery with the same count and kind, and
/// those that it writes happened in the order of kinds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// Its transaction.
    pub xid: u64,
    /// Its delivery.
    pub delivery: Uuid,
    /// Attempts made by then.
    pub attempt_count: i32,
    /// Its kind's number.
    pub kind: i16,
}

impl Cursor {
    /// Whether it is a beginning of which only the time is known.
    pub fn is_unrefined(&self) -> bool {
        self.is_beginning && self.snapshot.xmax == 1
    }
}

impl Key {
    /// Before everything that became visible since `lower`.
    pub const fn before(lower: &Snapshot) -> Self {
        Self::after_all_of(lower.xmin - 1)
    }

    /// After everything that `xid` wrote.
    pub const fn after_all_of(xid: u64) -> Self {
        Self { xid, delivery: Uuid::max(), attempt_count: i32::MAX, kind: i16::MAX }
    }
}

/// Where a reader stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Position {
    /// Between two batches: everything that the snapshot sees was read.
    At(Arc<Cursor>),
    /// In the middle of one.
    Within(Batch, Key),
}

/// The rows that became visible between two snapshots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// The earlier snapshot.
    pub lower: Arc<Cursor>,
    /// The later one.
    pub upper: Arc<Cursor>,
}

impl Position {
    /// The cursor by whose age it is judged.
    pub const fn lower(&self) -> &Arc<Cursor> {
        match self {
            Self::At(cursor) => cursor,
            Self::Within(batch, _) => &batch.lower,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn snapshots_are_read_and_written_as_postgresql_does() {
        for text in ["10:20:10,14,15", "10:10:", "3:9:3"] {
            assert_eq!(Snapshot::parse(text).expect(text).to_string(), text);
        }
        for text in
            ["", "10:20", "20:10:", "10:20:9", "10:20:20", "10:20:15,14", "0:1:", "10:20:x", "1:18446744073709551615:"]
        {
            assert_eq!(Snapshot::parse(text), None, "{text}");
        }
    }
}
