//! Ids as callers see them: TypeIDs, a prefix and a UUIDv7 in Crockford's base32 (`evt_01h455vb4pex5vsknk084sn02q`).
//! Source: <https://github.com/jetify-com/typeid/tree/main/spec>.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::hash::{BuildHasherDefault, Hasher};
use std::str::FromStr;

use uuid::Uuid;

use super::Problem;
use super::time::Timestamp;

const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
/// 26 digits of 5 bits carry 130 bits; the two highest are always zero.
const DIGITS: usize = 26;
/// The lower half of a UUIDv7: two bits that say what it is, and 62 random ones.
const VARIANT: u128 = 0b10 << 62;
const RAND_B: u128 = 0x3fff_ffff_ffff_ffff;

macro_rules! typed_id {
    ($name:ident, $prefix:literal, $doc:literal) => {
        #[doc = $doc]
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Uuid);

        impl $name {
            /// The part before the underscore.
            pub const PREFIX: &str = $prefix;

            /// Wraps a UUID that the database or [`new_uuid`] gave.
            pub const fn from_uuid(uuid: Uuid) -> Self {
                Self(uuid)
            }

            /// Reads the part behind the underscore alone.
            pub fn from_digits(digits: &str) -> Option<Self> {
                decode(digits).map(Self)
            }

            /// The UUID as the database stores it.
            pub const fn uuid(self) -> Uuid {
                self.0
            }

            /// When the id was drawn, to the millisecond: the first 48 bits of a UUIDv7.
            pub fn time(self) -> Timestamp {
                uuid_time(self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                const HEAD: &[u8] = concat!($prefix, "_").as_bytes();
                // In one piece, so that a text that it is written to grows once.
                let mut text = [0; HEAD.len() + DIGITS];
                text[..HEAD.len()].copy_from_slice(HEAD);
                text[HEAD.len()..].copy_from_slice(&encode(self.0));
                f.write_str(str_of(&text))
            }
        }

        impl FromStr for $name {
            type Err = Problem;

            fn from_str(text: &str) -> Result<Self, Problem> {
                text.strip_prefix(concat!($prefix, "_")).and_then(Self::from_digits).ok_or_else(|| {
                    Problem::new(concat!(
                        "is not an id of this kind; allowed is ",
                        $prefix,
                        "_ followed by 26 digits of lower-case base32"
                    ))
                })
            }
        }
    };
}

typed_id!(EndpointId, "ep", "An endpoint's id, `ep_…`.");
typed_id!(EventId, "evt", "An event's id, `evt_…`.");
typed_id!(DeliveryId, "dlv", "A delivery's id, `dlv_…`.");
typed_id!(ReplayId, "rpl", "A replay's id, `rpl_…`.");
typed_id!(AlertId, "alr", "An alert's id, `alr_…`.");
typed_id!(KeyId, "key", "An API key's id, `key_…`.");

/// A map by ids that were drawn here: they are random as they are, and nobody chooses which ones come together.
pub type IdMap<K, V> = HashMap<K, V, BuildHasherDefault<IdHasher>>;

/// A set of such ids.
pub type IdSet<K> = HashSet<K, BuildHasherDefault<IdHasher>>;

/// Takes the last eight bytes of an id for its hash: 62 random bits.
#[derive(Debug, Default)]
pub struct IdHasher(u64);

impl Hasher for IdHasher {
    fn write(&mut self, bytes: &[u8]) {
        self.0 = bytes.last_chunk().map_or(0, |last| u64::from_be_bytes(*last));
    }

    /// The length of every id.
    fn write_usize(&mut self, _: usize) {}

    /// A map looks at both ends, and two bits of one say what kind of UUID it is.
    fn finish(&self) -> u64 {
        self.0 ^ self.0.rotate_left(32)
    }
}

impl DeliveryId {
    /// Of a delivery that is made with its event, with 62 bits of the caller's randomness. It begins with the event's
    /// first 64 bits, so that an event's deliveries are a range of ids.
    pub const fn of(event: EventId, random: u64) -> Self {
        let shared = event.0.as_u128() >> 64 << 64;
        Self(Uuid::from_u128(shared | VARIANT | random as u128 & RAND_B))
    }
}

/// A UUIDv7 drawn at `now` with 74 bits of the caller's randomness. Source: RFC 9562, section 5.7.
pub const fn new_uuid(now: Timestamp, random: u128) -> Uuid {
    let millis = (now.millis() as u128) & 0xffff_ffff_ffff;
    let rand_a = (random >> 64) & 0xfff;
    Uuid::from_u128(millis << 80 | 7 << 76 | rand_a << 64 | VARIANT | random & RAND_B)
}

/// The smallest UUID drawn at or after `time`: bounds of a range over ids, such as one partition's.
pub const fn uuid_floor(time: Timestamp) -> Uuid {
    Uuid::from_u128(((time.millis() as u128) & 0xffff_ffff_ffff) << 80)
}

/// When a UUIDv7 was drawn, to the millisecond.
pub const fn uuid_time(uuid: Uuid) -> Timestamp {
    Timestamp::from_micros((uuid.as_u128() >> 80) as i64 * 1_000)
}

fn encode(uuid: Uuid) -> [u8; DIGITS] {
    let mut rest = uuid.as_u128();
    let mut digits = [0; DIGITS];
    for digit in digits.iter_mut().rev() {
        *digit = ALPHABET[(rest & 31) as usize];
        rest >>= 5;
    }
    digits
}

fn str_of(digits: &[u8]) -> &str {
    // Prefixes and the alphabet are ASCII, so this never takes the other arm.
    std::str::from_utf8(digits).unwrap_or_default()
}

fn decode(text: &str) -> Option<Uuid> {
    let digits = text.as_bytes();
    if digits.len() != DIGITS || digits[0] > b'7' {
        return None;
    }
    let mut bits: u128 = 0;
    for digit in digits {
        let value = ALPHABET.iter().position(|known| known == digit)?;
        bits = bits << 5 | value as u128;
    }
    Some(Uuid::from_u128(bits))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reads_the_specifications_example() {
        let id: EventId = "evt_01h455vb4pex5vsknk084sn02q".parse().expect("valid");
        assert_eq!(id.uuid().to_string(), "01890a5d-ac96-774b-bcce-b302099a8057");
        assert_eq!(id.to_string(), "evt_01h455vb4pex5vsknk084sn02q");
    }

    #[test]
    fn refuses_other_kinds_and_malformed_digits() {
        for text in [
            "",
            "evt_",
            "ep_01h455vb4pex5vsknk084sn02q",
            "evt_81h455vb4pex5vsknk084sn02q",
            "evt_01H455VB4PEX5VSKNK084SN02Q",
        ] {
            assert!(text.parse::<EventId>().is_err(), "{text}");
        }
    }

    /// Those of one event share their first half, and few bits of one kind of id are the same in all.
    #[test]
    fn the_ids_of_an_event_spread_over_a_map() {
        use std::hash::BuildHasher as _;
        const PLACES: u64 = 256;
        let event = EventId::from_uuid(new_uuid(Timestamp::from_micros(1_768_996_800_000_000), rand::random()));
        let ids: IdSet<DeliveryId> = (0..PLACES * 32).map(|_| DeliveryId::of(event, rand::random())).collect();
        assert_eq!(ids.len() as u64, PLACES * 32);
        let hashes: Vec<u64> = ids.iter().map(|id| ids.hasher().hash_one(id)).collect();
        for place_of in [|hash| hash % PLACES, |hash| hash / (u64::MAX / PLACES + 1)] {
            let mut met = vec![0; PLACES as usize];
            hashes.iter().for_each(|hash| met[place_of(*hash) as usize] += 1);
            // Of 32 that are expected at each place.
            assert!(met.iter().all(|count| (1..100).contains(count)), "{met:?}");
        }
    }

    proptest! {
        #[test]
        fn every_uuid_survives_the_round_trip(bits: u128) {
            let id = DeliveryId::from_uuid(Uuid::from_u128(bits));
            prop_assert_eq!(id.to_string().parse::<DeliveryId>(), Ok(id));
        }

        #[test]
        fn a_new_uuid_is_a_version_7_that_tells_its_time(millis in 0i64..(1 << 47), random: u128) {
            let now = Timestamp::from_micros((millis * 1_000).min(253_402_300_799_999_000));
            let uuid = new_uuid(now, random);
            prop_assert_eq!(uuid.get_version_num(), 7);
            prop_assert_eq!(uuid.get_variant(), uuid::Variant::RFC4122);
            prop_assert_eq!(uuid_time(uuid), now);
            prop_assert!(uuid >= uuid_floor(now));
        }
    }
}
