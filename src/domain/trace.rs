//! Where in which trace something belongs, as W3C's trace context has it, and which traces are recorded.
//!
//! Source: <https://www.w3.org/TR/trace-context/>.

mod state;

use std::fmt;

pub use self::state::TraceState;
use super::Problem;
use super::id::{DeliveryId, EventId};

/// A place in a trace: the trace, a span of it, whether it is recorded, and what other systems say of it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TraceContext {
    trace_id: TraceId,
    span_id: u64,
    flags: u8,
    state: Option<TraceState>,
}

/// Names a trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TraceId(u128);

impl TraceId {
    /// That of an event without a trace: its own.
    pub const fn of_event(id: EventId) -> Self {
        Self(id.uuid().as_u128())
    }

    /// As a number.
    pub const fn number(self) -> u128 {
        self.0
    }
}

/// 32 hexadecimal digits.
impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// The only flag we go by: that the trace is recorded.
const SAMPLED: u8 = 1;
/// That, and that the trace id is random. Others are not known and not passed on.
const KNOWN_FLAGS: u8 = 3;
/// Bytes of trace, span and flags, as the database keeps them; what other systems say follows.
const PLACE_BYTES: usize = 25;

/// The id of an attempt's span. It follows from the delivery, so that the attempt has it in everybody's eyes: the
/// receiver's, who is told of it, and whoever finds later that its worker was lost. The lower half of a delivery's id is
/// random.
pub fn attempt_span(delivery: DeliveryId, attempt: u32) -> u64 {
    let (_, low) = delivery.uuid().as_u64_pair();
    // All zeros is no id.
    (low ^ u64::from(attempt)).max(1)
}

impl TraceContext {
    /// A place in a trace that is recorded. All zeros is no id.
    pub fn recorded(trace_id: u128, span_id: u64) -> Option<Self> {
        let context = Self { trace_id: TraceId(trace_id), span_id, flags: SAMPLED, state: None };
        (trace_id != 0 && span_id != 0).then_some(context)
    }

    /// An attempt's place in a trace of its event's own, which nobody records: what receivers tell of it correlates.
    pub fn of_attempt(event: EventId, delivery: DeliveryId, attempt: u32) -> Self {
        let span_id = attempt_span(delivery, attempt);
        Self { trace_id: TraceId::of_event(event), span_id, flags: 0, state: None }
    }

    /// Reads a `traceparent`. One that breaks the rules counts as none: so does the standard.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('-');
        let version = lower_hex(parts.next()?, 2)?;
        let trace_id = lower_hex(parts.next()?, 32)?;
        let span_id = u64::try_from(lower_hex(parts.next()?, 16)?).ok()?;
        let flags = u8::try_from(lower_hex(parts.next()?, 2)?).ok()? & KNOWN_FLAGS;
        // Later versions may have more behind it.
        let is_whole = version < 0xff && (version > 0 || parts.next().is_none());
        let context = Self { trace_id: TraceId(trace_id), span_id, flags, state: None };
        (is_whole && trace_id != 0 && span_id != 0).then_some(context)
    }

    /// With what other systems say of the trace.
    #[must_use]
    pub fn with_state(self, state: Option<TraceState>) -> Self {
        Self { state, ..self }
    }

    /// Another span of the same trace.
    #[must_use]
    pub fn with_span(self, span_id: u64) -> Self {
        Self { span_id, ..self }
    }

    /// The same place in a trace that is recorded, whatever its beginner does.
    #[must_use]
    pub fn into_recorded(self) -> Self {
        Self { flags: self.flags | SAMPLED, ..self }
    }

    /// The same place in a trace that is not recorded.
    #[must_use]
    pub fn into_unrecorded(self) -> Self {
        Self { flags: self.flags & !SAMPLED, ..self }
    }

    /// Names the trace.
    pub const fn trace_id(&self) -> TraceId {
        self.trace_id
    }

    /// Names the span.
    pub const fn span_id(&self) -> u64 {
        self.span_id
    }

    /// What other systems say of the trace.
    pub const fn state(&self) -> Option<&TraceState> {
        self.state.as_ref()
    }

    /// Whether the trace is recorded by whoever began it.
    pub const fn is_recorded(&self) -> bool {
        self.flags & SAMPLED != 0
    }

    /// As the database keeps it.
    pub fn to_bytes(&self) -> Vec<u8> {
        let state = self.state.as_ref().map_or("", TraceState::as_str);
        let mut bytes = Vec::with_capacity(PLACE_BYTES + state.len());
        bytes.extend(self.trace_id.0.to_be_bytes());
        bytes.extend(self.span_id.to_be_bytes());
        bytes.push(self.flags);
        bytes.extend(state.as_bytes());
        bytes
    }

    /// From what the database keeps.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (trace_id, rest) = bytes.split_first_chunk()?;
        let (span_id, rest) = rest.split_first_chunk()?;
        let (flags, state) = rest.split_first()?;
        Some(Self {
            trace_id: TraceId(u128::from_be_bytes(*trace_id)),
            span_id: u64::from_be_bytes(*span_id),
            flags: *flags,
            state: TraceState::from_stored(state),
        })
    }
}

/// As a `traceparent`.
impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{}-{:016x}-{:02x}", self.trace_id, self.span_id, self.flags)
    }
}

fn lower_hex(text: &str, digits: usize) -> Option<u128> {
    let is_hex = text.len() == digits && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    if is_hex { u128::from_str_radix(text, 16).ok() } else { None }
}

/// Which traces are recorded.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampler {
    /// Whether a trace that came with a call is recorded as its caller does.
    follows_parent: bool,
    /// The share of the other traces, 0–1.
    share: f64,
}

impl Default for Sampler {
    /// As the caller does, and else all.
    fn default() -> Self {
        Self { follows_parent: true, share: 1.0 }
    }
}

impl Sampler {
    /// By its name in `OTEL_TRACES_SAMPLER`.
    pub fn parse(name: &str, share: f64) -> Result<Self, Problem> {
        let (follows_parent, root) = match name.strip_prefix("parentbased_") {
            Some(root) => (true, root),
            None => (false, name),
        };
        let share = match root {
            "always_on" => 1.0,
            "always_off" => 0.0,
            "traceidratio" => share,
            _ => {
                return Err(Problem::new(
                    "is not known; allowed are always_on, always_off, traceidratio, and each after parentbased_",
                ));
            }
        };
        Ok(Self { follows_parent, share })
    }

    /// Reads `OTEL_TRACES_SAMPLER_ARG`.
    pub fn parse_share(text: &str) -> Result<f64, Problem> {
        let share = text.parse().ok().filter(|share| (0.0..=1.0).contains(share));
        share.ok_or_else(|| Problem::new("is no share; allowed is a number from 0 to 1"))
    }

    /// Whether a trace is recorded. By its id, so that everybody who is asked for the same share decides alike.
    pub fn samples(&self, trace_id: u128, parent: Option<&TraceContext>) -> bool {
        match parent {
            Some(parent) if self.follows_parent => parent.is_recorded(),
            // The lower half is random even where the upper tells the time; 63 bits of it, as other SDKs do.
            _ => self.share >= 1.0 || ((trace_id as u64) >> 1) < (self.share * (1_u64 << 63) as f64) as u64,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GOOD: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn a_traceparent_is_read_as_the_standard_says() {
        let context = TraceContext::parse(GOOD).expect("a context");
        assert_eq!(context.to_string(), GOOD);
        assert!(context.is_recorded());
        assert_eq!(context.trace_id().number(), 0x0af7651916cd43dd8448eb211c80319c);
        assert_eq!(context.span_id(), 0xb7ad6b7169203331);
        let unknown_flags = TraceContext::parse(&GOOD.replace("-01", "-fc")).expect("a context");
        assert_eq!(unknown_flags.to_string(), GOOD.replace("-01", "-00"));
        let later = GOOD.replacen("00-", "cc-", 1) + "-what-the-future-will-be-like";
        assert_eq!(TraceContext::parse(&later), Some(context));
        for bad in [
            "",
            "00",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-x",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "00-+af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319-b7ad6b7169203331-01",
        ] {
            assert_eq!(TraceContext::parse(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn what_is_kept_is_read_again(
            trace_id in 1..u128::MAX,
            span_id in 1..u64::MAX,
            state in proptest::option::of("[a-z]{1,9}=[!-+]{1,9}"),
            text in "[ -~]{0,80}",
        ) {
            let bare = TraceContext::recorded(trace_id, span_id).expect("a context");
            prop_assert_eq!(bare.to_bytes().len(), PLACE_BYTES);
            prop_assert_eq!(TraceContext::from_bytes(&bare.to_bytes()[1..]), None);
            let context = bare.clone().with_state(state.as_deref().and_then(|state| TraceState::parse([state])));
            prop_assert_eq!(context.state().map(TraceState::as_str), state.as_deref());
            prop_assert_eq!(TraceContext::parse(&context.to_string()), Some(bare));
            prop_assert_eq!(TraceContext::from_bytes(&context.to_bytes()), Some(context));
            // Whatever it is, it is no harm.
            let _ = TraceContext::parse(&text);
        }
    }

    #[test]
    fn samplers_follow_their_names() {
        let recorded = TraceContext::parse(GOOD);
        let not_recorded = TraceContext::parse(&GOOD.replace("-01", "-00"));
        let low = 1_u128;
        let high = u128::MAX;
        for (name, share, expected) in [
            // Of: a low and a high id without a parent, a parent that is recorded, one that is not.
            ("always_on", 0.0, [true, true, true, true]),
            ("always_off", 1.0, [false, false, false, false]),
            ("traceidratio", 0.5, [true, false, true, true]),
            ("parentbased_always_on", 0.0, [true, true, true, false]),
            ("parentbased_always_off", 1.0, [false, false, true, false]),
            ("parentbased_traceidratio", 0.5, [true, false, true, false]),
            ("traceidratio", 0.0, [false, false, false, false]),
            ("traceidratio", 1.0, [true, true, true, true]),
        ] {
            let sampler = Sampler::parse(name, share).expect(name);
            let sampled = [
                sampler.samples(low, None),
                sampler.samples(high, None),
                sampler.samples(low, recorded.as_ref()),
                sampler.samples(low, not_recorded.as_ref()),
            ];
            assert_eq!(sampled, expected, "{name} {share}");
        }
        for bad in ["", "parentbased_", "jaeger_remote", "ALWAYS_ON"] {
            assert!(Sampler::parse(bad, 1.0).is_err(), "{bad}");
        }
        for bad in ["", "-0.1", "1.1", "NaN", "half"] {
            assert!(Sampler::parse_share(bad).is_err(), "{bad}");
        }
        assert_eq!(Sampler::parse_share("0.25"), Ok(0.25));
    }
}
