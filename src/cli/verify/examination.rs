//! What is found out about a captured request, in words: how it is signed, by whom and when, and what is wrong with it.

use super::captured::Captured;
use crate::cli::show::counted;
use crate::domain::endpoint::SignatureScheme;
use crate::domain::signature::{SIGNATURE_HEADER, STANDARD_SIGNATURE_HEADER};
use crate::domain::verification::{Presented, Rejected, Verifier, schemes_of};

/// Whether the signed time counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Clock {
    /// In unix seconds.
    pub(super) now: i64,
    /// In seconds; `None` takes any time.
    pub(super) tolerance: Option<u64>,
}

/// What was found: lines to show, and why the request is not to be trusted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Examination {
    pub(super) lines: Vec<String>,
    pub(super) verdict: Result<(), String>,
}

/// Examines a request. Without a `scheme` each one that its headers show is tried, and one that fits is enough.
pub(super) fn examine(
    captured: &Captured,
    verifiers: &[Verifier],
    scheme: Option<SignatureScheme>,
    clock: Clock,
) -> Examination {
    let schemes = scheme.map_or_else(|| schemes_of(|name| captured.header(name)), |only| vec![only]);
    let mut lines = Vec::new();
    let mut reasons = Vec::new();
    for scheme in &schemes {
        let verdict = try_scheme(captured, verifiers, *scheme, clock, &mut lines);
        match verdict {
            Ok(()) => return Examination { lines, verdict: Ok(()) },
            Err(reason) if schemes.len() > 1 => reasons.push(format!("by {}, {reason}", name(*scheme))),
            Err(reason) => reasons.push(reason),
        }
    }
    if reasons.is_empty() {
        reasons.push(format!(
            "it is not signed: neither of the headers {SIGNATURE_HEADER} and {STANDARD_SIGNATURE_HEADER} is there"
        ));
    }
    Examination { lines, verdict: Err(reasons.join("; ")) }
}

fn try_scheme(
    captured: &Captured,
    verifiers: &[Verifier],
    scheme: SignatureScheme,
    clock: Clock,
    lines: &mut Vec<String>,
) -> Result<(), String> {
    let (header, form) = form(scheme);
    lines.push(format!("scheme     {}, in {header}", name(scheme)));
    let presented = Presented::read(scheme, |name| captured.header(name)).map_err(|rejected| match rejected {
        Rejected::Malformed(at) if at == header => format!("{rejected}; it would read {form}"),
        _ => rejected.to_string(),
    })?;
    lines.push(match presented.time() {
        Some(time) => format!("signed at  {}, {}", instant(time), age(time, clock.now)),
        None => "signed at  this scheme signs no time: an old request looks like a new one".to_owned(),
    });

    let count = presented.signature_count();
    let matching = verifiers.iter().enumerate().find_map(|(at, verifier)| {
        presented.match_of(verifier, &captured.body).map(|signature| (signature + 1, at + 1))
    });
    let Some((signature, secret)) = matching else {
        lines.push(format!("signature  none of {count} is by any of {} secrets", verifiers.len()));
        return Err(mismatch(captured, verifiers, scheme, &presented));
    };
    lines.push(format!("signature  {signature} of {count} is by secret {secret} of {}", verifiers.len()));
    match (presented.time(), clock.tolerance) {
        (Some(time), Some(tolerance)) if presented.check_time(clock.now, tolerance).is_err() => Err(format!(
            "the signature is good, but was made {}, and {} are allowed: it is a replay, a clock is wrong, or this is an \
             old capture (--now, --ignore-time)",
            age(time, clock.now),
            span(tolerance)
        )),
        _ => Ok(()),
    }
}

/// Why nothing matches, as far as it can be told.
fn mismatch(captured: &Captured, verifiers: &[Verifier], scheme: SignatureScheme, presented: &Presented) -> String {
    let (header, form) = form(scheme);
    if presented.signature_count() == 0 {
        return format!("the header {header} has no signature of this scheme; it would read {form}");
    }
    if !verifiers.iter().any(|verifier| matches!(verifier, Verifier::PublicKey(_)) == scheme.is_ed25519()) {
        return if scheme.is_ed25519() {
            "it is signed by Ed25519, and no secret is an Ed25519 key (whpk_… or whsk_…)".to_owned()
        } else {
            "it is signed by HMAC, and every secret is an Ed25519 key".to_owned()
        };
    }
    for (what, body) in variants(&captured.body) {
        if verifiers.iter().any(|verifier| presented.match_of(verifier, &body).is_some()) {
            return format!("the body was changed on its way here: the signature is good {what}");
        }
    }
    let length = captured.body.len();
    if let Some(said) = captured.content_length().filter(|said| *said != length) {
        let bytes = counted(length as u64, "byte", "bytes");
        return format!("the body is not the one that was sent: it has {bytes}, and content-length says {said}");
    }
    "no secret made a signature over this body: the secret is another one (of another endpoint, or one whose overlap has \
     ended), or the body is not byte for byte what was sent (parsed and written again, for one)"
        .to_owned()
}

/// The body with what tools do to it on the way undone.
fn variants(body: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    let mut variants = vec![("with a newline behind it", [body, b"\n"].concat())];
    if let Some(line) = body.strip_suffix(b"\n") {
        variants.push(("without the newline at its end", line.to_vec()));
        variants.extend(line.strip_suffix(b"\r").map(|line| ("without the newline at its end", line.to_vec())));
    }
    if let Some(bare) = body.strip_prefix(b"\xef\xbb\xbf") {
        variants.push(("without the byte order mark before it", bare.to_vec()));
    }
    let lines: Vec<&[u8]> = body.split(|byte| *byte == b'\n').collect();
    if lines.len() > 1 {
        let unix: Vec<_> = lines.iter().map(|line| line.strip_suffix(b"\r").unwrap_or(line)).collect();
        variants.push(("with CR LF for each newline", unix.join(&b"\r\n"[..])));
        variants.push(("with LF for each CR LF", unix.join(&b'\n')));
    }
    variants
}

/// As the contract says it.
const fn name(scheme: SignatureScheme) -> &'static str {
    match scheme {
        SignatureScheme::Timestamped => "TIMESTAMPED",
        SignatureScheme::StandardWebhooks => "STANDARD_WEBHOOKS",
        SignatureScheme::StandardWebhooksEd25519 => "STANDARD_WEBHOOKS_ED25519",
        SignatureScheme::BodySha256 => "BODY_SHA256",
        SignatureScheme::BodyHex => "BODY_HEX",
    }
}

/// The header that carries a scheme's signatures, and how it reads.
const fn form(scheme: SignatureScheme) -> (&'static str, &'static str) {
    match scheme {
        SignatureScheme::Timestamped => (SIGNATURE_HEADER, "t=<unix seconds>,v1=<hex>"),
        SignatureScheme::StandardWebhooks => (STANDARD_SIGNATURE_HEADER, "v1,<base64>"),
        SignatureScheme::StandardWebhooksEd25519 => (STANDARD_SIGNATURE_HEADER, "v1a,<base64>"),
        SignatureScheme::BodySha256 => (SIGNATURE_HEADER, "sha256=<hex>"),
        SignatureScheme::BodyHex => (SIGNATURE_HEADER, "<hex>"),
    }
}

fn instant(seconds: i64) -> String {
    jiff::Timestamp::from_second(seconds).map_or_else(|_| format!("unix time {seconds}"), |time| time.to_string())
}

fn age(time: i64, now: i64) -> String {
    let distance = span(time.abs_diff(now));
    if time <= now { format!("{distance} ago") } else { format!("{distance} from now") }
}

fn span(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7_200 => format!("{} min", seconds / 60),
        7_200..172_800 => format!("{} h", seconds / 3_600),
        _ => format!("{} days", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;
    use crate::domain::secret::{Secret, SigningSecret};
    use crate::domain::signature::Signer;
    use crate::domain::time::Timestamp;

    const BODY: &[u8] = b"{\"a\":1,\n\"b\":2}";
    const NOW: i64 = 1_768_996_800;
    const CLOCK: Clock = Clock { now: NOW, tolerance: Some(300) };

    fn secret(scheme: SignatureScheme, seed: u8) -> Secret {
        if scheme.is_ed25519() { Secret::from_seed(&[seed; 32]) } else { Secret::from_random(&[seed; 32]) }
    }

    fn captured(signing: &[(SignatureScheme, u8)]) -> Captured {
        let secrets: Vec<_> = signing
            .iter()
            .map(|(scheme, seed)| SigningSecret { secret: secret(*scheme, *seed), scheme: *scheme, expire_time: None })
            .collect();
        let signed = Signer::of(&secrets).sign("evt_1", Timestamp::from_micros((NOW - 12) * 1_000_000), BODY);
        let mut captured = Captured { body: BODY.to_vec(), ..Captured::default() };
        for (name, value) in signed {
            captured.headers.insert(name, HeaderValue::try_from(value).unwrap());
        }
        captured
    }

    fn schemes() -> impl Iterator<Item = SignatureScheme> {
        (1..=5).filter_map(SignatureScheme::from_number)
    }

    #[test]
    fn what_fits_is_told_with_the_secret_and_the_time() {
        for scheme in schemes() {
            let verifiers = [9, 2].map(|seed| secret(scheme, seed).into());
            let mut signing = vec![(scheme, 1), (scheme, 2)];
            let has_time = !matches!(scheme, SignatureScheme::BodySha256 | SignatureScheme::BodyHex);
            let expected = if has_time {
                "signature  2 of 2 is by secret 2 of 2"
            } else {
                "signature  1 of 1 is by secret 2 of 2"
            };
            if !has_time {
                signing.remove(0);
            }
            let found = examine(&captured(&signing), &verifiers, None, CLOCK);
            assert_eq!(found.verdict, Ok(()), "{scheme:?}");
            assert!(found.lines[0].starts_with(&format!("scheme     {}, in ", name(scheme))), "{:?}", found.lines);
            assert_eq!(found.lines[1] == "signed at  2026-01-21T11:59:48Z, 12 s ago", has_time, "{:?}", found.lines);
            assert_eq!(found.lines[2], expected);
        }
    }

    #[test]
    fn of_two_schemes_one_that_fits_is_enough() {
        let both = captured(&[(SignatureScheme::StandardWebhooksEd25519, 1), (SignatureScheme::Timestamped, 2)]);
        for (scheme, seed) in [(SignatureScheme::StandardWebhooksEd25519, 1), (SignatureScheme::Timestamped, 2)] {
            let found = examine(&both, &[secret(scheme, seed).into()], None, CLOCK);
            assert_eq!(found.verdict, Ok(()), "{:?}", found.lines);
        }
        let stranger = secret(SignatureScheme::Timestamped, 9).into();
        let reason = examine(&both, &[stranger], None, CLOCK).verdict.unwrap_err();
        assert!(reason.contains("by STANDARD_WEBHOOKS_ED25519, ") && reason.contains("by TIMESTAMPED, "), "{reason}");
    }

    #[test]
    fn what_is_wrong_is_said_in_words() {
        let check = |captured: &Captured, seed: u8, scheme: Option<SignatureScheme>, clock: Clock, words: &str| {
            let verifier = secret(SignatureScheme::Timestamped, seed).into();
            let found = examine(captured, &[verifier], scheme, clock);
            match found.verdict {
                Ok(()) => assert_eq!(words, "", "{:?}", found.lines),
                Err(reason) => assert!(!words.is_empty() && reason.contains(words), "{words}: {reason}"),
            }
        };
        let good = captured(&[(SignatureScheme::Timestamped, 1)]);
        check(&good, 1, None, CLOCK, "");
        check(&good, 2, None, CLOCK, "the secret is another one");
        check(&good, 1, Some(SignatureScheme::StandardWebhooks), CLOCK, "the header webhook-id is missing");
        check(&good, 1, Some(SignatureScheme::BodySha256), CLOCK, "is malformed; it would read sha256=<hex>");
        check(&Captured::default(), 1, None, CLOCK, "it is not signed");
        for (now, tolerance, words) in [
            (NOW + 7_188, Some(300), "made 2 h ago, and 5 min are allowed"),
            (NOW - 400, Some(300), "made 6 min from now"),
            (NOW, Some(11), "made 12 s ago, and 11 s are allowed"),
            (NOW, Some(12), ""),
            (0, None, ""),
        ] {
            check(&good, 1, None, Clock { now, tolerance }, words);
        }
        check(&good, 2, None, Clock { now: 0, tolerance: Some(300) }, "the secret is another one");

        let with_header = |value: &'static str| {
            let mut changed = good.clone();
            changed.headers.insert(SIGNATURE_HEADER, HeaderValue::from_static(value));
            changed
        };
        check(&with_header("t=1"), 1, None, CLOCK, "has no signature of this scheme");
        check(&with_header("nonsense"), 1, None, CLOCK, "it would read t=<unix seconds>,v1=<hex>");

        let with_body = |body: &[u8], length: usize| {
            let mut changed = Captured { body: body.to_vec(), ..good.clone() };
            changed.headers.insert("content-length", HeaderValue::from(length));
            changed
        };
        for (body, words) in [
            (&b"{\"a\":1,\n\"b\":2}\n"[..], "the signature is good without the newline at its end"),
            (b"{\"a\":1,\n\"b\":2}\r\n", "without the newline at its end"),
            (b"{\"a\":1,\r\n\"b\":2}", "with LF for each CR LF"),
            (b"\xef\xbb\xbf{\"a\":1,\n\"b\":2}", "byte order mark"),
            (b"{\"a\":1,\"b\":2}", "it has 13 bytes, and content-length says 14"),
            (b"{\"a\":1,\n\"b\":3}", "not byte for byte what was sent"),
        ] {
            check(&with_body(body, BODY.len()), 1, None, CLOCK, words);
        }
    }

    #[test]
    fn a_secret_of_the_other_kind_is_told() {
        for (scheme, verifier, words) in [
            (SignatureScheme::StandardWebhooksEd25519, SignatureScheme::BodyHex, "no secret is an Ed25519 key"),
            (SignatureScheme::BodyHex, SignatureScheme::StandardWebhooksEd25519, "every secret is an Ed25519 key"),
        ] {
            let verifier = secret(verifier, 1).into();
            let reason = examine(&captured(&[(scheme, 1)]), &[verifier], None, CLOCK).verdict.unwrap_err();
            assert!(reason.contains(words), "{reason}");
        }
    }
}
