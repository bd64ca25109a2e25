//! Which of several drivers a lane falls to: the one with the highest weight for its endpoint (rendezvous hashing).
//!
//! Every replica works it out by itself, so the weights are specified here, bit by bit, and never change: two versions
//! of the program run side by side. One driver more or less moves the lanes that fall to it, and no other.

use uuid::Uuid;

use super::id::EndpointId;

/// One that lanes can fall to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Driver {
    /// Tells drivers apart.
    pub id: Uuid,
    seed: u64,
}

impl Driver {
    /// Lanes are dealt by name, so that who comes back under another id gets back what it had.
    pub fn new(id: Uuid, name: &str) -> Self {
        Self { id, seed: fnv_1a(name.as_bytes()) }
    }
}

/// Whom the lane of `endpoint` falls to; `None` without drivers.
pub fn driver_of(endpoint: EndpointId, drivers: &[Driver]) -> Option<&Driver> {
    let key = key_of(endpoint);
    drivers.iter().max_by_key(|driver| (mix(key ^ driver.seed), driver.id))
}

/// Both halves of the id count: the first is the time at which it was drawn.
fn key_of(endpoint: EndpointId) -> u64 {
    let (high, low) = endpoint.uuid().as_u64_pair();
    mix(high ^ mix(low))
}

/// FNV-1a, 64 bits. Source: <http://www.isthe.com/chongo/tech/comp/fnv/>.
fn fnv_1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3))
}

/// The finalizer of SplitMix64, a bijection. Source: <https://prng.di.unimi.it/splitmix64.c>.
const fn mix(mut bits: u64) -> u64 {
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::domain::id::new_uuid;
    use crate::domain::time::Timestamp;

    fn drivers(names: &[String]) -> Vec<Driver> {
        names.iter().enumerate().map(|(n, name)| Driver::new(Uuid::from_u128(n as u128), name)).collect()
    }

    fn endpoint(bits: u128) -> EndpointId {
        EndpointId::from_uuid(Uuid::from_u128(bits))
    }

    #[test]
    fn weights_are_what_they_always_were() {
        // Other versions of the program hold these same answers: a change here is two replicas driving one lane.
        assert_eq!(fnv_1a(b"foobar"), 0x8594_4171_f739_67e8);
        assert_eq!(mix(0x9e37_79b9_7f4a_7c15), 0xe220_a839_7b1d_cdaf);
        let drivers = drivers(&["a", "b", "c"].map(str::to_owned));
        let falls_to: Vec<_> = (0..12_u128)
            .filter_map(|n| driver_of(endpoint(n << 64 | n), &drivers))
            .map(|driver| driver.id.as_u128())
            .collect();
        assert_eq!(falls_to, [2, 0, 0, 2, 2, 0, 0, 0, 2, 0, 1, 1]);
    }

    #[test]
    fn without_drivers_a_lane_falls_to_nobody() {
        assert_eq!(driver_of(endpoint(1), &[]), None);
    }

    proptest! {
        #[test]
        fn lanes_are_dealt_evenly(names in proptest::collection::hash_set("[a-z]{1,12}-[0-9a-f]{8}", 2..9), salt: u64) {
            let drivers = drivers(&names.into_iter().collect::<Vec<_>>());
            let mut counts = vec![0_u32; drivers.len()];
            const LANES: u32 = 4_000;
            for lane in 0..LANES {
                // As they are drawn: at about one time, with random ends.
                let now = Timestamp::from_micros(1_768_953_600_000_000 + i64::from(lane) * 1_000);
                let random = u128::from(mix(salt ^ u64::from(lane))) << 11;
                let id = EndpointId::from_uuid(new_uuid(now, random));
                counts[driver_of(id, &drivers).expect("one").id.as_u128() as usize] += 1;
            }
            let fair = LANES / u32::try_from(drivers.len()).expect("a few");
            // Six standard deviations at nine drivers, and more at fewer.
            prop_assert!(counts.iter().all(|count| count.abs_diff(fair) < fair / 3), "{counts:?}");
        }

        #[test]
        fn one_driver_less_moves_its_own_lanes_alone(
            names in proptest::collection::hash_set("[a-z]{1,12}", 2..9), gone: usize, lanes: [u128; 32],
        ) {
            let all = drivers(&names.into_iter().collect::<Vec<_>>());
            let gone = gone % all.len();
            let rest: Vec<_> = all.iter().copied().filter(|driver| *driver != all[gone]).collect();
            for lane in lanes.map(endpoint) {
                let before = driver_of(lane, &all).expect("one");
                if *before != all[gone] {
                    prop_assert_eq!(driver_of(lane, &rest), Some(before));
                }
            }
        }

        #[test]
        fn the_order_in_which_drivers_are_known_says_nothing(names in proptest::collection::hash_set("[a-z]{1,12}", 1..9), lane: u128) {
            let forwards = drivers(&names.into_iter().collect::<Vec<_>>());
            let backwards: Vec<_> = forwards.iter().copied().rev().collect();
            prop_assert_eq!(driver_of(endpoint(lane), &forwards), driver_of(endpoint(lane), &backwards));
        }
    }
}
