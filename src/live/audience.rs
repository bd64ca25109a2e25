//! Subscribers that want the same, told apart by their filter: a page is looked through once for all of them, and wakes
//! none of those who want nothing of it. Thousands of streams that wait for something rare cost nothing meanwhile.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

use super::Filter;
use super::ring::Ring;
use crate::store::TimelineEvent;

/// Pages that an audience is known to want. Who is further back than these looks through all.
const WANTED_MAX: usize = 16;

/// Everybody with one filter.
#[derive(Debug)]
pub(super) struct Audience {
    filter: Filter,
    /// Grows with each; tells who was there when a page was looked through.
    id: u64,
    wanted: Mutex<Wanted>,
    /// Changes with each such page, and whenever what is read ends.
    news: watch::Sender<()>,
}

/// In which pages there is something for an audience.
#[derive(Debug)]
struct Wanted {
    /// The newest of them.
    pages: VecDeque<u64>,
    /// Before this page there may be others.
    known_from: u64,
}

/// Where a member of an audience goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// At this page.
    Page(u64),
    /// Behind all that there is.
    End,
}

/// All of them, as the ring keeps them.
#[derive(Debug, Default)]
pub(super) struct Audiences {
    by_filter: HashMap<Filter, (Arc<Audience>, usize)>,
    /// The last id.
    last: u64,
}

/// For whom a page has something, of those who were there when it was looked through.
#[derive(Debug)]
pub(super) struct Verdict {
    wanting: Vec<Arc<Audience>>,
    /// Whoever came later was not asked.
    last: u64,
}

impl Audience {
    /// Changes when it is time to look.
    pub(super) fn news(&self) -> watch::Receiver<()> {
        self.news.subscribe()
    }

    /// It is time to look.
    pub(super) fn tell(&self) {
        self.news.send_replace(());
    }

    /// Where a member goes on that has read all pages before `number`.
    pub(super) fn next(&self, number: u64) -> Next {
        let wanted = self.wanted.lock().unwrap_or_else(PoisonError::into_inner);
        if number < wanted.known_from {
            return Next::Page(number);
        }
        wanted.pages.iter().find(|page| **page >= number).map_or(Next::End, |page| Next::Page(*page))
    }

    fn want(&self, number: u64) {
        let mut wanted = self.wanted.lock().unwrap_or_else(PoisonError::into_inner);
        wanted.pages.push_back(number);
        if wanted.pages.len() > WANTED_MAX
            && let Some(oldest) = wanted.pages.pop_front()
        {
            wanted.known_from = oldest + 1;
        }
    }
}

impl Audiences {
    /// Everybody there is, to be asked without the ring's lock.
    pub(super) fn all(&self) -> (Vec<Arc<Audience>>, u64) {
        (self.by_filter.values().map(|(audience, _)| Arc::clone(audience)).collect(), self.last)
    }

    /// Page `number` has come: answers who is to be told.
    pub(super) fn note(&self, verdict: Verdict, number: u64) -> Vec<Arc<Audience>> {
        let Verdict { wanting: mut told, last } = verdict;
        if self.last > last {
            let late = self.by_filter.values().map(|(audience, _)| audience).filter(|audience| audience.id > last);
            told.extend(late.cloned());
        }
        told.iter().for_each(|audience| audience.want(number));
        told
    }

    fn enter(&mut self, filter: Filter, end: u64) -> Arc<Audience> {
        let last = &mut self.last;
        let (audience, members) = self.by_filter.entry(filter).or_insert_with_key(|filter| {
            *last += 1;
            let wanted = Mutex::new(Wanted { pages: VecDeque::new(), known_from: end });
            let audience = Audience { filter: filter.clone(), id: *last, wanted, news: watch::Sender::new(()) };
            (Arc::new(audience), 0)
        });
        *members += 1;
        Arc::clone(audience)
    }

    fn leave(&mut self, filter: &Filter) {
        if let Some((_, members)) = self.by_filter.get_mut(filter) {
            *members -= 1;
            if *members == 0 {
                self.by_filter.remove(filter);
            }
        }
    }
}

impl Verdict {
    /// Asks each whether one of these is for it.
    pub(super) fn of((audiences, last): (Vec<Arc<Audience>>, u64), events: &[TimelineEvent]) -> Self {
        let wants = |audience: &Arc<Audience>| events.iter().any(|event| audience.filter.matches(event));
        Self { wanting: audiences.into_iter().filter(wants).collect(), last }
    }
}

/// A member of an audience, until it is dropped.
#[derive(Debug)]
pub(super) struct Seat {
    ring: Arc<Ring>,
    audience: Arc<Audience>,
}

impl Seat {
    /// Takes one among those who have the same filter.
    pub(super) fn take(ring: &Arc<Ring>, filter: Filter) -> Self {
        let audience = ring.with_audiences(|audiences, end| audiences.enter(filter, end));
        Self { ring: Arc::clone(ring), audience }
    }

    pub(super) fn audience(&self) -> &Audience {
        &self.audience
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.ring.with_audiences(|audiences, _| audiences.leave(&self.audience.filter));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::super::ring::tests::{cursor, page};
    use super::super::ring::{Boundary, Look};
    use super::*;
    use crate::domain::pattern::EventPattern;

    fn wanting(event_type: &str) -> Filter {
        Filter { event_types: vec![EventPattern::parse(event_type).expect("a pattern")], ..Filter::default() }
    }

    /// Where a reader that stands at `next` is sent.
    fn look(ring: &Ring, seat: &Seat, start: &Boundary, next: u64) -> Look {
        ring.look(start.line, next, seat.audience())
    }

    fn end_of(look: Look) -> u64 {
        let Look::NotYet(end) = look else { panic!("{look:?}") };
        end.next
    }

    #[test]
    fn a_page_wakes_whoever_wants_something_of_it_and_the_others_skip_it() {
        let ring = Ring::new();
        let start = ring.begin(cursor(1));
        // The samples' type is `a`.
        let [idle, eager] = ["idle", "a"].map(|kind| Seat::take(&ring, wanting(kind)));
        let [mut idle_news, mut eager_news] = [&idle, &eager].map(|seat| seat.audience().news());
        for n in 1..=40 {
            ring.push(page(n, n + 1, 4_096, None), Instant::now());
        }
        assert!(!idle_news.has_changed().expect("open") && eager_news.has_changed().expect("open"));
        // Pages that had to make room are gone for who wanted them, and were nothing for who did not.
        assert!(matches!(look(&ring, &eager, &start, start.next), Look::Gone));
        let Look::NotYet(end) = look(&ring, &idle, &start, start.next) else { panic!("it skips") };
        assert_eq!((end.next, end.cursor), (start.next + 40, Some(cursor(41))));
        assert!(
            matches!(look(&ring, &eager, &start, start.next + 39), Look::Page(number, _) if number == start.next + 39)
        );
        assert_eq!(end_of(look(&ring, &eager, &start, start.next + 40)), start.next + 40);
        // In the middle of a batch there is no place to go on from.
        ring.push(page(41, 42, 1, Some(41)), Instant::now());
        let Look::NotYet(end) = look(&ring, &idle, &start, start.next + 40) else { panic!("it skips") };
        assert_eq!((end.next, end.cursor), (start.next + 41, None));
        // Whatever ends what is read is for everybody.
        for _ in 0..2 {
            idle_news.borrow_and_update();
            eager_news.borrow_and_update();
            ring.begin(cursor(50));
            assert!(idle_news.has_changed().expect("open") && eager_news.has_changed().expect("open"));
            assert!(matches!(look(&ring, &idle, &start, start.next), Look::Broken));
        }
        idle_news.borrow_and_update();
        ring.close();
        assert!(idle_news.has_changed().expect("open"));
        assert!(matches!(look(&ring, &idle, &start, start.next), Look::Closed));
    }

    #[test]
    fn who_comes_while_a_page_is_looked_through_or_after_it_reads_it() {
        let ring = Ring::new();
        let start = ring.begin(cursor(1));
        ring.push(page(1, 2, 1, None), Instant::now());
        // It was subscribed before that page and takes its seat after it.
        let late = Seat::take(&ring, wanting("idle"));
        assert!(matches!(look(&ring, &late, &start, start.next), Look::Page(..)));
        assert_eq!(end_of(look(&ring, &late, &start, start.next + 1)), start.next + 1);
        let asked = ring.with_audiences(|audiences, _| audiences.all());
        let meanwhile = Seat::take(&ring, wanting("another"));
        let verdict = Verdict::of(asked, &page(2, 3, 1, None).events);
        let told = ring.with_audiences(|audiences, end| audiences.note(verdict, end));
        assert_eq!(told.iter().map(|audience| audience.id).collect::<Vec<_>>(), [meanwhile.audience().id]);
        let next = start.next + 1;
        assert_eq!((meanwhile.audience().next(next), late.audience().next(next)), (Next::Page(next), Next::End));
    }

    #[test]
    fn what_is_rare_is_gone_to_at_once_however_much_came_before_it() {
        let ring = Ring::new();
        let start = ring.begin(cursor(1));
        let seat = Seat::take(&ring, wanting("rare"));
        for n in 1..=40 {
            let mut page = page(n, n + 1, 4_096, None);
            if n >= 38 {
                page.events[7].event_type = "rare".to_owned();
            }
            ring.push(page, Instant::now());
        }
        // The pages before it had to make room long ago.
        let Look::Page(number, _) = look(&ring, &seat, &start, start.next) else { panic!("it is there") };
        assert_eq!(number, start.next + 37);
        let Look::Page(number, _) = look(&ring, &seat, &start, number + 1) else { panic!("it is there") };
        assert_eq!(number, start.next + 38);
        // One that was wanted and had to make room is missed.
        for n in 41..=44 {
            ring.push(page(n, n + 1, 4_096, None), Instant::now());
        }
        assert!(matches!(look(&ring, &seat, &start, number), Look::Gone));
    }

    #[test]
    fn those_who_want_the_same_are_one_audience_that_ends_with_the_last_of_them() {
        let ring = Ring::new();
        let count = || ring.with_audiences(|audiences, _| audiences.by_filter.len());
        let mut seats: Vec<_> = (0..100).map(|_| Seat::take(&ring, wanting("a"))).collect();
        let other = Seat::take(&ring, wanting("b"));
        assert_eq!(count(), 2);
        seats.drain(1..);
        assert_eq!(count(), 2);
        drop(seats);
        assert_eq!(count(), 1);
        drop(other);
        assert_eq!(count(), 0);
    }
}
