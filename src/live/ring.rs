//! The ring: what the tailer read last, for all subscribers. Bounded by rows and by bytes, whoever reads it or not.
//!
//! It holds pages with the batch that each belongs to, so that a reader of it always knows its position to the row, and
//! can leave it for the table, or come back from there, without a seam. Who waits at its end is woken for what it wants.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::audience::{Audience, Audiences, Next, Verdict};
use crate::store::{Cursor, Page, TimelineEvent};

/// Transitions kept.
const EVENTS_MAX: usize = 16_384;
/// What they may take together: a receiver's answer has up to 10 KiB.
const BYTES_MAX: usize = 32 << 20;

/// See the head of the file.
#[derive(Debug)]
pub(super) struct Ring {
    state: Mutex<State>,
    /// The number of the next page, for those who wait for a boundary.
    grown: watch::Sender<u64>,
    subscribers: AtomicUsize,
}

#[derive(Debug)]
struct State {
    pages: VecDeque<Arc<Page>>,
    /// The number of the first of them.
    first: u64,
    /// Where the tailer stands between two batches, and the number of the page that follows.
    boundary: Option<Boundary>,
    events: usize,
    bytes: usize,
    /// When it last had all there was.
    whole_at: Instant,
    /// Who reads.
    audiences: Audiences,
    /// Grows when what follows does not follow on what was there.
    line: u64,
    is_closed: bool,
}

/// A place in the ring that is also a place in the timeline.
#[derive(Debug, Clone)]
pub(super) struct Boundary {
    /// The page that follows.
    pub(super) next: u64,
    /// What was read up to there.
    pub(super) cursor: Arc<Cursor>,
    /// In which line of pages that is.
    pub(super) line: u64,
}

/// What is at a number.
#[derive(Debug)]
pub(super) enum Look {
    /// A page, and its number: those between had nothing for this reader.
    Page(u64, Arc<Page>),
    /// Nothing yet, or nothing for this reader.
    NotYet(End),
    /// It was there, and had to make room.
    Gone,
    /// What follows does not follow on what was there.
    Broken,
    /// There will be no more.
    Closed,
}

/// The ring's end, for a reader who has read all that is for it.
#[derive(Debug)]
pub(super) struct End {
    /// The page that follows.
    pub(super) next: u64,
    /// What was read up to there; `None` while the tailer is in the middle of a batch.
    pub(super) cursor: Option<Arc<Cursor>>,
}

impl Ring {
    pub(super) fn new() -> Arc<Self> {
        let state = State {
            pages: VecDeque::new(),
            first: 0,
            boundary: None,
            events: 0,
            bytes: 0,
            whole_at: Instant::now(),
            audiences: Audiences::default(),
            line: 0,
            is_closed: false,
        };
        Arc::new(Self { state: Mutex::new(state), grown: watch::Sender::new(0), subscribers: AtomicUsize::new(0) })
    }

    /// Begins a new line at `cursor`: whoever read the one before is told.
    pub(super) fn begin(&self, cursor: Arc<Cursor>) -> Boundary {
        let mut state = self.state();
        state.first += state.pages.len() as u64;
        state.pages.clear();
        (state.events, state.bytes) = (0, 0);
        state.line += 1;
        state.whole_at = Instant::now();
        let boundary = Boundary { next: state.first, cursor, line: state.line };
        state.boundary = Some(boundary.clone());
        let (everybody, _) = state.audiences.all();
        drop(state);
        self.grown.send_replace(boundary.next);
        everybody.iter().for_each(|audience| audience.tell());
        boundary
    }

    /// Adds what the tailer read, asking at `began`; answers where it stands now, if that is between two batches.
    pub(super) fn push(&self, page: Page, began: Instant) -> Option<Boundary> {
        // Without the lock, which every reader takes. Nobody else adds pages meanwhile.
        let asked = self.with_audiences(|audiences, _| audiences.all());
        let verdict = Verdict::of(asked, &page.events);
        let mut told = Vec::new();
        let mut state = self.state();
        if page.rest.is_none() {
            state.whole_at = began;
        }
        let next = state.first + state.pages.len() as u64 + u64::from(!page.events.is_empty());
        let cursor = Arc::clone(&page.batch.upper);
        // Somebody may wait for the end of a batch, though its last page is empty.
        let is_news = !page.events.is_empty() || state.boundary.is_none();
        state.boundary = page.rest.is_none().then_some(Boundary { next, cursor, line: state.line });
        if !page.events.is_empty() {
            told = state.audiences.note(verdict, next - 1);
            state.events += page.events.len();
            state.bytes += bytes_of(&page.events);
            state.pages.push_back(Arc::new(page));
            // The newest page stays, whatever it weighs.
            while state.pages.len() > 1 && (state.events > EVENTS_MAX || state.bytes > BYTES_MAX) {
                let Some(oldest) = state.pages.pop_front() else { break };
                state.first += 1;
                state.events -= oldest.events.len();
                state.bytes -= bytes_of(&oldest.events);
            }
        }
        let boundary = state.boundary.clone();
        drop(state);
        if is_news {
            self.grown.send_replace(next);
        }
        told.iter().for_each(|audience| audience.tell());
        boundary
    }

    /// What is at `number` of that line, or follows on it, for a member of that audience.
    pub(super) fn look(&self, line: u64, number: u64, audience: &Audience) -> Look {
        let state = self.state();
        let end = || {
            let cursor = state.boundary.as_ref().map(|boundary| Arc::clone(&boundary.cursor));
            Look::NotYet(End { next: state.first + state.pages.len() as u64, cursor })
        };
        if state.is_closed {
            return Look::Closed;
        }
        if state.line != line {
            return Look::Broken;
        }
        let Next::Page(number) = audience.next(number) else { return end() };
        match number.checked_sub(state.first) {
            None => Look::Gone,
            Some(place) => {
                let page = usize::try_from(place).ok().and_then(|place| state.pages.get(place));
                page.map_or_else(end, |page| Look::Page(number, Arc::clone(page)))
            }
        }
    }

    /// Does something with all audiences; it is told the number of the page that follows.
    pub(super) fn with_audiences<T>(&self, deed: impl FnOnce(&mut Audiences, u64) -> T) -> T {
        let mut state = self.state();
        let end = state.first + state.pages.len() as u64;
        deed(&mut state.audiences, end)
    }

    /// Where the tailer stands; `None` while it is in the middle of a batch.
    pub(super) fn boundary(&self) -> Option<Boundary> {
        self.state().boundary.clone()
    }

    /// Changes with every page, and with the end of a batch.
    pub(super) fn growth(&self) -> watch::Receiver<u64> {
        self.grown.subscribe()
    }

    /// There will be no more.
    pub(super) fn close(&self) {
        let mut state = self.state();
        state.is_closed = true;
        let (everybody, _) = state.audiences.all();
        drop(state);
        self.grown.send_modify(|_| {});
        everybody.iter().for_each(|audience| audience.tell());
    }

    /// For how long it has not had all there is; nothing while nobody reads.
    pub(super) fn lag(&self) -> Duration {
        if self.subscribers() == 0 { Duration::ZERO } else { self.state().whole_at.elapsed() }
    }

    pub(super) fn subscribers(&self) -> usize {
        self.subscribers.load(Ordering::Relaxed)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A subscriber's being there: while there is one, the tailer reads.
#[derive(Debug)]
pub(super) struct Presence(pub(super) Arc<Ring>);

impl Presence {
    pub(super) fn of(ring: &Arc<Ring>) -> Self {
        ring.subscribers.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(ring))
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        self.0.subscribers.fetch_sub(1, Ordering::Relaxed);
    }
}

/// About what they take in memory.
pub(super) fn bytes_of(events: &[TimelineEvent]) -> usize {
    events.iter().map(TimelineEvent::bytes).sum()
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::Filter;
    use super::super::audience::Seat;
    use super::*;
    use crate::domain::time::Timestamp;
    use crate::store::{Batch, Key, Snapshot};

    pub(in crate::live) fn cursor(xid: u64) -> Arc<Cursor> {
        let snapshot = Snapshot::new(xid, xid, Vec::new()).expect("a snapshot");
        Arc::new(Cursor { snapshot, time: Timestamp::from_micros(0), is_beginning: false, epoch: 1 })
    }

    pub(in crate::live) fn page(lower: u64, upper: u64, count: usize, rest: Option<u64>) -> Page {
        let events = (0..count).map(|_| TimelineEvent::sample(lower)).collect();
        let batch = Batch { lower: cursor(lower), upper: cursor(upper) };
        Page { batch, events, rest: rest.map(Key::after_all_of) }
    }

    #[test]
    fn what_has_to_make_room_is_told_from_what_is_still_to_come() {
        let ring = Ring::new();
        let start = ring.begin(cursor(1));
        let all = Seat::take(&ring, Filter::default());
        for n in 1..=40 {
            ring.push(page(n, n + 1, EVENTS_MAX / 16, None), Instant::now());
        }
        assert!(matches!(ring.look(start.line, start.next, all.audience()), Look::Gone));
        assert!(matches!(ring.look(start.line, start.next + 39, all.audience()), Look::Page(..)));
        assert!(matches!(ring.look(start.line, start.next + 40, all.audience()), Look::NotYet(_)));
        assert_eq!(ring.state().pages.len(), 16);
        let boundary = ring.boundary().expect("between two batches");
        assert_eq!((boundary.next, boundary.cursor), (start.next + 40, cursor(41)));
    }

    #[test]
    fn nothing_new_moves_the_boundary_and_adds_no_page() {
        let ring = Ring::new();
        let start = ring.begin(cursor(1));
        let boundary = ring.push(page(1, 5, 0, None), Instant::now()).expect("between two batches");
        assert_eq!((boundary.next, boundary.cursor), (start.next, cursor(5)));
        assert!(ring.push(page(5, 9, 1, Some(5)), Instant::now()).is_none(), "in the middle of a batch");
        assert!(ring.boundary().is_none());
    }

    #[test]
    fn a_new_line_and_the_end_are_told() {
        let ring = Ring::new();
        let start = ring.begin(cursor(1));
        let all = Seat::take(&ring, Filter::default());
        ring.push(page(1, 2, 1, None), Instant::now());
        let again = ring.begin(cursor(9));
        assert!(matches!(ring.look(start.line, start.next, all.audience()), Look::Broken));
        assert!(matches!(ring.look(again.line, again.next, all.audience()), Look::NotYet(_)));
        ring.close();
        assert!(matches!(ring.look(again.line, again.next, all.audience()), Look::Closed));
    }

    #[test]
    fn the_lag_is_since_everything_was_there_and_only_while_somebody_reads() {
        let ring = Ring::new();
        ring.begin(cursor(1));
        let began = Instant::now();
        let earlier = began.checked_sub(Duration::from_secs(60)).expect("an uptime");
        ring.push(page(1, 2, 1, None), earlier);
        assert_eq!(ring.lag(), Duration::ZERO, "nobody reads");
        let _presence = Presence::of(&ring);
        assert!(ring.lag() >= Duration::from_secs(60));
        ring.push(page(2, 3, 1, Some(3)), began);
        assert!(ring.lag() >= Duration::from_secs(60), "there is more");
        ring.push(page(2, 3, 1, None), began);
        assert!(ring.lag() <= began.elapsed());
    }
}
