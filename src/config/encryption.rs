//! The settings of secrets at rest: the master keys, and the word without which none are needed.

use super::source::Reader;
use super::{Profile, parse_bool};
use crate::domain::keyring::Keyring;
use crate::store::Encryption;

/// In production secrets are sealed unless somebody says otherwise; `dev` makes a key of its own.
pub(super) fn read(profile: Profile, reader: &mut Reader) -> Option<Encryption> {
    let plaintext = reader.get("encryption.plaintext", "false", parse_bool);
    let keys = reader.get("encryption.keys", "", |text| match text.is_empty() {
        true if profile == Profile::Serve && plaintext == Some(false) => Err(
            "is not set, so that endpoint secrets would stand in the database as they are; allowed is id:base64,… (hooklane \
             keys generate makes a key), or encryption.plaintext = true, where that is wanted"
                .to_owned(),
        ),
        true => Ok(None),
        false => Keyring::parse(text).map(Some).map_err(|problem| problem.to_string()),
    });
    Some(Encryption { keys: keys?, plaintext: plaintext? })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::{Config, Flags, SettingProblems};
    use super::*;

    const KEYS: &str =
        "k2:AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI=,k1:AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";

    fn load(profile: Profile, variables: &[(&str, &str)]) -> Result<Encryption, SettingProblems> {
        let database = ("DATABASE_URL", "postgres://localhost/hooklane");
        let all = variables.iter().chain([&database]);
        let environment =
            all.map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect::<BTreeMap<_, _>>();
        Config::load(profile, &Flags::default(), environment).map(|config| config.store.encryption)
    }

    #[test]
    fn serve_wants_keys_or_the_word_that_none_are_wanted() {
        let refused = load(Profile::Serve, &[]).expect_err("no keys").to_string();
        for part in ["HOOKLANE_ENCRYPTION_KEYS", "hooklane keys generate", "encryption.plaintext"] {
            assert!(refused.contains(part), "{part} in {refused}");
        }
        let keys = load(Profile::Serve, &[("HOOKLANE_ENCRYPTION_KEYS", KEYS)]).expect("keys").keys.expect("keys");
        assert_eq!(keys.ids().collect::<Vec<_>>(), ["k2", "k1"]);
        let plain = load(Profile::Serve, &[("HOOKLANE_ENCRYPTION_PLAINTEXT", "true")]).expect("said so");
        assert!(plain.keys.is_none() && plain.plaintext);
        for profile in [Profile::Dev, Profile::Migrate] {
            assert!(load(profile, &[]).expect("needs none").keys.is_none());
        }
    }

    #[test]
    fn a_bad_key_is_not_repeated() {
        let bad = &KEYS[..KEYS.len() - 3];
        let refused = load(Profile::Serve, &[("HOOKLANE_ENCRYPTION_KEYS", bad)]).expect_err("bad").to_string();
        assert!(refused.contains("HOOKLANE_ENCRYPTION_KEYS") && refused.contains("entry (2)"), "{refused}");
        assert!(!refused.contains("AQEB") && !refused.contains("AgIC"), "{refused}");
    }
}
