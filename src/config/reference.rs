//! The reference of settings: the table, the defaults as they are read, and the page that is made of both.

use std::fmt::Write as _;

use super::source::{Flags, Reader, Source};
use super::{Config, Profile, SETTINGS, Setting};

/// A setting as the reference shows it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Described {
    /// Its key in a file.
    pub key: &'static str,
    /// Its name in the environment.
    pub variable: String,
    /// The variable that names a file with its value.
    pub file_variable: Option<String>,
    /// Its flag.
    pub flag: Option<&'static str>,
    /// Its default in `serve`; empty for none.
    pub default: String,
    /// Its default in `dev`, where that is another.
    pub default_in_dev: Option<String>,
    /// What it is for and what is allowed, in Markdown.
    pub meaning: &'static str,
    #[serde(skip)]
    more: Option<&'static str>,
}

/// Every setting.
pub fn describe() -> Vec<Described> {
    let (in_serve, in_dev) = (defaults(Profile::Serve), defaults(Profile::Dev));
    let default = |defaults: &[(&Setting, String)], key: &str| {
        defaults.iter().find(|(setting, _)| setting.key == key).map(|(_, default)| default.clone()).unwrap_or_default()
    };
    let one = |setting: &Setting| {
        let (serve, dev) = (default(&in_serve, setting.key), default(&in_dev, setting.key));
        Described {
            key: setting.key,
            variable: setting.variable(),
            file_variable: setting.file_variable(),
            flag: setting.flag,
            default_in_dev: (dev != serve).then_some(dev),
            default: serve,
            meaning: setting.meaning,
            more: setting.more,
        }
    };
    SETTINGS.iter().map(one).collect()
}

/// What is read where nothing is set: each setting and its default. That one is missing matters to nobody here.
fn defaults(profile: Profile) -> Vec<(&'static Setting, String)> {
    let mut reader = Reader::new(Source::default());
    let _ = Config::read(profile, &Flags::default(), &mut reader);
    reader.asked().to_vec()
}

const HEAD: &str = "\
# Settings

Made from the program: `hooklane settings --markdown > docs/settings.md`. `hooklane settings` shows the same on a
terminal, `hooklane check-config` what is set and whether it is good.

- Built-in defaults < TOML file (`--config FILE` or `HOOKLANE_CONFIG`) < environment < flags.
- A key `section.key` of the file is `HOOKLANE_SECTION_KEY` in the environment, but for `DATABASE_URL` and `HOOKLANE_LOG`.
- A secret can be in a file of its own, which the variable with `_FILE` behind its name names; both at once is an error.
- Lists are comma-separated; in the file they may be lists. Truths are `true` and `false`, spans of time are written
  `250ms`, `30s`, `5m`, `24h`, `7d`.
- Everything wrong with the settings is told at once, with name, value and what is allowed, before anything is opened;
  exit code 64. An unknown key of the file or `HOOKLANE_…` variable is wrong as well.
";

/// The page `docs/settings.md`.
pub fn markdown() -> String {
    let mut page = HEAD.to_owned();
    let mut section = None;
    let mut settings = describe();
    let section_of = |key: &'static str| key.split_once('.').map_or("", |(section, _)| section);
    settings.sort_by_key(|setting| (section_of(setting.key), setting.key));
    for setting in settings {
        let of_key = section_of(setting.key);
        if section != Some(of_key) {
            section = Some(of_key);
            let title = if of_key.is_empty() { "without a section" } else { of_key };
            let _ = write!(
                page,
                "\n## {title}\n\n| key | environment | flag | default | meaning |\n|---|---|---|---|---|\n"
            );
        }
        let _ = writeln!(page, "{}", row(&setting));
    }
    page
}

fn row(setting: &Described) -> String {
    let code = |text: &str| format!("`{text}`");
    let variables = match &setting.file_variable {
        Some(file) => format!("{}, {}", code(&setting.variable), code(file)),
        None => code(&setting.variable),
    };
    let shown = |default: &str| if default.is_empty() { "none".to_owned() } else { code(default) };
    let default = match &setting.default_in_dev {
        Some(in_dev) => format!("{}; in `dev` {}", shown(&setting.default), shown(in_dev)),
        None => shown(&setting.default),
    };
    let more = setting.more.map_or_else(String::new, |chapter| format!(" ([more](../README.md#{chapter}))"));
    let flag = setting.flag.map_or_else(String::new, code);
    format!("| {} | {variables} | {flag} | {default} | {}{more} |", code(setting.key), setting.meaning)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_is_what_the_program_says() {
        // Read when the test runs: an image is built without the pages.
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/settings.md");
        let page = std::fs::read_to_string(path).unwrap();
        let made = markdown();
        let differs = page.lines().zip(made.lines()).find(|(written, made)| written != made);
        assert!(page == made, "make it anew: hooklane settings --markdown > docs/settings.md ({differs:?})");
    }

    #[test]
    fn every_setting_is_read_in_every_way_to_start() {
        for profile in [Profile::Serve, Profile::Dev, Profile::Migrate] {
            let read = defaults(profile);
            for setting in SETTINGS {
                let times = read.iter().filter(|(one, _)| one.key == setting.key).count();
                assert_eq!(times, 1, "{} in {profile:?}", setting.key);
            }
        }
    }

    #[test]
    fn what_differs_in_dev_is_said() {
        let auth = describe().into_iter().find(|setting| setting.key == "auth").unwrap();
        assert_eq!((auth.default.as_str(), auth.default_in_dev.as_deref()), ("api-key", Some("none")));
        assert!(row(&auth).contains("| `api-key`; in `dev` `none` |"), "{}", row(&auth));
    }
}
