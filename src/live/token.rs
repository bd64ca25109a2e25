//! Resume tokens: a position in the timeline, authenticated, and good for whom it was made.
//!
//! The bytes are a version, the position, and HMAC-SHA256 over both and the scope, which is not in them: a token of
//! another tenant is as forged as any. Numbers are varints, those that ascend as differences, so that a usual token has
//! some 100 bytes; a snapshot has as many numbers as the server has connections that write.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;
use uuid::Uuid;

use crate::domain::time::Timestamp;
use crate::store::{Batch, Cursor, Key, Position, Snapshot};

const VERSION: u8 = 1;
/// Of the 32 that HMAC-SHA256 has: more than anybody guesses.
const MAC_BYTES: usize = 16;
/// The largest token taken: two snapshots of 10,000 running transactions each.
const TEXT_BYTES_MAX: usize = 128 << 10;

const AT: u8 = 0;
const WITHIN: u8 = 1;
const BEGINNING: u8 = 2;

/// Makes tokens and takes them back.
#[derive(Clone)]
pub(super) struct Tokens(Hmac<Sha256>);

impl std::fmt::Debug for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tokens(…)")
    }
}

impl Tokens {
    pub(super) fn new(key: &[u8; 32]) -> Self {
        // HMAC takes a key of any length.
        Self(Hmac::new_from_slice(key).expect("a key"))
    }

    /// The token of a position, for `scope` alone.
    pub(super) fn seal(&self, position: &Position, scope: &str) -> String {
        let mut bytes = Vec::with_capacity(160);
        bytes.push(VERSION);
        write_position(&mut bytes, position);
        self.authenticate(&bytes, scope)
    }

    /// The position of a token; `None` where we did not make it for `scope`.
    pub(super) fn open(&self, token: &str, scope: &str) -> Option<Position> {
        if token.len() > TEXT_BYTES_MAX {
            return None;
        }
        let bytes = BASE64.decode(token).ok()?;
        let (content, mac) = bytes.split_at(bytes.len().checked_sub(MAC_BYTES)?);
        // In constant time.
        self.mac(content, scope).verify_truncated_left(mac).ok()?;
        let mut rest = content.strip_prefix(&[VERSION])?;
        let position = read_position(&mut rest)?;
        rest.is_empty().then_some(position)
    }

    /// A token of that content, whatever it is, for `scope`: as whoever has the key could make it.
    pub(super) fn authenticate(&self, content: &[u8], scope: &str) -> String {
        let mac = self.mac(content, scope).finalize().into_bytes();
        BASE64.encode([content, &mac[..MAC_BYTES]].concat())
    }

    /// The scope's length keeps it apart from the content.
    fn mac(&self, content: &[u8], scope: &str) -> Hmac<Sha256> {
        let mut mac = self.0.clone();
        mac.update(&(scope.len() as u64).to_be_bytes());
        mac.update(scope.as_bytes());
        mac.update(content);
        mac
    }
}

fn write_position(out: &mut Vec<u8>, position: &Position) {
    let lower = position.lower();
    let is_within = matches!(position, Position::Within(..));
    out.push(if is_within { WITHIN } else { AT } | if lower.is_beginning { BEGINNING } else { 0 });
    out.extend_from_slice(&lower.epoch.to_be_bytes());
    write_cursor(out, lower);
    if let Position::Within(batch, key) = position {
        write_cursor(out, &batch.upper);
        write_number(out, key.xid);
        out.extend_from_slice(key.delivery.as_bytes());
        out.extend_from_slice(&key.attempt_count.to_be_bytes());
        out.extend_from_slice(&key.kind.to_be_bytes());
    }
}

fn read_position(from: &mut &[u8]) -> Option<Position> {
    let [form] = read_bytes(from)?;
    let epoch = u64::from_be_bytes(read_bytes(from)?);
    let lower = read_cursor(from, epoch, form & BEGINNING != 0)?;
    match form & !BEGINNING {
        AT => Some(Position::At(lower)),
        WITHIN => {
            let upper = read_cursor(from, epoch, false)?;
            let key = Key {
                xid: read_number(from)?,
                delivery: Uuid::from_bytes(read_bytes(from)?),
                attempt_count: i32::from_be_bytes(read_bytes(from)?),
                kind: i16::from_be_bytes(read_bytes(from)?),
            };
            Some(Position::Within(Batch { lower, upper }, key))
        }
        _ => None,
    }
}

fn write_cursor(out: &mut Vec<u8>, cursor: &Cursor) {
    out.extend_from_slice(&cursor.time.micros().to_be_bytes());
    let snapshot = &cursor.snapshot;
    write_number(out, snapshot.xmin());
    write_number(out, snapshot.xmax() - snapshot.xmin());
    write_number(out, snapshot.xip().len() as u64);
    let mut before = snapshot.xmin();
    for xid in snapshot.xip() {
        write_number(out, xid - before);
        before = *xid;
    }
}

fn read_cursor(from: &mut &[u8], epoch: u64, is_beginning: bool) -> Option<Arc<Cursor>> {
    let time = Timestamp::from_micros(i64::from_be_bytes(read_bytes(from)?));
    let xmin = read_number(from)?;
    let xmax = xmin.checked_add(read_number(from)?)?;
    let count = usize::try_from(read_number(from)?).ok()?;
    // Each takes a byte at least.
    if count > from.len() {
        return None;
    }
    let mut xip = Vec::with_capacity(count);
    let mut before = xmin;
    for _ in 0..count {
        before = before.checked_add(read_number(from)?)?;
        xip.push(before);
    }
    let snapshot = Snapshot::new(xmin, xmax, xip)?;
    Some(Arc::new(Cursor { snapshot, time, is_beginning, epoch }))
}

/// Seven bits a byte, the lowest first.
fn write_number(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push((number & 0x7f) as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

fn read_number(from: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let [byte] = read_bytes(from)?;
        let bits = u64::from(byte & 0x7f);
        number |= bits.checked_shl(shift).filter(|shifted| shifted >> shift == bits)?;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

fn read_bytes<const N: usize>(from: &mut &[u8]) -> Option<[u8; N]> {
    let (bytes, rest) = from.split_first_chunk()?;
    *from = rest;
    Some(*bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tokens() -> Tokens {
        Tokens::new(&[7; 32])
    }

    prop_compose! {
        fn cursors(is_beginning: bool)(xmin in 1..1_u64 << 40, ahead in proptest::collection::vec(0..300_u64, 0..40), time: i64)
            -> Arc<Cursor> {
            let mut xip: Vec<u64> = Vec::new();
            let mut xid = xmin;
            for step in ahead {
                xip.push(xid + step);
                xid += step + 1;
            }
            let snapshot = Snapshot::new(xmin, xid + 1, xip).expect("a snapshot");
            Arc::new(Cursor { snapshot, time: Timestamp::from_micros(time), is_beginning, epoch: 99 })
        }
    }

    proptest! {
        #[test]
        fn every_position_survives_and_is_good_for_its_scope_alone(
            lower in any::<bool>().prop_flat_map(cursors), upper in cursors(false), delivery: u128, xid: u64, count: i32, kind: i16
        ) {
            let key = Key { xid, delivery: Uuid::from_u128(delivery), attempt_count: count, kind };
            let within = Position::Within(Batch { lower: Arc::clone(&lower), upper }, key);
            for position in [Position::At(lower), within] {
                let token = tokens().seal(&position, "acme");
                prop_assert_eq!(tokens().open(&token, "acme"), Some(position));
                for scope in ["", "*", "acm", "acme2"] {
                    prop_assert_eq!(tokens().open(&token, scope), None);
                }
                prop_assert_eq!(Tokens::new(&[8; 32]).open(&token, "acme"), None);
            }
        }

        #[test]
        fn garbage_is_no_token(garbage: Vec<u8>, text: String) {
            prop_assert_eq!(tokens().open(&BASE64.encode(garbage), "acme"), None);
            prop_assert_eq!(tokens().open(&text, "acme"), None);
        }
    }

    #[test]
    fn a_token_that_was_altered_anywhere_is_none() {
        let snapshot = Snapshot::new(700, 760, vec![700, 712, 758]).expect("a snapshot");
        let time = Timestamp::from_micros(1_768_953_600_000_000);
        let cursor = Arc::new(Cursor { snapshot, time, is_beginning: false, epoch: 1 });
        let batch = Batch { lower: Arc::clone(&cursor), upper: cursor };
        let token = tokens().seal(&Position::Within(batch, Key::after_all_of(758)), "acme");
        assert!(token.len() < 200, "{}", token.len());
        let bytes = BASE64.decode(&token).expect("base64");
        for place in 0..bytes.len() {
            for bit in 0..8 {
                let mut altered = bytes.clone();
                altered[place] ^= 1 << bit;
                assert_eq!(tokens().open(&BASE64.encode(altered), "acme"), None, "{place}");
            }
            assert_eq!(tokens().open(&BASE64.encode(&bytes[..place]), "acme"), None, "{place}");
        }
        assert_eq!(tokens().open(&format!("{token}AAAA"), "acme"), None);
        assert_eq!(tokens().open(&"A".repeat(1 << 20), "acme"), None);
    }
}
