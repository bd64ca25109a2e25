//! Times, spans, counts and the names of enums in words.

/// Text that others wrote, with what a terminal would obey shown as escapes.
pub(in crate::cli) fn visible(text: &str) -> String {
    let is_plain = |letter: char| !letter.is_control() && !is_reordering(letter);
    if text.chars().all(is_plain) {
        return text.to_owned();
    }
    let mut shown = String::with_capacity(text.len() + 8);
    for letter in text.chars() {
        match is_plain(letter) {
            true => shown.push(letter),
            false => shown.extend(letter.escape_default()),
        }
    }
    shown
}

/// Characters that turn the order of what is shown (<https://trojansource.codes>).
const fn is_reordering(letter: char) -> bool {
    matches!(letter, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// The end of an id: those of the same moment begin alike.
pub(in crate::cli) fn short(id: &str) -> String {
    const CHARS: usize = 6;
    match id.char_indices().rev().nth(CHARS - 1) {
        Some((cut, _)) if cut > 0 => format!("…{}", &id[cut..]),
        _ => id.to_owned(),
    }
}

/// A protobuf time as an instant; `None` if unset.
pub(in crate::cli) fn instant(time: Option<&prost_types::Timestamp>) -> Option<jiff::Timestamp> {
    let time = time?;
    jiff::Timestamp::new(time.seconds, time.nanos).ok()
}

/// `2026-11-26 05:40:12Z`, or nothing.
pub(in crate::cli) fn time(time: Option<&prost_types::Timestamp>) -> String {
    instant(time).map_or_else(String::new, |time| time.strftime("%Y-%m-%d %H:%M:%SZ").to_string())
}

/// `05:40:12.345Z`, or nothing.
pub(in crate::cli) fn time_of_day(time: Option<&prost_types::Timestamp>) -> String {
    instant(time).map_or_else(String::new, |time| time.strftime("%H:%M:%S%.3fZ").to_string())
}

/// `1.2 ms`, `350 ms`, `2.5 s`, `7 min`, `3.5 h`, `12 d`, or nothing.
pub(in crate::cli) fn span(span: Option<&prost_types::Duration>) -> String {
    let Some(span) = span else { return String::new() };
    let seconds = span.seconds as f64 + f64::from(span.nanos) / 1e9;
    let tenths = |number: f64, unit: &str| {
        let text = format!("{number:.1}");
        format!("{} {unit}", text.strip_suffix(".0").unwrap_or(&text))
    };
    match seconds {
        s if s < 0.01 => tenths(s * 1e3, "ms"),
        s if s < 1.0 => format!("{:.0} ms", s * 1e3),
        s if s < 120.0 => tenths(s, "s"),
        s if s < 3_600.0 => tenths(s / 60.0, "min"),
        s if s < 172_800.0 => tenths(s / 3_600.0, "h"),
        s => tenths(s / 86_400.0, "d"),
    }
}

/// `12,345`.
pub(in crate::cli) fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `1 row`, `12,345 rows`.
pub(in crate::cli) fn counted(number: u64, one: &str, many: &str) -> String {
    format!("{} {}", count(number), if number == 1 { one } else { many })
}

/// `99.5 %`. What is not whole is never shown as if it were.
pub(in crate::cli) fn share(share: f64) -> String {
    let percent = share * 100.0;
    match percent {
        p if p > 99.9 && p < 100.0 => "99.9 %".to_owned(),
        p if p > 0.0 && p < 0.1 => "0.1 %".to_owned(),
        p => format!("{p:.1} %"),
    }
}

/// A value of the contract's enums without its prefix: `IN_FLIGHT`.
pub(in crate::cli) fn word(name: &'static str, prefix: &str) -> &'static str {
    name.strip_prefix(prefix).and_then(|rest| rest.strip_prefix('_')).unwrap_or(name)
}

/// The same as flags have it: `standard-webhooks`; nothing for the default of an unset one.
pub(in crate::cli) fn option(name: &'static str, prefix: &str) -> String {
    match word(name, prefix) {
        "UNSPECIFIED" => String::new(),
        word => word.to_lowercase().replace('_', "-"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_known_by_its_end() {
        for (id, shown) in [("dlv_01h455vb4pex5vsknk084sn02q", "…4sn02q"), ("short1", "short1"), ("", "")] {
            assert_eq!(short(id), shown);
        }
    }

    #[test]
    fn what_a_terminal_would_obey_is_escaped_and_letters_are_not() {
        assert_eq!(visible("größer → 大"), "größer → 大");
        assert_eq!(visible("a\u{1b}[2J\r\n\u{202e}b"), "a\\u{1b}[2J\\r\\n\\u{202e}b");
    }

    #[test]
    fn spans_have_the_unit_that_fits() {
        for (seconds, nanos, shown) in [
            (0, 1_234_000, "1.2 ms"),
            (0, 350_000_000, "350 ms"),
            (2, 500_000_000, "2.5 s"),
            (30, 0, "30 s"),
            (420, 0, "7 min"),
            (3_600, 0, "1 h"),
            (12_600, 0, "3.5 h"),
            (1_036_800, 0, "12 d"),
        ] {
            assert_eq!(span(Some(&prost_types::Duration { seconds, nanos })), shown);
        }
        assert_eq!(span(None), "");
    }

    #[test]
    fn counts_are_grouped_and_shares_are_never_rounded_to_all_or_nothing() {
        assert_eq!([0, 999, 1_000, 1_234_567].map(count), ["0", "999", "1,000", "1,234,567"]);
        let rows = [0, 1, 2_000].map(|number| counted(number, "row", "rows"));
        assert_eq!(rows, ["0 rows", "1 row", "2,000 rows"]);
        assert_eq!([0.0, 0.000_1, 0.5, 0.999_9, 1.0].map(share), ["0.0 %", "0.1 %", "50.0 %", "99.9 %", "100.0 %"]);
    }

    #[test]
    fn times_are_in_utc_and_say_so() {
        let moment = prost_types::Timestamp { seconds: 1_795_671_612, nanos: 345_000_000 };
        assert_eq!(time(Some(&moment)), "2026-11-26 05:40:12Z");
        assert_eq!(time_of_day(Some(&moment)), "05:40:12.345Z");
        assert_eq!(time(None), "");
    }

    #[test]
    fn names_lose_their_prefix() {
        assert_eq!(word("DELIVERY_STATE_IN_FLIGHT", "DELIVERY_STATE"), "IN_FLIGHT");
        assert_eq!(option("SIGNATURE_SCHEME_BODY_HEX", "SIGNATURE_SCHEME"), "body-hex");
        assert_eq!(option("SIGNATURE_SCHEME_UNSPECIFIED", "SIGNATURE_SCHEME"), "");
    }
}
