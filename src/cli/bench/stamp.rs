//! The time that a payload carries from its publisher to its receiver, and the clock that both read.
//!
//! The stamp is found by its marker in whatever body the service made around the payload.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;

const MARKER: &[u8] = b"\"sent_ns\":";
const ORDER: &[u8] = b"\"order\":\"";
/// Nanoseconds since the epoch have 19 digits until the year 2286.
const DIGITS: usize = 19;
/// `{"sent_ns":`, the digits, `,"pad":"` and `"}`.
const BYTES_MIN: usize = 1 + MARKER.len() + DIGITS + 8 + 2;

/// Nanoseconds since the epoch.
#[expect(
    clippy::disallowed_methods,
    reason = "processes of one machine share its clock, and nothing is due by it here"
)]
pub(super) fn wall_ns() -> u64 {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since_epoch.as_nanos()).unwrap_or(u64::MAX)
}

/// A while after such a moment, as the contract writes it.
pub(super) fn time(ns: u64, after: Duration) -> prost_types::Timestamp {
    let time = Duration::from_nanos(ns) + after;
    prost_types::Timestamp {
        seconds: time.as_secs().try_into().unwrap_or(i64::MAX),
        nanos: time.subsec_nanos().cast_signed(),
    }
}

/// Makes JSON payloads of one size, each with its stamp.
#[derive(Debug, Clone)]
pub(super) struct Payloads {
    template: Vec<u8>,
}

impl Payloads {
    /// Payloads of `bytes` bytes, or of the fewest that hold a stamp.
    pub(super) fn of(bytes: usize) -> Self {
        let pad = "x".repeat(bytes.saturating_sub(BYTES_MIN));
        let zeros = "0".repeat(DIGITS);
        Self { template: format!("{{\"sent_ns\":{zeros},\"pad\":\"{pad}\"}}").into_bytes() }
    }

    /// The payload that was sent at `sent_ns`.
    pub(super) fn stamped(&self, sent_ns: u64) -> Bytes {
        let mut payload = self.template.clone();
        let digits = format!("{sent_ns:0>DIGITS$}");
        let start = 1 + MARKER.len();
        payload[start..start + DIGITS].copy_from_slice(&digits.as_bytes()[..DIGITS]);
        payload.into()
    }

    /// The same, with its place behind a key: as many bytes more as that takes.
    pub(super) fn ordered(&self, sent_ns: u64, key: u64, number: u64) -> Bytes {
        let stamped = self.stamped(sent_ns);
        let order = format!("{{\"order\":\"{key}-{number}\",");
        [order.as_bytes(), &stamped[1..]].concat().into()
    }
}

/// The place of the payload inside `body` in its publisher's order: key, and number behind it from 0 on.
pub(super) fn place(body: &[u8]) -> Option<(u64, u64)> {
    let marker = body.windows(ORDER.len()).position(|window| window == ORDER)?;
    let digits = body.get(marker + ORDER.len()..)?;
    let digits = std::str::from_utf8(digits.get(..digits.iter().position(|byte| *byte == b'"')?)?).ok()?;
    let (key, number) = digits.split_once('-')?;
    Some((key.parse().ok()?, number.parse().ok()?))
}

/// An idempotency key that no other event has, and that tells when its event was sent.
pub(super) fn key(sent_ns: u64, place: usize) -> String {
    format!("{sent_ns}-{place}")
}

/// When the event with this key was sent.
pub(super) fn sent_ns_of_key(key: &str) -> Option<u64> {
    key.split_once('-')?.0.parse().ok()
}

/// When the payload inside `body` was sent.
pub(super) fn sent_ns(body: &[u8]) -> Option<u64> {
    let marker = body.windows(MARKER.len()).position(|window| window == MARKER)?;
    let digits = body.get(marker + MARKER.len()..)?.get(..DIGITS)?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_tells_when_its_event_was_sent() {
        assert_eq!((sent_ns_of_key(&key(77, 3)), sent_ns_of_key("77")), (Some(77), None));
    }

    #[test]
    fn a_stamp_is_found_inside_an_envelope_and_the_size_is_kept() {
        let now = wall_ns();
        let payload = Payloads::of(500).stamped(now);
        assert_eq!(payload.len(), 500);
        assert!(serde_json::from_slice::<serde_json::Value>(&payload).is_ok());
        let envelope = [b"{\"id\":\"evt_1\",\"data\":".as_slice(), &payload, b"}"].concat();
        assert_eq!(sent_ns(&envelope), Some(now));
        assert_eq!(sent_ns(b"{\"sent_ns\":12}"), None);
        assert_eq!(place(&envelope), None);
        let ordered = Payloads::of(500).ordered(now, 7, 12);
        assert!(serde_json::from_slice::<serde_json::Value>(&ordered).is_ok());
        assert_eq!((sent_ns(&ordered), place(&ordered)), (Some(now), Some((7, 12))));
    }
}
