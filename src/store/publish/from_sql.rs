//! Taking up what was published in SQL: the same way as any event's from here on, but for who is answered. The row in the
//! inbox goes in the transaction that publishes its event.
//!
//! A page of it is a batch of its own, past the queue, and the next one follows when all of it is done with: so that
//! events of one ordering key keep the order of their calls.

use std::collections::BTreeSet;
use std::time::Instant;

use futures::future::join_all;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::{ANSWER_MAX, Committer, PublishError, Published, Publisher, Waiting};
use crate::domain::cloudevents::SourceTemplate;
use crate::store::error::Result;
use crate::store::inbox::{Place, is_full};

/// How far the inbox was looked through.
#[derive(Debug)]
pub struct InboxWalk {
    /// Where the last look ended.
    after: i64,
    /// The last number that was seen, and those before it that were not: of calls whose transactions are not committed, or
    /// never will be. The newest of them.
    highest: i64,
    unseen: BTreeSet<i64>,
    /// When to look from the beginning again.
    look_at_all: Instant,
}

/// Numbers that are waited for one by one; whoever has more transactions open at once waits for a look from the beginning.
const UNSEEN_MAX: usize = 1_000;
/// The same before the first look.
const UNSEEN_AT_FIRST: usize = 100;

impl Default for InboxWalk {
    fn default() -> Self {
        Self { after: 0, highest: 0, unseen: BTreeSet::new(), look_at_all: Instant::now() }
    }
}

impl InboxWalk {
    /// A page was seen; its numbers ascend. If it was full, there may be more between it and what was seen before.
    fn see(&mut self, page: impl Iterator<Item = i64>, is_full: bool) {
        for seq in page {
            self.after = seq;
            if seq <= self.highest {
                self.unseen.remove(&seq);
                continue;
            }
            // Most of what comes before the first that is ever seen is gone; calls that are under way are not.
            let waited_for = if self.highest == 0 { UNSEEN_AT_FIRST } else { UNSEEN_MAX };
            let newest = seq.saturating_sub(i64::try_from(waited_for).unwrap_or(i64::MAX));
            self.unseen.extend(newest.max(self.highest + 1)..seq);
            self.highest = seq;
        }
        if !is_full {
            self.after = self.highest;
        }
        while self.unseen.len() > UNSEEN_MAX {
            self.unseen.pop_first();
        }
    }
}

/// What came of a look into the inbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TakenUp {
    /// Nothing was there.
    Nothing,
    /// So many rows are done with.
    Rows(usize),
    /// Some of the rows have to wait: the queue is full, or the database away.
    Stuck,
}

/// Looks from the beginning take a twentieth of the time at most; usually one takes less than a millisecond. Behind a long
/// snapshot it steps over all that was taken up since, and the looks between go on from where the last one ended, and to
/// the numbers that were left out so far: a call that commits late goes before those that came after its commit.
const LOOK_AT_ALL_SHARE: u32 = 19;

const KEY_CONFLICT: &str = "IDEMPOTENCY_KEY_CONFLICT: another event was published before with this idempotency key";
const REFUSED: &str = "REFUSED: the database refused the event";

impl Publisher {
    /// Publishes a page of what waits in the inbox, CloudEvents as of that source. For one replica at a time: not because
    /// anything could be published twice, but for the order.
    pub async fn take_up_inbox(&self, walk: &mut InboxWalk, source: &SourceTemplate) -> Result<TakenUp> {
        let began = Instant::now();
        let looks_at_all = began >= walk.look_at_all;
        let (after, before) = match looks_at_all {
            true => (0, Vec::new()),
            false => (walk.after, walk.unseen.range(..=walk.after).copied().collect()),
        };
        let waiting = self.store.waiting_in_inbox(after, &before).await?;
        if looks_at_all {
            let now = Instant::now();
            walk.look_at_all = now + (now - began) * LOOK_AT_ALL_SHARE;
        }
        let is_full = is_full(&waiting);
        let places: Vec<Place> = waiting.iter().map(|one| one.place).collect();
        if places.is_empty() {
            return Ok(TakenUp::Nothing);
        }

        let ready = waiting.into_iter().map(|one| async move {
            let mut event = Box::new(one.event);
            event.source = source.source(&event.tenant);
            let verdicts = self.verdicts(&event).await;
            let (reply, answer) = oneshot::channel();
            let taken_from = Some(one.place);
            (Waiting { event, inline: None, verdicts, sent_back: 0, taken_from, reply }, answer)
        });
        let (batch, answers): (Vec<_>, Vec<_>) = join_all(ready).await.into_iter().unzip();
        Committer { store: self.store.clone(), queue: self.queue.downgrade() }.commit(batch).await;
        let answers = join_all(answers.into_iter().map(|answer| timeout(ANSWER_MAX, answer))).await;

        let (mut rest, mut is_stuck) = (Vec::new(), false);
        for (place, answer) in places.iter().zip(answers) {
            let answer = answer.ok().and_then(std::result::Result::ok).unwrap_or(Err(PublishError::Unavailable));
            match fate(place, answer) {
                Fate::Done => {}
                Fate::Rest(note) => rest.push((place.seq, note)),
                Fate::Waits => is_stuck = true,
            }
        }
        self.store.rest_inbox(&rest).await?;
        if is_stuck {
            // From the first that is left.
            walk.look_at_all = Instant::now();
            return Ok(TakenUp::Stuck);
        }
        walk.see(places.iter().map(|place| place.seq), is_full);
        Ok(TakenUp::Rows(places.len()))
    }
}

/// What becomes of a row in the inbox.
#[derive(Debug, PartialEq, Eq)]
enum Fate {
    /// It went with the publish.
    Done,
    /// It goes now, and the event is stored with this note.
    Rest(Option<String>),
    /// It stays.
    Waits,
}

fn fate(place: &Place, answer: std::result::Result<Published, PublishError>) -> Fate {
    // Of a repeat the event is there, by the id that the caller was told, and nothing more is to be said of it.
    let note = |text: String| Fate::Rest((!place.is_repeat).then_some(text));
    match answer {
        Ok(published) if published.event_id == place.id => {
            if place.is_repeat {
                Fate::Rest(None)
            } else {
                Fate::Done
            }
        }
        Ok(published) => {
            note(format!("DUPLICATE: {} was published before with this idempotency key", published.event_id))
        }
        Err(PublishError::KeyConflict) => note(KEY_CONFLICT.to_owned()),
        Err(PublishError::Refused(_)) => note(REFUSED.to_owned()),
        Err(_) => Fate::Waits,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::id::EventId;

    #[test]
    fn calls_that_commit_late_are_looked_for_by_their_numbers() {
        let mut walk = InboxWalk::default();
        walk.see([1_000, 1_001, 1_004].into_iter(), false);
        assert_eq!((walk.after, walk.highest), (1_004, 1_004));
        assert_eq!(walk.unseen, (900..1_000).chain([1_002, 1_003]).collect());
        // Those that were under way before the first look.
        walk.see(900..1_000, false);
        assert_eq!(walk.unseen, BTreeSet::from([1_002, 1_003]));
        // The late one, and those behind it.
        walk.see([1_003, 1_006].into_iter(), false);
        assert_eq!((walk.after, &walk.unseen), (1_006, &BTreeSet::from([1_002, 1_005])));
        // A look from the beginning that found one page.
        walk.see([1_002].into_iter(), true);
        assert_eq!((walk.after, walk.highest), (1_002, 1_006));
        walk.see([1_005].into_iter(), false);
        assert_eq!((walk.after, walk.unseen.len()), (1_006, 0));
        walk.see([9_000].into_iter(), false);
        assert_eq!((walk.unseen.len(), walk.unseen.first()), (UNSEEN_MAX, Some(&8_000)));
    }

    #[test]
    fn whoever_called_finds_what_became_of_the_event() {
        let id = |number| EventId::from_uuid(uuid::Uuid::from_u128(number));
        let published = |number| Ok(Published { event_id: id(number), deliveries: Vec::new(), duplicate: false });
        let new = Place { seq: 1, id: id(1), is_repeat: false };
        let repeat = Place { is_repeat: true, ..new };
        assert_eq!(fate(&new, published(1)), Fate::Done);
        assert_eq!(fate(&repeat, published(1)), Fate::Rest(None));
        let Fate::Rest(Some(note)) = fate(&new, published(2)) else { panic!("a note") };
        assert!(note.starts_with("DUPLICATE: evt_"), "{note}");
        // Its key's time ended in between, and the event is published anew.
        assert_eq!(fate(&repeat, published(2)), Fate::Rest(None));
        assert_eq!(fate(&new, Err(PublishError::KeyConflict)), Fate::Rest(Some(KEY_CONFLICT.to_owned())));
        assert_eq!(fate(&new, Err(PublishError::Refused(String::new()))), Fate::Rest(Some(REFUSED.to_owned())));
        for passing in [PublishError::QueueFull, PublishError::Unavailable, PublishError::Internal] {
            assert_eq!(fate(&new, Err(passing)), Fate::Waits);
        }
    }
}
