//! `Retry-After` (RFC 9110, section 10.2.3), read without trust: whoever writes it may write anything.

use std::time::{Duration, UNIX_EPOCH};

use super::attempt::RETRY_AFTER_MAX;
use super::time::Timestamp;

/// Seconds or an HTTP date, clamped to [`RETRY_AFTER_MAX`]; `None` for what asks for no wait or cannot be read.
pub fn parse(text: &str, now: Timestamp) -> Option<Duration> {
    let text = text.trim();
    let seconds = if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        // Only digits: what does not fit is too large.
        text.parse().unwrap_or(u64::MAX)
    } else {
        let date = httpdate::parse_http_date(text).ok()?.duration_since(UNIX_EPOCH).ok()?;
        date.as_secs().saturating_sub(u64::try_from(now.seconds()).unwrap_or(0))
    };
    (seconds > 0).then(|| Duration::from_secs(seconds).min(RETRY_AFTER_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_read_without_trust() {
        // 2026-01-21T12:00:00Z
        let now = Timestamp::from_micros(1_768_996_800_000_000);
        let hour = Some(Duration::from_secs(3_600));
        for (text, expected) in [
            ("3600", hour),
            (" 3600 ", hour),
            ("Wed, 21 Jan 2026 13:00:00 GMT", hour),
            ("Wednesday, 21-Jan-26 13:00:00 GMT", hour),
            ("Wed Jan 21 13:00:00 2026", hour),
            ("86401", Some(RETRY_AFTER_MAX)),
            ("99999999999999999999999999", Some(RETRY_AFTER_MAX)),
            ("Fri, 31 Dec 9999 23:59:59 GMT", Some(RETRY_AFTER_MAX)),
            (&"9".repeat(1 << 20), Some(RETRY_AFTER_MAX)),
            ("0", None),
            ("Wed, 21 Jan 2026 11:59:59 GMT", None),
            ("Thu, 01 Jan 1970 00:00:00 GMT", None),
            ("", None),
            ("-1", None),
            ("+1", None),
            ("1.5", None),
            ("1e300", None),
            ("NaN", None),
            ("inf", None),
            ("soon", None),
            ("1, 2", None),
            ("Wed, 32 Jan 2026 12:00:00 GMT", None),
            ("Fri, 31 Dec 99999 23:59:59 GMT", None),
            (&"x".repeat(1 << 20), None),
        ] {
            let shown: String = text.chars().take(40).collect();
            assert_eq!(parse(text, now), expected, "{shown}");
        }
        let at_the_end_of_time = Timestamp::from_micros(i64::MAX);
        assert_eq!(parse("1", at_the_end_of_time), Some(Duration::from_secs(1)));
    }
}
