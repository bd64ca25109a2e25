//! One replica among several: who is there, whose lanes are whose, and how they pass from one to another.
//!
//! The rows of `replicas` say who drives lanes, rendezvous hashing which lane falls to whom. A replica claims for no
//! lane that falls to another one; it takes a lane over only when everybody who could be driving it has said that they
//! reckon with the newcomer, or is gone. What is known here may still be wrong, of a process that was stopped, say: the
//! fence of each claim keeps every promise but the cap on requests under way.

mod member;
mod standing;
mod telling;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use self::member::Member;
use crate::domain::id::EndpointId;
use crate::domain::rendezvous::{Driver, driver_of};
use crate::store::{Roles, Store};

/// The engine's end of this replica's membership.
#[derive(Debug)]
pub struct Membership {
    handovers: mpsc::Receiver<Handover>,
    tenure: Arc<Tenure>,
    resigning: Resigning,
}

/// Who drives lanes, as this replica reckons.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct View {
    me: Uuid,
    /// This replica among them; nobody, while it drives nothing itself.
    drivers: Vec<Driver>,
}

/// Another view holds from now on.
#[derive(Debug)]
pub(super) struct Handover {
    pub(super) view: View,
    /// To be told once no claim is under way that was begun before.
    pub(super) settled: oneshot::Sender<()>,
}

/// The wish to drive no more, and its fulfilment.
#[derive(Debug, Clone, Default)]
struct Resigning {
    asked: CancellationToken,
    done: CancellationToken,
}

/// How long saying so may take; who cannot say it is found dead by the others.
const RESIGN_MAX: Duration = Duration::from_secs(2);

impl Membership {
    /// Joins the others on this database, and stays until `end`. Lanes pass by the given end, if anybody holds it.
    pub fn start(store: &Arc<Store>, roles: Roles, end: CancellationToken) -> (Self, JoinHandle<()>) {
        let (sender, handovers) = mpsc::channel(1);
        let (tenure, resigning) = (Arc::new(Tenure::default()), Resigning::default());
        let member = Member::new(Arc::clone(store), roles, sender, Arc::clone(&tenure), resigning.clone());
        (Self { handovers, tenure, resigning }, tokio::spawn(member.run(end)))
    }

    /// The next change of who drives what; never, once this replica has left.
    pub(super) async fn next(&mut self) -> Handover {
        match self.handovers.recv().await {
            Some(handover) => handover,
            None => std::future::pending().await,
        }
    }

    /// What says whether this replica may drive at all.
    pub(super) fn tenure(&self) -> Arc<Tenure> {
        Arc::clone(&self.tenure)
    }

    /// Leaves every lane to the others, who count what is still in flight here. To be called once nothing is claimed
    /// any more.
    pub(super) async fn resign(&self) {
        self.resigning.asked.cancel();
        if tokio::time::timeout(RESIGN_MAX, self.resigning.done.cancelled()).await.is_err() {
            tracing::warn!("the other replicas could not be told that this one ends; they will find out");
        }
    }
}

impl View {
    fn of(me: Uuid, mut drivers: Vec<Driver>) -> Self {
        drivers.sort_unstable();
        Self { me, drivers }
    }

    /// Whether the lane of `endpoint` falls to this replica.
    pub(super) fn owns(&self, endpoint: EndpointId) -> bool {
        match self.drivers[..] {
            [] => false,
            [_] => true,
            _ => driver_of(endpoint, &self.drivers).is_some_and(|driver| driver.id == self.me),
        }
    }

    /// How many drive lanes.
    pub(super) const fn count(&self) -> usize {
        self.drivers.len()
    }

    fn ids(&self) -> Vec<Uuid> {
        self.drivers.iter().map(|driver| driver.id).collect()
    }
}

/// How long a heartbeat lets a replica drive lanes, counted from when it was sent, by the monotonic clock. The others
/// wait two seconds longer before they call it dead: a claim that was begun in time ends in time.
const TENURE: Duration = Duration::from_secs(8);

/// Until when this replica may drive lanes.
#[derive(Debug)]
pub(super) struct Tenure {
    origin: Instant,
    /// Microseconds since `origin`.
    until: AtomicU64,
}

impl Default for Tenure {
    fn default() -> Self {
        Self { origin: Instant::now(), until: AtomicU64::new(0) }
    }
}

impl Tenure {
    fn extend(&self, sent_at: Instant) {
        let until = (sent_at + TENURE).saturating_duration_since(self.origin);
        self.until.store(u64::try_from(until.as_micros()).unwrap_or(u64::MAX), Ordering::Release);
    }

    pub(super) fn holds_at(&self, now: Instant) -> bool {
        now < self.until()
    }

    /// When it ends, as far as is known now.
    pub(super) fn until(&self) -> Instant {
        self.origin + Duration::from_micros(self.until.load(Ordering::Acquire))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenure_ends_eight_seconds_after_the_heartbeat_was_sent() {
        let tenure = Tenure::default();
        let sent_at = tenure.origin + Duration::from_secs(5);
        assert!(!tenure.holds_at(sent_at), "none was sent");
        tenure.extend(sent_at);
        assert!(tenure.holds_at(sent_at + TENURE - Duration::from_millis(1)));
        assert!(!tenure.holds_at(sent_at + TENURE));
    }

    #[test]
    fn who_drives_nothing_owns_nothing_and_who_drives_alone_owns_all() {
        let endpoint = EndpointId::from_uuid(Uuid::from_u128(1));
        assert!(!View::default().owns(endpoint));
        let me = Uuid::from_u128(7);
        assert!(View::of(me, vec![Driver::new(me, "a")]).owns(endpoint));
    }
}
