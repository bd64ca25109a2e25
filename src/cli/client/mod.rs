//! How commands call a service: where it is, TLS and the key. `refusal` says what a status means to a person and to a
//! script, `json` writes messages as JSON and reads them.

mod address;
mod credential;
mod json;
mod refusal;

use std::path::PathBuf;
use std::time::Duration;

use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

use self::address::Address;
pub(super) use self::address::reachable;
use self::credential::{Bearer, CredentialArgs};
#[cfg(test)]
pub(super) use self::json::values_of;
pub(super) use self::json::{from_json, set_fields, to_json};
pub(super) use self::refusal::{Typed, is_cut, is_routine, refused, refused_as};
use super::{Failure, note};
use crate::api::proto::webhook_service_client::WebhookServiceClient;

/// The contract's calls, with the caller's key.
pub(super) type Client = WebhookServiceClient<Authorized>;
/// A connection on which each call carries the caller's key.
pub(super) type Authorized = InterceptedService<Channel, Bearer>;

/// What a connection and a TLS handshake may take.
const CONNECT_MAX: Duration = Duration::from_secs(10);
/// A stream on which nothing happens is told from a dead link by pings.
const PING_EVERY: Duration = Duration::from_secs(15);
const PING_ANSWER_MAX: Duration = Duration::from_secs(10);
/// The largest answer that is read: a full page of dead letters has the payloads of all of them.
const ANSWER_BYTES_MAX: usize = 256 << 20;
/// Certificates and keys above this size are none.
const PEM_BYTES_MAX: u64 = 1 << 20;

// What every command that calls a service has. Not in the documentation, which would become that of the command.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct CallArgs {
    #[command(flatten)]
    pub(super) connection: ConnectionArgs,
    /// Print the service's messages as JSON, one a line
    #[arg(long, global = true, display_order = LAST)]
    pub(super) json: bool,
}

/// Behind what is a command's own, and before `--help`.
const LAST: usize = 998;

/// Where the service is, and who calls.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct ConnectionArgs {
    /// Where the service listens: HOST:PORT, or https://HOST:PORT for TLS
    #[arg(long, global = true, value_name = "ADDR", env = "HOOKLANE_GRPC_ADDR", default_value = "127.0.0.1:50051")]
    #[arg(value_parser = Address::parse, help_heading = "Connection")]
    addr: Address,

    #[command(flatten)]
    credential: CredentialArgs,

    /// Call by TLS, as https:// and the files below do
    #[arg(long, global = true, help_heading = "Connection")]
    tls: bool,

    /// Whose certificates are trusted, in PEM, instead of the system's roots
    #[arg(long, global = true, value_name = "FILE", env = "HOOKLANE_CA_FILE", help_heading = "Connection")]
    ca_file: Option<PathBuf>,

    /// The name that the service's certificate has, where it is not that of the address
    #[arg(long, global = true, value_name = "NAME", help_heading = "Connection")]
    tls_name: Option<String>,

    /// The caller's own certificate, in PEM, for a service that asks for one
    #[arg(long, global = true, value_name = "FILE", env = "HOOKLANE_CLIENT_CERT_FILE", help_heading = "Connection")]
    #[arg(requires = "client_key_file")]
    client_cert_file: Option<PathBuf>,

    /// Its private key, in PEM
    #[arg(long, global = true, value_name = "FILE", env = "HOOKLANE_CLIENT_KEY_FILE", help_heading = "Connection")]
    #[arg(requires = "client_cert_file")]
    client_key_file: Option<PathBuf>,
}

impl ConnectionArgs {
    /// Connects, and calls with the key from then on.
    pub(super) async fn connect(&self) -> Result<Client, Failure> {
        let client = WebhookServiceClient::new(self.open().await?);
        Ok(client.max_decoding_message_size(ANSWER_BYTES_MAX))
    }

    /// The connection itself, for what is called beside the contract.
    pub(super) async fn open(&self) -> Result<Authorized, Failure> {
        let bearer = self.credential.read()?;
        let tls = self.tls()?;
        if bearer.is_some() && tls.is_none() && !self.addr.is_loopback() {
            note(&format!("the key goes to {} in the clear; https://{} keeps it secret", self.addr, self.addr));
        }
        let scheme = if tls.is_some() { "https" } else { "http" };
        let bad_addr =
            |error: tonic::transport::Error| Failure::usage(format!("--addr {}: {}", self.addr, why(&error)));
        let mut endpoint = Endpoint::from_shared(format!("{scheme}://{}", self.addr))
            .map_err(bad_addr)?
            .user_agent(concat!("hooklane-cli/", env!("CARGO_PKG_VERSION")))
            .map_err(bad_addr)?
            .connect_timeout(CONNECT_MAX)
            .http2_keep_alive_interval(PING_EVERY)
            .keep_alive_timeout(PING_ANSWER_MAX)
            .keep_alive_while_idle(true);
        if let Some(tls) = tls {
            endpoint = endpoint.tls_config(tls).map_err(|error| {
                Failure::usage(format!("TLS cannot be set up with the files given: {}", why(&error)))
            })?;
        }
        let channel = endpoint.connect().await.map_err(|error| {
            Failure::unavailable(format!("{} cannot be reached by {scheme}: {}", self.addr, why(&error)))
        })?;
        Ok(InterceptedService::new(channel, bearer))
    }

    /// Where the service is, for people.
    pub(super) fn place(&self) -> String {
        self.addr.to_string()
    }

    /// `None` for plain text.
    fn tls(&self) -> Result<Option<ClientTlsConfig>, Failure> {
        let files = [
            ("--ca-file (HOOKLANE_CA_FILE)", self.ca_file.is_some()),
            ("--client-cert-file (HOOKLANE_CLIENT_CERT_FILE)", self.client_cert_file.is_some()),
            ("--tls-name", self.tls_name.is_some()),
            ("--tls", self.tls),
        ];
        let asks = files.iter().find(|(_, is_given)| *is_given).map(|(name, _)| *name);
        match (self.addr.is_tls(), asks) {
            (Some(false), Some(name)) => {
                let words = format!("--addr http://{} is plain text, and {name} is for TLS; leave one out", self.addr);
                return Err(Failure::usage(words));
            }
            (Some(false), None) | (None, None) => return Ok(None),
            (Some(true), _) | (None, Some(_)) => {}
        }
        let mut config = ClientTlsConfig::new().timeout(CONNECT_MAX);
        config = match &self.ca_file {
            Some(path) => config.ca_certificate(Certificate::from_pem(pem("--ca-file", path)?)),
            None => config.with_native_roots(),
        };
        if let Some(name) = &self.tls_name {
            config = config.domain_name(name);
        }
        if let (Some(cert), Some(key)) = (&self.client_cert_file, &self.client_key_file) {
            let (cert, key) = (pem("--client-cert-file", cert)?, pem("--client-key-file", key)?);
            config = config.identity(Identity::from_pem(cert, key));
        }
        Ok(Some(config))
    }
}

fn pem(flag: &str, path: &std::path::Path) -> Result<String, Failure> {
    let shown = path.display();
    let cannot = |error: &dyn std::fmt::Display| Failure::usage(format!("{flag} {shown} cannot be read: {error}"));
    let size = std::fs::metadata(path).map_err(|error| cannot(&error))?.len();
    if size > PEM_BYTES_MAX {
        return Err(cannot(&format!("it has {size} bytes; allowed are {PEM_BYTES_MAX}")));
    }
    let text = std::fs::read_to_string(path).map_err(|error| cannot(&error))?;
    match text.contains("-----BEGIN ") {
        true => Ok(text),
        false => Err(cannot(&"it holds nothing in PEM")),
    }
}

/// An error and what is behind it, to the last cause: tonic's own words are `transport error`.
fn why(error: &(dyn std::error::Error + 'static)) -> String {
    let mut words: Vec<String> = Vec::new();
    for cause in std::iter::successors(error.source().or(Some(error)), |&cause| cause.source()) {
        let text = cause.to_string();
        // Many a cause repeats the one behind it.
        if !words.iter().any(|known| known.contains(&text)) {
            words.push(text);
        }
    }
    words.join(": ")
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        connection: ConnectionArgs,
    }

    fn tls(line: &str) -> Result<bool, String> {
        let args = Line::try_parse_from(line.split(' ')).map_err(|error| error.to_string())?.connection;
        args.tls().map(|tls| tls.is_some()).map_err(|failure| failure.to_string())
    }

    #[test]
    fn tls_follows_from_the_address_or_from_what_it_is_set_up_with() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "-----BEGIN CERTIFICATE-----\n").unwrap();
        let path = file.path().display();
        assert_eq!(tls("x --addr 127.0.0.1:1"), Ok(false));
        assert_eq!(tls("x --addr http://127.0.0.1:1"), Ok(false));
        assert_eq!(tls("x --addr https://hooks.example"), Ok(true));
        assert_eq!(tls("x --addr hooks.example:1 --tls"), Ok(true));
        assert_eq!(tls(&format!("x --addr hooks.example:1 --ca-file {path}")), Ok(true));
        for (line, part) in [
            (format!("x --addr http://a:1 --ca-file {path}"), "--ca-file"),
            ("x --addr http://a:1 --tls".to_owned(), "--tls"),
            ("x --addr a:1 --ca-file /nowhere".to_owned(), "/nowhere"),
            ("x --addr a:1 --ca-file /proc/self/status".to_owned(), "PEM"),
            (format!("x --addr a:1 --client-cert-file {path}"), "--client-key-file"),
        ] {
            let words = tls(&line).unwrap_err();
            assert!(words.contains(part), "{words}");
        }
    }
}
