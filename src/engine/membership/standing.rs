//! How a replica comes to drive lanes, and ceases to: what follows from who is there. No I/O and no clock.
//!
//! Looking → Asking → Asked → Driving, and Resigned from any of them. Two replicas that drive must reckon with each
//! other: then no lane falls to both. So a newcomer says first that it will drive, looks again who drives, and begins
//! once each of those has said that it reckons with it. Of two newcomers, one at least sees the other.

use std::time::Duration;

use uuid::Uuid;

use crate::store::Replica;

/// Where this replica stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// It is here, and drives nothing; nor does anybody leave anything to it.
    Looking,
    /// The next heartbeat says that it will drive.
    Asking,
    /// A heartbeat has said so; the others leave their lanes to it as they learn of it.
    Asked,
    /// It drives what falls to it.
    Driving,
    /// It drives nothing any more, and never will in this stay.
    Resigned,
}

/// The standing of one stay.
#[derive(Debug)]
pub(super) struct Standing {
    me: Uuid,
    stage: Stage,
}

/// When to beat again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// At once: there is something to say or to learn.
    AtOnce,
    /// Soon: somebody else is waited for.
    Soon,
    /// When it is time.
    InTime,
}

/// While a driver is silent for longer, nobody is asked to make room: the answer might be long in coming, and the lanes
/// of those who answered would stand still meanwhile. It beats, or it is found dead.
const FRESH: Duration = Duration::from_secs(3);

impl Standing {
    /// Of somebody who has just joined; `may_drive` where it is to drive lanes.
    pub(super) const fn new(me: Uuid, may_drive: bool) -> Self {
        Self { me, stage: if may_drive { Stage::Looking } else { Stage::Resigned } }
    }

    /// What the next heartbeat says.
    pub(super) const fn drives(&self) -> bool {
        matches!(self.stage, Stage::Asking | Stage::Asked | Stage::Driving)
    }

    /// Whether it drives what falls to it.
    pub(super) fn is_driving(&self) -> bool {
        self.stage == Stage::Driving
    }

    /// Drives no more.
    pub(super) const fn resign(&mut self) {
        self.stage = Stage::Resigned;
    }

    /// A heartbeat that said [`Self::drives`] has found these others.
    pub(super) fn take_in(&mut self, others: &[Replica]) -> Next {
        let mut drivers = others.iter().filter(|one| one.drives);
        match self.stage {
            Stage::Looking if drivers.all(|one| one.silent_for < FRESH) => {
                self.stage = Stage::Asking;
                Next::AtOnce
            }
            // What this heartbeat read may be older than what it wrote: whoever came meanwhile shows in the next one.
            Stage::Asking => {
                self.stage = Stage::Asked;
                Next::AtOnce
            }
            Stage::Asked if drivers.all(|one| one.sees.contains(&self.me)) => {
                self.stage = Stage::Driving;
                Next::InTime
            }
            Stage::Looking | Stage::Asked => Next::Soon,
            Stage::Driving | Stage::Resigned => Next::InTime,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::store::Roles;

    fn id(n: u128) -> Uuid {
        Uuid::from_u128(n)
    }

    fn driver(n: u128, sees: &[u128], silent_s: u64) -> Replica {
        Replica {
            id: id(n),
            name: format!("r{n}"),
            version: "0.1.0".to_owned(),
            roles: Roles { api: true, worker: true },
            drives: true,
            sees: sees.iter().map(|n| id(*n)).collect(),
            silent_for: Duration::from_secs(silent_s),
        }
    }

    #[test]
    fn alone_it_drives_after_three_heartbeats() {
        let mut standing = Standing::new(id(1), true);
        let said: Vec<_> = (0..3).map(|_| (standing.drives(), standing.take_in(&[]))).collect();
        assert_eq!(said, [(false, Next::AtOnce), (true, Next::AtOnce), (true, Next::InTime)]);
        assert!(standing.is_driving());
    }

    #[test]
    fn it_waits_for_everybody_who_drives() {
        let mut standing = Standing::new(id(1), true);
        standing.take_in(&[]);
        standing.take_in(&[]);
        assert_eq!(standing.take_in(&[driver(2, &[1, 2], 0), driver(3, &[2, 3], 0)]), Next::Soon);
        assert!(!standing.is_driving() && standing.drives());
        let bystander = Replica { drives: false, ..driver(4, &[], 0) };
        standing.take_in(&[driver(2, &[1, 2], 0), driver(3, &[1, 2, 3], 0), bystander]);
        assert!(standing.is_driving());
    }

    #[test]
    fn it_asks_nobody_to_make_room_while_somebody_may_be_dead() {
        let mut standing = Standing::new(id(1), true);
        assert_eq!(standing.take_in(&[driver(2, &[2, 3], 1), driver(3, &[2, 3], 5)]), Next::Soon);
        assert!(!standing.drives());
        assert_eq!(standing.take_in(&[driver(2, &[2], 1)]), Next::AtOnce);
        assert!(standing.drives());
    }

    #[test]
    fn who_resigned_never_drives_again() {
        let mut standing = Standing::new(id(1), true);
        (0..3).map(|_| standing.take_in(&[])).for_each(|_| {});
        standing.resign();
        (0..3).map(|_| standing.take_in(&[])).for_each(|_| {});
        assert!(!standing.drives() && !standing.is_driving());
    }

    /// What one replica of the model below knows.
    struct Modelled {
        standing: Standing,
        row: Option<Replica>,
        /// The drivers it acts upon.
        acts_on: Vec<Uuid>,
    }

    impl Modelled {
        fn beat(&mut self, read: &[Replica]) {
            let me = self.standing.me;
            let others: Vec<_> = read.iter().filter(|one| one.id != me).cloned().collect();
            self.standing.take_in(&others);
            let seen = others.iter().filter(|one| one.drives).map(|one| one.id).chain([me]);
            self.acts_on = seen.collect();
        }
    }

    proptest! {
        /// Heartbeats of four replicas in any order, each reading what was committed when it began, or one heartbeat of
        /// another earlier: whoever drives reckons with whoever else drives.
        #[test]
        fn those_who_drive_reckon_with_each_other(steps in proptest::collection::vec((0..4_usize, any::<bool>(), 0..40_u8), 1..120)) {
            let mut all: Vec<_> = (0..4_u128)
                .map(|n| Modelled { standing: Standing::new(id(n), true), row: None, acts_on: Vec::new() })
                .collect();
            let mut before: Vec<Replica> = Vec::new();
            for (who, reads_late, chance) in steps {
                if chance == 0 {
                    all[who].standing.resign();
                }
                let committed: Vec<_> = all.iter().filter_map(|one| one.row.clone()).collect();
                let one = &mut all[who];
                let sees = one.acts_on.iter().map(Uuid::as_u128).collect::<Vec<_>>();
                one.row = Some(Replica { drives: one.standing.drives(), ..driver(one.standing.me.as_u128(), &sees, 0) });
                let read = if reads_late { &committed } else { &before };
                // Of its own rows it knows; of the others' what it reads.
                one.beat(read);
                before = committed;
                for one in all.iter().filter(|one| one.standing.is_driving()) {
                    for other in all.iter().filter(|other| other.standing.is_driving()) {
                        prop_assert!(one.acts_on.contains(&other.standing.me), "{:?} drives unseen", other.standing.me);
                    }
                }
            }
        }
    }
}
