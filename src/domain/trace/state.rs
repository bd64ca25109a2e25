//! What other systems say of a trace: W3C's `tracestate`, passed on as it came.
//!
//! Source: <https://www.w3.org/TR/trace-context-2/#tracestate-header>. We add no member of our own.

use std::collections::HashSet;
use std::sync::Arc;

/// A list of members, `key=value`, the latest first: at most 32, in at most 512 characters.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TraceState(Arc<str>);

/// More members are against the rules.
const MEMBERS_MAX: usize = 32;
/// What has to be passed on; of what is longer, members are left out.
const CHARS_MAX: usize = 512;
/// Longer members are left out first.
const LONG_MEMBER_CHARS: usize = 128;
const KEY_CHARS_MAX: usize = 256;
const VALUE_CHARS_MAX: usize = 256;

impl TraceState {
    /// Reads the values of all `tracestate` headers of a call, which are one list. One that breaks the rules counts as
    /// none, and so does one that is empty.
    pub fn parse<'v>(values: impl IntoIterator<Item = &'v str>) -> Option<Self> {
        let mut members = Vec::new();
        let mut keys = HashSet::new();
        for member in values.into_iter().flat_map(|value| value.split(',')) {
            let member = member.trim_matches([' ', '\t']);
            if member.is_empty() {
                continue;
            }
            let (key, value) = member.split_once('=')?;
            if !is_key(key) || !is_value(value) || members.len() == MEMBERS_MAX {
                return None;
            }
            // Of two that one system wrote, the first is the later.
            if keys.insert(key) {
                members.push(member);
            }
        }
        shorten(&mut members);
        (!members.is_empty()).then(|| Self(members.join(",").into()))
    }

    /// Trusts what the database holds; empty is none.
    pub(super) fn from_stored(bytes: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(bytes).ok().filter(|text| !text.is_empty())?;
        Some(Self(text.into()))
    }

    /// As the value of one header.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Leaves members out until the rest is short enough: long ones first, then those at the end, which are the oldest.
fn shorten(members: &mut Vec<&str>) {
    let chars = |members: &[&str]| members.iter().map(|member| member.len() + 1).sum::<usize>().saturating_sub(1);
    while chars(members) > CHARS_MAX {
        let place = members.iter().rposition(|member| member.len() > LONG_MEMBER_CHARS);
        members.remove(place.unwrap_or(members.len() - 1));
    }
}

fn is_key(key: &str) -> bool {
    let mut bytes = key.bytes();
    let is_first = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    bytes.next().is_some_and(is_first)
        && key.len() <= KEY_CHARS_MAX
        && bytes.all(|byte| is_first(byte) || matches!(byte, b'_' | b'-' | b'*' | b'/' | b'@'))
}

/// Visible characters and spaces; none at the end, where they would belong to the list.
fn is_value(value: &str) -> bool {
    (1..=VALUE_CHARS_MAX).contains(&value.len())
        && value.bytes().all(|byte| matches!(byte, b' '..=b'~') && !matches!(byte, b',' | b'='))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parsed(values: &[&str]) -> Option<String> {
        TraceState::parse(values.iter().copied()).map(|state| state.as_str().to_owned())
    }

    #[test]
    fn a_tracestate_is_read_as_the_standard_says() {
        for (values, expected) in [
            (&["congo=t61rcWkgMzE"][..], "congo=t61rcWkgMzE"),
            (&["rojo=00f067aa0ba902b7,congo=t61 rcWkgMzE"], "rojo=00f067aa0ba902b7,congo=t61 rcWkgMzE"),
            (&["a=1 , b=2,\t,", "c=3"], "a=1,b=2,c=3"),
            (&["fw529a3039@dt=FfAI,0z/*_-=~"], "fw529a3039@dt=FfAI,0z/*_-=~"),
            (&["a=new,b=2", "a=old"], "a=new,b=2"),
        ] {
            assert_eq!(parsed(values).as_deref(), Some(expected), "{values:?}");
        }
        let long_key = format!("{}=1", "k".repeat(257));
        let long_value = format!("k={}", "v".repeat(257));
        let many = (0..33).map(|n| format!("k{n}=1")).collect::<Vec<_>>().join(",");
        for bad in [
            "",
            " ,",
            "a",
            "=1",
            "a=",
            "A=1",
            "a b=1",
            "_a=1",
            "a=1=2",
            "a=ü",
            "a=1,b",
            "a=\u{7f}",
            &long_key,
            &long_value,
            &many,
        ] {
            assert_eq!(parsed(&[bad]), None, "{bad}");
        }
    }

    #[test]
    fn what_is_too_long_loses_long_members_first_and_then_the_oldest() {
        let long = |key: &str| format!("{key}={}", "v".repeat(200));
        let values = ["new=1".to_owned(), long("a"), "mid=1".to_owned(), long("b"), long("c"), "old=1".to_owned()];
        assert_eq!(parsed(&[&values.join(",")]), Some([&values[..4], &values[5..]].concat().join(",")));
        let short = (0..8).map(|n| format!("k{n}={}", "v".repeat(70))).collect::<Vec<_>>();
        assert_eq!(parsed(&[&short.join(",")]), Some(short[..6].join(",")));
    }

    proptest! {
        #[test]
        fn whatever_comes_is_bounded_and_read_again_alike(values in proptest::collection::vec("[ -~\t]{0,300}", 0..4)) {
            if let Some(state) = TraceState::parse(values.iter().map(String::as_str)) {
                prop_assert!(state.as_str().len() <= CHARS_MAX);
                prop_assert_eq!(TraceState::parse([state.as_str()]), Some(state));
            }
        }
    }
}
