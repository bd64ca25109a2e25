//! The rules of webhook delivery as pure functions and valid values.
//!
//! Nothing here does I/O, reads a clock or draws a random number: callers pass `now` and jitter in.
//! A value that exists has passed its rules; parsing answers with a [`Problem`] in words for the caller.

pub mod access;
pub mod address;
pub mod alert;
pub mod api_key;
pub mod attempt;
pub mod body;
pub mod circuit;
pub mod cloudevents;
pub mod delivery;
pub mod endpoint;
pub mod event;
pub mod fields;
pub mod filter;
pub mod headers;
pub mod histogram;
pub mod id;
pub mod keyring;
pub mod pattern;
pub mod rate;
pub mod rendezvous;
pub mod retry;
pub mod retry_after;
pub mod schedule;
pub mod secret;
pub mod signature;
pub mod time;
pub mod tls;
pub mod trace;
pub mod url;
pub mod verification;

use std::borrow::Cow;
use std::fmt;

/// So many things in words: `1 retry`, `2 retries`.
pub fn counted<N: fmt::Display + PartialEq + From<u8>>(number: N, one: &str, many: &str) -> String {
    let things = if number == N::from(1) { one } else { many };
    format!("{number} {things}")
}

/// What is wrong with a value and what is allowed, as a clause that follows the field's name:
/// `is empty; allowed are 1 to 64 characters of [a-zA-Z0-9._-]`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Problem(Cow<'static, str>);

impl Problem {
    /// A problem in the given words.
    pub fn new(words: impl Into<Cow<'static, str>>) -> Self {
        Self(words.into())
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
