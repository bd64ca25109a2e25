//! The API key that a command calls a service with, where that asks for one.

use std::path::PathBuf;

use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::{Request, Status};

use super::Failure;

/// Where the key is.
#[derive(Debug, Clone, clap::Args)]
pub struct CredentialArgs {
    /// A file with the API key to call with, where the service asks for one
    #[arg(long, value_name = "FILE", env = "HOOKLANE_KEY_FILE")]
    key_file: Option<PathBuf>,
}

/// Adds the key to each call, if there is one.
#[derive(Debug, Clone)]
pub struct Bearer(Option<MetadataValue<Ascii>>);

impl CredentialArgs {
    /// Reads the key.
    pub fn read(&self) -> Result<Bearer, Failure> {
        let Some(path) = &self.key_file else { return Ok(Bearer(None)) };
        let shown = path.display();
        let text = std::fs::read_to_string(path)
            .map_err(|error| Failure::usage(format!("--key-file {shown} cannot be read: {error}")))?;
        let mut header: MetadataValue<Ascii> = format!("Bearer {}", text.trim()).parse().map_err(|_| {
            Failure::usage(format!("--key-file {shown} holds no API key; allowed is what `hooklane key create` showed"))
        })?;
        // Kept out of what is printed of a request, and out of the compression's table.
        header.set_sensitive(true);
        Ok(Bearer(Some(header)))
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
