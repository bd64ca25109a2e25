//! Room that this process's lanes offer to what is being published: a delivery that takes some is claimed by the very
//! statement that stores it, and need not be looked for.
//!
//! An offer is made for an endpoint as its lane knows it, and the statement takes it up only while the endpoint is still
//! that. Whatever is taken is told back once its statement has ended, with what was claimed or with nothing, so that the
//! lane always knows how much it may hold. Where nobody offers anything, deliveries wait in the database as ever.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::mpsc;

use super::queue::Claimed;
use crate::domain::id::{EndpointId, IdMap};
use crate::domain::time::Timestamp;

/// What is offered now.
#[derive(Debug, Default)]
pub struct Offers(Mutex<Board>);

#[derive(Debug, Default)]
struct Board {
    lanes: IdMap<EndpointId, Offer>,
    /// Nothing is given out from then on, or at all.
    open_until: Option<Instant>,
    /// What the scheduler calls the present order of things; it is told with what is taken.
    view: u64,
    /// Takings so far: the scheduler is told of each of them.
    begun: u64,
    scheduler: Option<mpsc::UnboundedSender<Taken>>,
}

#[derive(Debug, Clone, Copy)]
struct Offer {
    version: i64,
    room: u32,
}

/// What was taken for one statement, and what came of it.
#[derive(Debug)]
pub struct Taken {
    /// Under which view.
    pub view: u64,
    /// How much of which lane's room, whether it was claimed for or not.
    pub room: Vec<(EndpointId, u32)>,
    /// What was claimed.
    pub claimed: Vec<Claimed>,
    /// When the statement began.
    pub began: Timestamp,
    /// The same instant, by this process's clock.
    pub began_at: Instant,
}

impl Offers {
    /// Whatever is taken is told here from now on.
    pub fn open(&self) -> mpsc::UnboundedReceiver<Taken> {
        let (scheduler, taken) = mpsc::unbounded_channel();
        *self.lock() = Board { scheduler: Some(scheduler), ..Board::default() };
        taken
    }

    /// Offers so much more room at an endpoint of this version.
    pub fn offer(&self, endpoint: EndpointId, version: i64, room: u32) {
        let mut board = self.lock();
        let offer = board.lanes.entry(endpoint).or_insert(Offer { version, room: 0 });
        *offer = Offer { version, room: offer.room + room };
    }

    /// Takes back what is still offered of a lane's room; answers how much that is.
    pub fn withdraw(&self, endpoint: EndpointId) -> u32 {
        self.lock().lanes.remove(&endpoint).map_or(0, |offer| offer.room)
    }

    /// Gives nothing out from then on, `None` is from now on, whatever is offered.
    pub fn close_at(&self, until: Option<Instant>) {
        self.lock().open_until = until;
    }

    /// Takes back all that is offered; what is taken from now on is taken under this view. Answers what was left of each
    /// lane's offer, and how many takings there were: each is told once it has ended.
    pub fn withdraw_all(&self, view: u64) -> (Vec<(EndpointId, u32)>, u64) {
        let mut board = self.lock();
        board.view = view;
        (board.lanes.drain().map(|(endpoint, offer)| (endpoint, offer.room)).collect(), board.begun)
    }

    /// Begins to take room for a statement that is about to begin.
    pub(super) fn begin(&self, now: Timestamp) -> Taking<'_> {
        let began_at = Instant::now();
        let board = self.lock();
        let is_open = !board.lanes.is_empty() && board.open_until.is_some_and(|until| began_at < until);
        Taking {
            offers: self,
            is_open,
            view: board.view,
            began: now,
            began_at,
            lanes: Vec::new(),
            places: IdMap::default(),
            claimed: Vec::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Board> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is being taken for one statement. Dropped, it is told to the scheduler.
#[derive(Debug)]
pub(super) struct Taking<'o> {
    offers: &'o Offers,
    is_open: bool,
    view: u64,
    began: Timestamp,
    began_at: Instant,
    /// In the order in which they were first taken from.
    lanes: Vec<(EndpointId, Offer)>,
    places: IdMap<EndpointId, usize>,
    claimed: Vec<Claimed>,
}

impl Taking<'_> {
    /// Takes room for one delivery, if there is any; answers the place of its endpoint among those taken from.
    pub(super) fn take(&mut self, endpoint: EndpointId) -> Option<usize> {
        if !self.is_open {
            return None;
        }
        let mut board = self.offers.lock();
        // Whoever ended the view reckons with what was taken by then.
        if board.view != self.view {
            self.is_open = false;
            return None;
        }
        let offer = board.lanes.get_mut(&endpoint)?;
        let known = self.places.get(&endpoint).copied();
        // One that was made anew meanwhile is of another version.
        if offer.room == 0 || known.is_some_and(|place| self.lanes[place].1.version != offer.version) {
            return None;
        }
        offer.room -= 1;
        let version = offer.version;
        if self.lanes.is_empty() {
            board.begun += 1;
        }
        drop(board);
        let place = known.unwrap_or_else(|| {
            self.lanes.push((endpoint, Offer { version, room: 0 }));
            self.places.insert(endpoint, self.lanes.len() - 1);
            self.lanes.len() - 1
        });
        self.lanes[place].1.room += 1;
        Some(place)
    }

    /// The endpoints that were taken from, in the order of their places, and their versions.
    pub(super) fn endpoints(&self) -> impl Iterator<Item = (EndpointId, i64)> {
        self.lanes.iter().map(|(endpoint, offer)| (*endpoint, offer.version))
    }

    /// The version of the endpoint at a place.
    pub(super) fn version(&self, place: usize) -> i64 {
        self.lanes[place].1.version
    }

    /// Tells the scheduler that these were claimed: they are committed, and whoever reads their events finds them.
    pub(super) fn claim(mut self, claimed: Vec<Claimed>) {
        self.claimed = claimed;
    }
}

impl Drop for Taking<'_> {
    fn drop(&mut self) {
        if self.lanes.is_empty() {
            return;
        }
        let taken = Taken {
            view: self.view,
            room: self.lanes.iter().map(|(endpoint, offer)| (*endpoint, offer.room)).collect(),
            claimed: std::mem::take(&mut self.claimed),
            began: self.began,
            began_at: self.began_at,
        };
        // A scheduler that has ended waits for nothing; what was claimed for it lapses.
        let _ = self.offers.lock().scheduler.as_ref().map(|scheduler| scheduler.send(taken));
    }
}
