//! When an event's deliveries go, and which of them first: priorities and how they share, times before and after which
//! nothing is sent.

use std::time::Duration;

use super::Problem;
use super::endpoint::stored_enum;
use super::time::Timestamp;

/// Which of an endpoint's due deliveries go first. The discriminants are the contract's and the database's.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Priority {
    /// Eight of twelve, where all three wait.
    High = 1,
    /// Three of twelve.
    #[default]
    Normal = 2,
    /// One of twelve: never none.
    Low = 3,
}

stored_enum!(Priority { High, Normal, Low });

impl Priority {
    /// How many there are.
    pub const COUNT: usize = 3;
    /// All of them, the first first.
    pub const ALL: [Self; Self::COUNT] = [Self::High, Self::Normal, Self::Low];

    /// Its place among [`Self::ALL`].
    pub const fn place(self) -> usize {
        self as usize - 1
    }

    /// Its part of what is shared.
    const fn weight(self) -> i32 {
        match self {
            Self::High => 8,
            Self::Normal => 3,
            Self::Low => 1,
        }
    }
}

/// A share for each priority, by its place.
pub type ByPriority<T> = [T; Priority::COUNT];

/// How one endpoint's room has been shared so far: smooth weighted round robin. Each turn every priority that waits
/// earns its weight and the richest takes the turn for the weights of all, so that shares are exact over any twelve
/// turns, and LOW gets its one of them even where there is room for one at a time.
#[derive(Debug, Clone, Copy)]
pub struct Shares {
    credit: ByPriority<i32>,
}

impl Shares {
    /// Nothing shared yet.
    pub const NONE: Self = Self { credit: [0; Priority::COUNT] };

    /// Shares `room` among the priorities that wait; what one of them cannot use goes to the others with the next call,
    /// when it no longer waits.
    pub fn split(&mut self, room: u32, waits: ByPriority<bool>) -> ByPriority<u32> {
        let mut shares = ByPriority::default();
        let waiting = || Priority::ALL.into_iter().filter(|priority| waits[priority.place()]);
        let (Some(first), None) = (waiting().next(), waiting().nth(1)) else {
            for _ in 0..room {
                let Some(richest) = self.take_turn(waiting()) else { break };
                shares[richest.place()] += 1;
            }
            return shares;
        };
        // The common case: nothing to share, and nothing owed to those who did not wait.
        self.credit = ByPriority::default();
        shares[first.place()] = room;
        shares
    }

    fn take_turn(&mut self, waiting: impl Iterator<Item = Priority>) -> Option<Priority> {
        let (mut richest, mut sum) = (None, 0);
        for priority in waiting {
            let credit = &mut self.credit[priority.place()];
            *credit += priority.weight();
            sum += priority.weight();
            if richest.is_none_or(|(_, most)| *credit > most) {
                richest = Some((priority, *credit));
            }
        }
        let (priority, _) = richest?;
        self.credit[priority.place()] -= sum;
        Some(priority)
    }
}

/// When and in what order an event is delivered.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Schedule {
    /// Before or after others that are due.
    pub priority: Priority,
    /// What endpoints with the ordering BY_KEY order by: 1–255 visible ASCII characters.
    pub ordering_key: Option<String>,
    /// Nothing is sent before it.
    pub deliver_time: Option<Timestamp>,
    /// Nothing is sent after it.
    pub expire_time: Option<Timestamp>,
}

/// How far ahead a delivery can be put off.
pub const DELIVER_AHEAD_MAX: Duration = Duration::from_secs(366 * 24 * 3600);

/// Checks a time before which nothing is to be sent; one that has passed means at once.
pub fn parse_deliver_time(time: Timestamp, now: Timestamp) -> Result<Timestamp, Problem> {
    if time.since(now) > DELIVER_AHEAD_MAX {
        return Err(Problem::new(format!("is {time}, which is too far ahead; allowed are 366 days from now")));
    }
    Ok(time)
}

/// Checks a time after which nothing is to be sent.
pub fn parse_expire_time(time: Timestamp, deliver: Option<Timestamp>, now: Timestamp) -> Result<Timestamp, Problem> {
    if time <= now {
        return Err(Problem::new(format!("is {time}, which has passed; allowed is a time to come")));
    }
    match deliver {
        Some(deliver) if time <= deliver => {
            Err(Problem::new(format!("is {time}, which is not after deliver_time; allowed is a later time")))
        }
        _ => Ok(time),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn split_anew(room: u32, waits: ByPriority<bool>) -> ByPriority<u32> {
        let mut shares = Shares::NONE;
        shares.split(room, waits)
    }

    #[test]
    fn twelve_are_shared_as_eight_three_and_one() {
        assert_eq!(split_anew(12, [true; 3]), [8, 3, 1]);
        assert_eq!(split_anew(24, [true; 3]), [16, 6, 2]);
        assert_eq!(split_anew(8, [false, true, true]), [0, 6, 2]);
        assert_eq!(split_anew(5, [false, true, false]), [0, 5, 0]);
        assert_eq!(split_anew(5, [false; 3]), [0; 3]);
    }

    #[test]
    fn with_room_for_one_low_has_its_turn_all_the_same() {
        let mut shares = Shares::NONE;
        let turns: Vec<_> = (0..12).map(|_| shares.split(1, [true; 3])).collect();
        let of = |place: usize| turns.iter().map(|turn| turn[place]).sum::<u32>();
        assert_eq!([of(0), of(1), of(2)], [8, 3, 1]);
        assert_ne!(turns[0][0], 0, "HIGH is first");
    }

    #[test]
    fn who_did_not_wait_has_saved_nothing() {
        let mut shares = Shares::NONE;
        for _ in 0..1_000 {
            shares.split(7, [false, true, false]);
        }
        assert_eq!(shares.split(12, [true; 3]), [8, 3, 1]);
    }

    #[test]
    fn times_are_checked_against_now_and_each_other() {
        let at = |seconds: i64| Timestamp::from_micros(seconds * 1_000_000);
        let now = at(1_000);
        assert_eq!(parse_deliver_time(at(5), now), Ok(at(5)));
        assert!(parse_deliver_time(now.plus(DELIVER_AHEAD_MAX), now).is_ok());
        assert!(parse_deliver_time(now.plus(DELIVER_AHEAD_MAX * 2), now).is_err());
        assert!(parse_expire_time(now, None, now).is_err());
        assert!(parse_expire_time(at(1_001), None, now).is_ok());
        assert!(parse_expire_time(at(1_001), Some(at(1_001)), now).is_err());
        assert!(parse_expire_time(at(1_002), Some(at(1_001)), now).is_ok());
    }

    proptest! {
        #[test]
        fn all_room_is_shared_and_only_among_those_who_wait(
            rooms in proptest::collection::vec((0_u32..300, any::<[bool; 3]>()), 1..50),
        ) {
            let mut shares = Shares::NONE;
            for (room, waits) in rooms {
                let split = shares.split(room, waits);
                let anybody = waits.contains(&true);
                prop_assert_eq!(split.iter().sum::<u32>(), if anybody { room } else { 0 });
                prop_assert!(split.iter().zip(waits).all(|(share, waits)| waits || *share == 0));
            }
        }
    }
}
