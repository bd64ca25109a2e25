//! What replicas tell each other by NOTIFY, as text on one channel. A note that is lost costs waiting, nothing else.
//!
//! `SENDER members TO`, `SENDER work AT GROWN MORE ENDPOINTS` and `SENDER changed ENDPOINTS`: ids in hexadecimal, but
//! endpoints one after the other in base64, of 22 digits each. A kind that this version does not know stands for a look at everything.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sqlx::types::Uuid;

use crate::domain::id::EndpointId;
use crate::domain::time::Timestamp;

/// The channel.
pub(super) const CHANNEL: &str = "hooklane";

/// What one replica tells the others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Note {
    /// Look at who is there: it has changed, or somebody waits for your heartbeat.
    Members {
        /// Who is to look; `None` is everybody.
        to: Option<Uuid>,
    },
    /// There is work.
    Work(Work),
}

/// What was done that others should know of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Work {
    /// Endpoints with something due, and since when at the earliest.
    pub endpoints: Vec<EndpointId>,
    /// See `endpoints`.
    pub at: Timestamp,
    /// Whether there are more endpoints than are named.
    pub is_more: bool,
    /// Whether the timeline has grown.
    pub is_grown: bool,
    /// Endpoints of which something has changed that lets their requests through.
    pub changed: Vec<EndpointId>,
}

/// PostgreSQL takes payloads of less than 8,000 bytes; what stands before the endpoints has 70 at most.
const ENDPOINTS_OF_ONE: usize = 350;
/// Payloads of one note.
const PAYLOADS_MAX: usize = 4;
/// Endpoints that one note can name.
pub const NAMED_MAX: usize = ENDPOINTS_OF_ONE * PAYLOADS_MAX;
const DIGITS: usize = 22;

impl Default for Work {
    /// Nothing to tell.
    fn default() -> Self {
        let at = Timestamp::from_micros(0);
        Self { endpoints: Vec::new(), at, is_more: false, is_grown: false, changed: Vec::new() }
    }
}

impl Note {
    /// The payloads that say it.
    pub(super) fn payloads(&self, sender: Uuid) -> Vec<String> {
        let sender = sender.simple();
        match self {
            Self::Members { to: None } => vec![format!("{sender} members *")],
            Self::Members { to: Some(to) } => vec![format!("{sender} members {}", to.simple())],
            Self::Work(work) => {
                let named = &work.endpoints[..work.endpoints.len().min(NAMED_MAX)];
                let is_more = work.is_more || work.endpoints.len().max(work.changed.len()) > NAMED_MAX;
                let (grown, more, at) = (u8::from(work.is_grown), u8::from(is_more), work.at.micros());
                // One payload at least: it may say nothing but that the timeline has grown.
                let parts = named.len().div_ceil(ENDPOINTS_OF_ONE).max(1);
                let part = |n: usize| {
                    let ids = named.iter().skip(n * ENDPOINTS_OF_ONE).take(ENDPOINTS_OF_ONE);
                    format!("{sender} work {at} {grown} {more} {}", digits(ids))
                };
                let changed = work.changed[..work.changed.len().min(NAMED_MAX)].chunks(ENDPOINTS_OF_ONE);
                (0..parts).map(part).chain(changed.map(|ids| format!("{sender} changed {}", digits(ids)))).collect()
            }
        }
    }

    /// Reads a payload: who sent it, and what it says. `None` where it is not one of ours.
    pub(super) fn parse(payload: &str) -> Option<(Uuid, Self)> {
        let mut words = payload.split(' ');
        let sender = Uuid::try_parse(words.next()?).ok()?;
        let note = match words.next()? {
            "members" => {
                let to = words.next()?;
                Self::Members { to: if to == "*" { None } else { Some(Uuid::try_parse(to).ok()?) } }
            }
            "work" => Self::Work(Work {
                at: Timestamp::from_micros(words.next()?.parse().ok()?),
                is_grown: words.next()? == "1",
                is_more: words.next()? == "1",
                endpoints: endpoints(words.next()?)?,
                changed: Vec::new(),
            }),
            "changed" => Self::Work(Work { changed: endpoints(words.next()?)?, ..Work::default() }),
            _ => Self::Work(Work { is_more: true, is_grown: true, ..Work::default() }),
        };
        Some((sender, note))
    }
}

fn digits<'i>(ids: impl IntoIterator<Item = &'i EndpointId>) -> String {
    ids.into_iter().map(|id| URL_SAFE_NO_PAD.encode(id.uuid().as_bytes())).collect()
}

fn endpoints(digits: &str) -> Option<Vec<EndpointId>> {
    digits.as_bytes().chunks(DIGITS).map(endpoint).collect()
}

fn endpoint(digits: &[u8]) -> Option<EndpointId> {
    let bytes: [u8; 16] = URL_SAFE_NO_PAD.decode(digits).ok()?.try_into().ok()?;
    Some(EndpointId::from_uuid(Uuid::from_bytes(bytes)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SENDER: Uuid = Uuid::from_u128(7);

    fn work(count: usize) -> Work {
        let endpoints = (0..count).map(|n| EndpointId::from_uuid(Uuid::from_u128(n as u128))).collect();
        Work { endpoints, at: Timestamp::from_micros(i64::MIN), is_grown: true, ..Work::default() }
    }

    #[test]
    fn however_much_there_is_to_say_every_payload_is_taken() {
        for count in [0, 1, ENDPOINTS_OF_ONE, ENDPOINTS_OF_ONE + 1, NAMED_MAX, NAMED_MAX + 1, 100_000] {
            let payloads = Note::Work(work(count)).payloads(SENDER);
            assert!((1..=PAYLOADS_MAX).contains(&payloads.len()) && payloads.iter().all(|one| one.len() < 8_000));
            let mut named = Vec::new();
            for payload in &payloads {
                let Some((SENDER, Note::Work(part))) = Note::parse(payload) else { panic!("{payload}") };
                assert_eq!((part.is_more, part.is_grown), (count > NAMED_MAX, true));
                named.extend(part.endpoints);
            }
            assert_eq!(named, work(count.min(NAMED_MAX)).endpoints);
        }
    }

    #[test]
    fn changed_endpoints_are_told_beside_the_work() {
        for count in [1, ENDPOINTS_OF_ONE + 1, NAMED_MAX + 1] {
            let all = Work { changed: work(count).endpoints, ..work(3) };
            let payloads = Note::Work(all.clone()).payloads(SENDER);
            assert!(payloads.iter().all(|one| one.len() < 8_000));
            let mut changed = Vec::new();
            for payload in &payloads[1..] {
                let Some((SENDER, Note::Work(part))) = Note::parse(payload) else { panic!("{payload}") };
                assert!(part.endpoints.is_empty() && !part.is_more && !part.is_grown);
                changed.extend(part.changed);
            }
            assert_eq!(changed, all.changed[..count.min(NAMED_MAX)]);
            let Some((_, Note::Work(first))) = Note::parse(&payloads[0]) else { panic!("{}", payloads[0]) };
            assert_eq!((first.endpoints.len(), first.is_more), (3, count > NAMED_MAX));
        }
    }

    #[test]
    fn a_later_versions_note_is_a_reason_to_look() {
        let (sender, note) = Note::parse("00000000000000000000000000000007 lanes 1 2 3").expect("a note");
        assert!(sender == SENDER && matches!(note, Note::Work(Work { is_more: true, is_grown: true, .. })));
    }

    #[test]
    fn what_is_not_ours_is_no_note() {
        for payload in ["", "hello", "members *", "7 work", "00000000000000000000000000000007 work 1 1 1 x"] {
            assert_eq!(Note::parse(payload), None, "{payload}");
        }
    }

    proptest! {
        #[test]
        fn notes_survive_the_wire(to in proptest::option::of(any::<u128>()), ids: Vec<u128>, at: i64, more: bool, grown: bool) {
            let endpoints = ids.into_iter().map(|id| EndpointId::from_uuid(Uuid::from_u128(id))).collect();
            let at = Timestamp::from_micros(at);
            let work = Work { endpoints, at, is_more: more, is_grown: grown, changed: Vec::new() };
            for note in [Note::Members { to: to.map(Uuid::from_u128) }, Note::Work(work)] {
                let payloads = note.payloads(SENDER);
                prop_assert_eq!(Note::parse(&payloads[0]), Some((SENDER, note)));
            }
        }
    }
}
