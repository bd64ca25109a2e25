//! The API key that a command calls a service with, where that asks for one.

use std::fmt;
use std::path::PathBuf;

use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::{Request, Status};

use super::Failure;

/// Where the key is. The variables are read here and not by clap: whichever flag is given goes before both of them.
#[derive(Clone, clap::Args)]
pub(super) struct CredentialArgs {
    /// The API key; other users here can see it [env: HOOKLANE_API_KEY]
    #[arg(long, global = true, value_name = "KEY", conflicts_with = "api_key_file", help_heading = "Connection")]
    api_key: Option<String>,
    /// A file with the API key [env: HOOKLANE_API_KEY_FILE]
    #[arg(long, global = true, value_name = "FILE", help_heading = "Connection")]
    api_key_file: Option<PathBuf>,
}

/// Without the key.
impl fmt::Debug for CredentialArgs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CredentialArgs").field("api_key_file", &self.api_key_file).finish_non_exhaustive()
    }
}

/// Adds the key to each call, if there is one.
#[derive(Debug, Clone)]
pub(in crate::cli) struct Bearer(Option<MetadataValue<Ascii>>);

const KEY: &str = "HOOKLANE_API_KEY";
const KEY_FILE: &str = "HOOKLANE_API_KEY_FILE";

impl CredentialArgs {
    /// Reads the key.
    pub(super) fn read(&self) -> Result<Bearer, Failure> {
        let variable = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        self.read_beside(variable(KEY), variable(KEY_FILE))
    }

    fn read_beside(&self, key: Option<String>, file: Option<String>) -> Result<Bearer, Failure> {
        match (&self.api_key, &self.api_key_file) {
            (Some(key), _) => bearer("--api-key", key),
            (None, Some(path)) => read_file("--api-key-file", path),
            (None, None) => match (key, file) {
                (Some(_), Some(_)) => Err(Failure::usage(format!("{KEY} and {KEY_FILE} are both set; leave one out"))),
                (Some(key), None) => bearer(KEY, &key),
                (None, Some(path)) => read_file(KEY_FILE, &PathBuf::from(path)),
                (None, None) => Ok(Bearer(None)),
            },
        }
    }
}

fn read_file(name: &str, path: &std::path::Path) -> Result<Bearer, Failure> {
    let shown = format!("{name} {}", path.display());
    let text =
        std::fs::read_to_string(path).map_err(|error| Failure::usage(format!("{shown} cannot be read: {error}")))?;
    bearer(&shown, &text)
}

/// A key that is none is not shown: it may well be one of something else.
fn bearer(source: &str, text: &str) -> Result<Bearer, Failure> {
    let none = || Failure::usage(format!("{source} holds no API key; allowed is what `hooklane key create` showed"));
    let key = text.trim();
    if key.is_empty() || key.contains(char::is_whitespace) {
        return Err(none());
    }
    let mut header: MetadataValue<Ascii> = format!("Bearer {key}").parse().map_err(|_| none())?;
    // Kept out of what is printed of a request, and out of the compression's table.
    header.set_sensitive(true);
    Ok(Bearer(Some(header)))
}

impl Bearer {
    /// Whether there is a key.
    pub(super) const fn is_some(&self) -> bool {
        self.0.is_some()
    }
}

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(header) = &self.0 {
            request.metadata_mut().insert("authorization", header.clone());
        }
        Ok(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flag_goes_before_the_environment_and_no_key_is_ever_shown() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "hlk_of_the_file\n").unwrap();
        let path = || Some(file.path().to_owned());
        let text = |text: &str| Some(text.to_owned());
        let read = |api_key, api_key_file, key, key_file| -> Result<Option<String>, Failure> {
            let args = CredentialArgs { api_key, api_key_file };
            assert!(!format!("{args:?}").contains("cret"), "{args:?}");
            let bearer = args.read_beside(key, key_file)?;
            Ok(bearer.0.map(|header| header.to_str().unwrap().to_owned()))
        };
        assert_eq!(read(None, None, None, None), Ok(None));
        assert_eq!(read(None, path(), text("hlk_env"), None), Ok(text("Bearer hlk_of_the_file")));
        assert_eq!(read(text("hlk_flag"), None, text("a"), text("b")), Ok(text("Bearer hlk_flag")));
        assert_eq!(read(None, None, text("hlk_env"), None), Ok(text("Bearer hlk_env")));
        let file_named = file.path().to_str().map(str::to_owned);
        assert_eq!(read(None, None, None, file_named), Ok(text("Bearer hlk_of_the_file")));
        for failure in [
            read(text("se cret"), None, None, None).unwrap_err(),
            read(text(" "), None, None, None).unwrap_err(),
            read(None, None, text("se\u{7}cret"), None).unwrap_err(),
            read(None, None, text("secret"), text("/file")).unwrap_err(),
            read(None, Some(PathBuf::from("/nowhere")), None, None).unwrap_err(),
        ] {
            assert_eq!((failure.code(), failure.to_string().contains("cret")), (64, false), "{failure}");
        }
    }
}
