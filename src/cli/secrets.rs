//! What the commands that verify signatures share: the flag for the scheme, and secrets from flags, files and environment.

use std::path::PathBuf;

use super::Failure;
use crate::domain::endpoint::SignatureScheme;
use crate::domain::verification::Verifier;

/// How requests are signed, as a flag says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Scheme {
    Auto,
    Timestamped,
    StandardWebhooks,
    #[value(name = "standard-webhooks-ed25519")]
    StandardWebhooksEd25519,
    #[value(name = "body-sha256")]
    BodySha256,
    BodyHex,
}

impl Scheme {
    /// `None` where the request's headers decide.
    pub(super) const fn named(self) -> Option<SignatureScheme> {
        match self {
            Self::Auto => None,
            Self::Timestamped => Some(SignatureScheme::Timestamped),
            Self::StandardWebhooks => Some(SignatureScheme::StandardWebhooks),
            Self::StandardWebhooksEd25519 => Some(SignatureScheme::StandardWebhooksEd25519),
            Self::BodySha256 => Some(SignatureScheme::BodySha256),
            Self::BodyHex => Some(SignatureScheme::BodyHex),
        }
    }
}

/// What requests are verified with: what the flags `--secret` and `--secret-file` give, else what the environment
/// `variable` holds. They are judged here and not by clap, whose error would show them.
pub(super) fn read(
    flags: &[String],
    files: &[PathBuf],
    (variable, value): (&str, Option<String>),
    scheme: Option<SignatureScheme>,
) -> Result<Vec<Verifier>, Failure> {
    let parse = |source: &str, text: &str| {
        Verifier::parse(text, scheme).map_err(|problem| Failure::usage(format!("{source} {problem}")))
    };
    if flags.is_empty() && files.is_empty() {
        let value = value.unwrap_or_default();
        let given = value.split(',').map(str::trim).filter(|text| !text.is_empty());
        return given.map(|text| parse(variable, text)).collect();
    }
    let mut verifiers = flags.iter().map(|text| parse("--secret", text.trim())).collect::<Result<Vec<_>, _>>()?;
    for file in files {
        let source = format!("--secret-file {}", file.display());
        let text = std::fs::read_to_string(file).map_err(|error| Failure::usage(format!("{source}: {error}")))?;
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
            verifiers.push(parse(&source, line)?);
        }
    }
    Ok(verifiers)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn secrets_come_from_flags_and_files_else_the_environment_and_are_never_shown() {
        let two = "whsec_AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=,a-secret-of-our-own";
        let count = |flags: &[&str], files: &[PathBuf], variable: Option<&str>| {
            let flags: Vec<_> = flags.iter().map(|text| (*text).to_owned()).collect();
            read(&flags, files, ("A_VARIABLE", variable.map(str::to_owned)), None).map(|secrets| secrets.len())
        };
        assert_eq!(count(&[], &[], None), Ok(0));
        assert_eq!(count(&[], &[], Some("")), Ok(0));
        assert_eq!(count(&[], &[], Some(two)), Ok(2));
        assert_eq!(count(&["a-secret-of-our-own"], &[], Some(two)), Ok(1));
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(b"a-secret-of-our-own\n\n another-secret-of-ours\n").unwrap();
        let files = [file.path().to_owned()];
        assert_eq!(count(&["a-secret-of-our-own"], &files, Some(two)), Ok(3));
        for (flags, variable) in [(&["tooshort"][..], None), (&[], Some("tooshort"))] {
            let failure = count(flags, &[], variable).unwrap_err();
            assert_eq!((failure.code(), failure.to_string().contains("tooshort")), (64, false));
        }
        assert!(count(&[""], &[], None).is_err(), "an empty flag is a mistake in a script, not a wish for no check");
        let missing = count(&[], &[PathBuf::from("/nowhere/at/all")], None).unwrap_err();
        assert!(missing.to_string().contains("/nowhere/at/all"), "{missing}");
    }
}
