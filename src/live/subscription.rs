//! A subscriber's end of the stream: `loop { past, then live }`, with its position known to the row at any time.
//!
//! The past is read from the table, up to where the tailer stands at that moment: then the ring has what follows, and
//! the reader goes over to it without a seam. A reader that falls behind the ring goes back to the table from where it
//! stands. What it was given is its own, so how far it is matters to nobody else.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;

use super::audience::Seat;
use super::ring::{Boundary, End, Look, Presence};
use super::token::Tokens;
use super::{Ended, Filter};
use crate::store::{Batch, Key, Page, Position, Store, TailError, TimelineEvent};

/// Rows of one read of the past.
const PAGE_MAX: usize = 256;
/// Reads of the past under way at once: each takes a connection of the stream's.
const TURNS: usize = 2;
/// What the pages that wait for their readers may take together, and one of them; the rest of a page is read again.
const PAGES_BYTES_MAX: usize = 32 << 20;
const PAGE_BYTES_MAX: usize = 128 << 10;
/// What a page may take however many wait.
const PAGE_BYTES_MIN: usize = 8 << 10;

/// What a subscriber is told.
#[derive(Debug)]
pub enum News {
    /// A transition.
    Event(Arc<Page>, usize),
    /// The past has been told; what follows is told as it happens.
    Present,
}

impl News {
    /// The transition, if it is one.
    pub fn event(&self) -> Option<&TimelineEvent> {
        match self {
            Self::Event(page, place) => page.events.get(*place),
            Self::Present => None,
        }
    }
}

/// What a subscription reads from.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) store: Arc<Store>,
    pub(super) presence: Presence,
    pub(super) readers: PastReaders,
    pub(super) tokens: Tokens,
}

/// Those who read the past: they take turns, and share what their pages may take. Thousands of readers that stand still
/// each hold a page.
#[derive(Debug, Clone)]
pub(super) struct PastReaders {
    turns: Arc<Semaphore>,
    count: Arc<AtomicUsize>,
}

/// One of them, until it is dropped.
#[derive(Debug)]
struct PastReader(Arc<AtomicUsize>);

impl PastReaders {
    pub(super) fn none() -> Self {
        Self { turns: Arc::new(Semaphore::new(TURNS)), count: Arc::default() }
    }

    fn join(&self) -> PastReader {
        self.count.fetch_add(1, Ordering::Relaxed);
        PastReader(Arc::clone(&self.count))
    }

    /// What the page of one of them may take.
    fn page_bytes_max(&self) -> usize {
        let share = PAGES_BYTES_MAX / self.count.load(Ordering::Relaxed).max(1);
        share.clamp(PAGE_BYTES_MIN, PAGE_BYTES_MAX)
    }
}

impl Drop for PastReader {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A subscriber's end of the stream.
#[derive(Debug)]
pub struct Subscription {
    filter: Arc<Filter>,
    source: Source,
    /// Among those who want the same.
    seat: Seat,
    /// That there is something for them.
    news: watch::Receiver<()>,
    /// That the tailer has gone on.
    growth: watch::Receiver<u64>,
    /// Everything up to here was told, or is not wanted.
    position: Position,
    place: Place,
}

#[derive(Debug)]
enum Place {
    Past(Past),
    Live(Live),
}

/// Reading the table.
#[derive(Debug)]
struct Past {
    _reader: PastReader,
    /// Where the batch that is being read ends in the ring, if it does.
    goal: Option<Boundary>,
    /// What was read, how much of it was told, and where the reader stands after all of it.
    page: Option<(Arc<Page>, usize, Position)>,
    reading: Option<Reading>,
}

/// A task of its own, so that a read goes on when its reader is not asked for anything.
type Reading = JoinHandle<Result<(Page, Position), TailError>>;

/// Reading the ring.
#[derive(Debug)]
struct Live {
    line: u64,
    next: u64,
    /// The page that is being told, and how much of it was. It is the ring's: a reader that stands still keeps no page
    /// that has to make room.
    page: Option<(Weak<Page>, usize)>,
}

impl Subscription {
    /// Stands at `start`; the ring has what follows `boundary`.
    pub(super) fn new(filter: Filter, source: Source, start: Option<Position>, boundary: Boundary) -> Self {
        let seat = Seat::take(&source.presence.0, filter.clone());
        let (news, growth) = (seat.audience().news(), source.presence.0.growth());
        let place = match start {
            Some(_) => source.past(),
            None => Place::Live(Live { line: boundary.line, next: boundary.next, page: None }),
        };
        let position = start.unwrap_or(Position::At(boundary.cursor));
        Self { filter: Arc::new(filter), source, seat, news, growth, position, place }
    }

    /// What comes next. Safe to drop while it waits.
    pub async fn next(&mut self) -> Result<News, Ended> {
        loop {
            let told = match &mut self.place {
                Place::Past(_) => self.next_past().await?,
                Place::Live(_) => self.next_live().await?,
            };
            if let Some(news) = told {
                return Ok(news);
            }
        }
    }

    /// What comes next, where it is of the page that is being told: nothing is waited for.
    pub fn at_hand(&mut self) -> Option<News> {
        match &mut self.place {
            Place::Live(live) => {
                let (page, told) = live.page.as_mut()?;
                let Some(page) = page.upgrade() else {
                    self.place = self.source.past();
                    return None;
                };
                let found = page.events[*told..].iter().position(|event| self.filter.matches(event));
                let place = found.map_or(page.events.len(), |place| *told + place + 1);
                *told = place;
                self.position = position_after(&page, place);
                if place == page.events.len() {
                    live.page = None;
                }
                found.map(|_| News::Event(page, place - 1))
            }
            Place::Past(past) => {
                let (page, told, end) = past.page.as_mut()?;
                let Some(event) = page.events.get(*told) else {
                    self.position = end.clone();
                    past.page = None;
                    return None;
                };
                self.position = Position::Within(page.batch.clone(), event.key());
                *told += 1;
                Some(News::Event(Arc::clone(page), *told - 1))
            }
        }
    }

    /// The token to go on from after what was told last, or after all that there is where nothing passed the filter.
    pub fn token(&mut self) -> String {
        self.skip();
        self.source.tokens.seal(&self.position, self.filter.scope())
    }

    /// Goes to where the tailer stands, if nothing up to there is for this reader. It is woken for what is, so that only
    /// this keeps it from standing ever further back.
    fn skip(&mut self) {
        if let Place::Live(Live { line, next, page: None }) = &mut self.place
            && let Look::NotYet(end) = self.source.presence.0.look(*line, *next, self.seat.audience())
        {
            *next = end.next;
            end.cursor.into_iter().for_each(|cursor| self.position = Position::At(cursor));
        }
    }

    async fn next_live(&mut self) -> Result<Option<News>, Ended> {
        if let Some(news) = self.at_hand() {
            return Ok(Some(news));
        }
        let Place::Live(live) = &mut self.place else { return Ok(None) };
        self.news.borrow_and_update();
        match self.source.presence.0.look(live.line, live.next, self.seat.audience()) {
            Look::Page(number, page) => {
                live.page = Some((Arc::downgrade(&page), 0));
                live.next = number + 1;
            }
            Look::NotYet(End { next, cursor }) => {
                live.next = next;
                cursor.into_iter().for_each(|cursor| self.position = Position::At(cursor));
                self.news.changed().await.map_err(|_| Ended::Draining)?;
            }
            Look::Gone => self.place = self.source.past(),
            Look::Broken => return Err(Ended::Expired),
            Look::Closed => return Err(Ended::Draining),
        }
        Ok(None)
    }

    async fn next_past(&mut self) -> Result<Option<News>, Ended> {
        if let Some(news) = self.at_hand() {
            return Ok(Some(news));
        }
        let Place::Past(past) = &mut self.place else { return Ok(None) };
        if let Some(reading) = &mut past.reading {
            let read = reading.await;
            past.reading = None;
            // Cancelled with the runtime, at the latest.
            let (page, end) = read.map_err(|_| Ended::Draining)?.map_err(|error| match error {
                TailError::Expired => Ended::Lagged,
                TailError::Store(error) => Ended::Store(error),
            })?;
            past.page = Some((Arc::new(page), 0, end));
            return Ok(None);
        }
        match &self.position {
            Position::Within(batch, key) => {
                past.reading = Some(self.source.read(batch.clone(), *key, &self.filter));
                Ok(None)
            }
            Position::At(lower) => {
                let lower = Arc::clone(lower);
                if let Some(goal) = past.goal.take()
                    && !matches!(self.source.presence.0.look(goal.line, goal.next, self.seat.audience()), Look::Gone)
                {
                    self.place = Place::Live(Live { line: goal.line, next: goal.next, page: None });
                    return Ok(Some(News::Present));
                }
                self.growth.borrow_and_update();
                match self.source.presence.0.boundary() {
                    Some(boundary) => {
                        let batch = Batch { lower: Arc::clone(&lower), upper: Arc::clone(&boundary.cursor) };
                        past.goal = Some(boundary);
                        self.position = Position::Within(batch, Key::before(&lower.snapshot));
                    }
                    // The tailer is in the middle of a batch, and will push its next page.
                    None => self.growth.changed().await.map_err(|_| Ended::Draining)?,
                }
                Ok(None)
            }
        }
    }
}

/// Where a reader stands who has read so many of a page's rows.
fn position_after(page: &Page, count: usize) -> Position {
    match page.events.get(count.wrapping_sub(1)) {
        Some(_) if count == page.events.len() && page.rest.is_none() => Position::At(Arc::clone(&page.batch.upper)),
        Some(event) => Position::Within(page.batch.clone(), event.key()),
        None => Position::Within(page.batch.clone(), Key::before(&page.batch.lower.snapshot)),
    }
}

impl Source {
    fn past(&self) -> Place {
        Place::Past(Past { _reader: self.readers.join(), goal: None, page: None, reading: None })
    }

    /// Reads the next page of the past, once it is this reader's turn: what of it passes the filter, and where it ends.
    fn read(&self, batch: Batch, after: Key, filter: &Arc<Filter>) -> Reading {
        let (store, readers, filter) = (Arc::clone(&self.store), self.readers.clone(), Arc::clone(filter));
        tokio::spawn(async move {
            let _turn = readers.turns.acquire().await;
            let (batch, after) = begin(&store, batch, after).await?;
            let bytes_max = readers.page_bytes_max();
            let rows = (bytes_max / size_of::<TimelineEvent>()).clamp(1, PAGE_MAX);
            let mut page = store.timeline_past(&batch, after, &filter.stored, rows).await?;
            page.events.retain(|event| filter.matches(event));
            let mut bytes = 0;
            let fits = page.events.iter().take_while(|event| {
                bytes += event.bytes();
                bytes <= bytes_max
            });
            let count = fits.count().max(1);
            if count < page.events.len() {
                page.events.truncate(count);
                page.rest = page.events.last().map(TimelineEvent::key);
            }
            page.events.shrink_to_fit();
            let end = match page.rest {
                Some(key) => Position::Within(batch, key),
                None => Position::At(batch.upper),
            };
            Ok((page, end))
        })
    }
}

/// Finds where a beginning by time is, before its first row is read: here, where readers take turns, and not while the
/// stream is opened, because thousands may be opened at once.
async fn begin(store: &Store, batch: Batch, after: Key) -> Result<(Batch, Key), TailError> {
    if !batch.lower.is_unrefined() || after != Key::before(&batch.lower.snapshot) {
        return Ok((batch, after));
    }
    let lower = Arc::new(store.refined(&batch.lower, batch.upper.snapshot.xmax()).await?);
    let after = Key::before(&lower.snapshot);
    Ok((Batch { lower, upper: batch.upper }, after))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_who_read_the_past_share_what_their_pages_may_take() {
        let readers = PastReaders::none();
        assert_eq!(readers.page_bytes_max(), PAGE_BYTES_MAX);
        let mut some: Vec<_> = (0..1_024).map(|_| readers.join()).collect();
        assert_eq!(readers.page_bytes_max() * 1_024, PAGES_BYTES_MAX);
        some.extend((0..9_000).map(|_| readers.join()));
        assert_eq!(readers.page_bytes_max(), PAGE_BYTES_MIN);
        drop(some);
        assert_eq!(readers.page_bytes_max(), PAGE_BYTES_MAX);
    }
}
