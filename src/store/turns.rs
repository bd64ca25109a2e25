//! Turns: of several replicas one does a chore that need not be done by each. A turn is a time in a row, not a lock: who
//! takes it and dies holds nobody up for longer than the chore's interval, and the chore must be safe done twice.

use std::time::Duration;

use super::Store;
use super::error::Result;

/// Locks the chore's row, by `chore_turns_pkey`.
const TAKE: &str = "
insert into chore_turns as c (chore, taken_time) values ($1, now())
on conflict (chore) do update set taken_time = now()
where c.taken_time <= now() - make_interval(secs => $2) or c.taken_time > now() + interval '1 minute'";

impl Store {
    /// Whether it is this replica's turn: nobody has begun the chore within `every`, or nine tenths of it, so that a
    /// replica alone, which asks each `every`, misses no turn for the time that a statement takes to arrive.
    pub async fn take_turn(&self, chore: &'static str, every: Duration) -> Result<bool> {
        let taken = sqlx::query(TAKE).bind(chore).bind((every * 9 / 10).as_secs_f64()).execute(&self.reader).await?;
        Ok(taken.rows_affected() > 0)
    }
}
