//! Spans counted by size, so that quantiles of any number of them take little room and can be added up.
//!
//! A bucket is a sixteenth of a doubling wide: what is read off is within 3.2 % of what went in.

use std::time::Duration;

/// Counts of spans by bucket, ascending: there are several histograms for each endpoint in use, of some forty buckets, so
/// they are kept as small as they can be. A count stops at what its type holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Histogram(Vec<(u16, u32)>);

/// Buckets of a doubling, as a power of two.
const SUB_BITS: u32 = 4;

impl Histogram {
    /// Counts one span.
    pub fn add(&mut self, span: Duration) {
        let micros = u64::try_from(span.as_micros()).unwrap_or(u64::MAX);
        self.add_to(bucket(micros), 1);
    }

    fn add_to(&mut self, bucket: u16, more: u32) {
        match self.0.binary_search_by_key(&bucket, |(known, _)| *known) {
            Ok(place) => self.0[place].1 = self.0[place].1.saturating_add(more),
            Err(place) => self.0.insert(place, (bucket, more)),
        }
    }

    /// Adds what another one counted.
    pub fn merge(&mut self, other: &Self) {
        for (bucket, count) in &other.0 {
            self.add_to(*bucket, *count);
        }
    }

    /// How many were counted.
    pub fn count(&self) -> u64 {
        self.0.iter().map(|(_, count)| u64::from(*count)).sum()
    }

    /// The span that this share (0 to 1) of those counted does not exceed, about; `None` if none was counted.
    pub fn quantile(&self, share: f64) -> Option<Duration> {
        let rank = ((self.count() as f64 * share).ceil() as u64).max(1);
        let mut seen = 0;
        let found = self.0.iter().find(|(_, count)| {
            seen += u64::from(*count);
            seen >= rank
        });
        found.map(|(bucket, _)| Duration::from_micros(middle(*bucket)))
    }

    /// As the database keeps it: for each bucket its distance from the one before and its count, as LEB128.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.0.len() * 3);
        let mut last = 0;
        for (bucket, count) in &self.0 {
            write_number(&mut bytes, u64::from(bucket - last));
            write_number(&mut bytes, u64::from(*count));
            last = *bucket;
        }
        bytes
    }

    /// The inverse of [`Self::to_bytes`]; `None` where the bytes are none of its.
    pub fn from_bytes(mut bytes: &[u8]) -> Option<Self> {
        let mut read = Self::default();
        let mut last: u16 = 0;
        while !bytes.is_empty() {
            last = last.checked_add(u16::try_from(read_number(&mut bytes)?).ok()?)?;
            read.add_to(last, u32::try_from(read_number(&mut bytes)?).unwrap_or(u32::MAX));
        }
        Some(read)
    }
}

/// The exponent of the highest bit, and the bits below it.
const fn bucket(micros: u64) -> u16 {
    if micros < 1 << SUB_BITS {
        return micros as u16;
    }
    let exponent = 63 - micros.leading_zeros();
    let sub = (micros >> (exponent - SUB_BITS)) & ((1 << SUB_BITS) - 1);
    (((exponent - SUB_BITS + 1) << SUB_BITS) as u16) + sub as u16
}

const fn middle(bucket: u16) -> u64 {
    let (exponent, sub) = ((bucket as u64) >> SUB_BITS, (bucket as u64) & ((1 << SUB_BITS) - 1));
    if exponent == 0 {
        return sub;
    }
    // A bucket that no span falls into, of bytes that are none of ours, must not overflow.
    let width = if exponent > 60 { 60 } else { exponent } - 1;
    let low = ((1 << SUB_BITS) + sub) << width;
    low.saturating_add((1 << width) / 2)
}

fn write_number(bytes: &mut Vec<u8>, mut number: u64) {
    loop {
        let low = (number & 0x7f) as u8;
        number >>= 7;
        if number == 0 {
            return bytes.push(low);
        }
        bytes.push(low | 0x80);
    }
}

fn read_number(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for place in 0..10 {
        let (first, rest) = bytes.split_first()?;
        *bytes = rest;
        number |= u64::from(first & 0x7f) << (7 * place);
        if first & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(micros: &[u64]) -> Histogram {
        let mut histogram = Histogram::default();
        micros.iter().for_each(|micros| histogram.add(Duration::from_micros(*micros)));
        histogram
    }

    #[test]
    fn quantiles_are_those_of_what_was_counted() {
        assert_eq!(Histogram::default().quantile(0.5), None);
        let histogram = of(&(1..=1_000).map(|millis| millis * 1_000).collect::<Vec<_>>());
        for (share, expected) in [(0.5, 500_000.0), (0.95, 950_000.0), (0.99, 990_000.0), (0.0, 1_000.0), (1.0, 1e6)] {
            let found = histogram.quantile(share).expect("counted").as_micros() as f64;
            assert!((found / expected - 1.0).abs() < 0.04, "{share}: {found}");
        }
        assert_eq!(of(&[7]).quantile(0.99), Some(Duration::from_micros(7)));
    }

    #[test]
    fn a_long_span_and_strange_bytes_break_nothing() {
        assert!(of(&[u64::MAX]).quantile(0.5).is_some());
        assert_eq!(Histogram::from_bytes(&[0x80]), None);
        assert_eq!(Histogram::from_bytes(&[1]), None);
        assert_eq!(Histogram::from_bytes(&[0xff; 30]), None);
        assert!(Histogram::from_bytes(&[0xff, 0xff, 0x03, 1]).expect("one").quantile(0.5).is_some());
        let mut full = Histogram::from_bytes(&[1, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01]).expect("more than it holds");
        full.merge(&of(&[1]));
        assert_eq!(full.count(), u64::from(u32::MAX), "a count stops");
    }

    proptest! {
        #[test]
        fn what_is_read_off_is_near_what_went_in(micros in 0u64..1 << 62) {
            let found = of(&[micros]).quantile(0.5).expect("counted").as_micros() as f64;
            prop_assert!((found - micros as f64).abs() <= micros as f64 * 0.032, "{found}");
        }

        #[test]
        fn sums_and_bytes_hold_everything(one: Vec<u32>, other: Vec<u32>) {
            let of = |spans: &[u32]| of(&spans.iter().map(|span| u64::from(*span)).collect::<Vec<_>>());
            let mut sum = of(&one);
            sum.merge(&of(&other));
            prop_assert_eq!(&sum, &of(&[one, other].concat()));
            prop_assert_eq!(Histogram::from_bytes(&sum.to_bytes()), Some(sum));
        }
    }
}
