//! `hooklane keys`: the master keys that secrets are sealed with, made, put to use and given up.

use std::time::{Duration, Instant};

use rand::TryRng as _;
use rand::rngs::SysRng;
use zeroize::Zeroizing;

use super::Failure;
use super::database::{Where, failed};
use super::serve::connect_failure;
use super::show::counted;
use crate::config::Config;
use crate::domain::keyring::Keyring;
use crate::store::{KeyUse, Pass, Rewrap};

/// Make master keys, and bring everything under the present one
///
/// Endpoint secrets, headers and URLs are sealed in the database with the first key of the setting `encryption.keys`; the
/// others open what was sealed before. A new key goes in three steps: put it behind the present one and restart every
/// replica; put it first and restart them again; then `hooklane keys rotate`, after which the former key can be taken out.
#[derive(Debug, clap::Args)]
#[command(
    after_long_help = "Example:\n  hooklane keys generate --id k2\n  HOOKLANE_ENCRYPTION_KEYS=k2:…,k1:… hooklane \
                             keys rotate"
)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    Generate(GenerateArgs),
    /// Tell how much is sealed with which key
    List(Where),
    /// Seal everything with the first key of `encryption.keys`
    ///
    /// Works while replicas run, in small steps, and may be interrupted and begun again at any time. With
    /// `encryption.plaintext = true` it opens everything instead, and nothing is sealed any more.
    Rotate(Where),
}

/// Make a key, as `encryption.keys` takes it
///
/// It goes to standard output and nowhere else: keep it where the settings' secrets are, and a copy in a safe place. What
/// is sealed with a key that is lost is lost.
#[derive(Debug, clap::Args)]
struct GenerateArgs {
    /// What it is called in the settings and in the database [default: k and eight random digits]
    #[arg(long)]
    id: Option<String>,
}

/// How often what others changed meanwhile is tried again.
const PASSES_MAX: u32 = 100;
/// How often people are told how far it is.
const TOLD_EVERY: Duration = Duration::from_secs(1);
/// Endpoints that are named at most.
const NAMED_MAX: usize = 10;

/// Does what is asked.
pub async fn run(args: Args) -> Result<(), Failure> {
    match args.command {
        Command::Generate(args) => generate(args),
        Command::List(place) => list(place).await,
        Command::Rotate(place) => rotate(place).await,
    }
}

/// A fresh key as the setting has it; `id` or one that is drawn.
pub(super) fn new_entry(id: Option<&str>) -> Result<Zeroizing<String>, Failure> {
    let mut drawn = Zeroizing::new([0; 36]);
    SysRng
        .try_fill_bytes(&mut *drawn)
        .map_err(|error| Failure::internal(format!("the operating system gave no random bytes: {error}")))?;
    let mut key = Zeroizing::new([0; 32]);
    key.copy_from_slice(&drawn[..32]);
    let [a, b, c, d] = [drawn[32], drawn[33], drawn[34], drawn[35]];
    let id = id.map_or_else(|| format!("k{:08x}", u32::from_be_bytes([a, b, c, d])), str::to_owned);
    Keyring::entry(&id, &key).map_err(|problem| Failure::usage(format!("--id {id:?} {problem}")))
}

fn generate(args: GenerateArgs) -> Result<(), Failure> {
    super::say(&new_entry(args.id.as_deref())?)
}

async fn list(place: Where) -> Result<(), Failure> {
    let config = place.settings()?;
    let sealing = config.store.encryption.keys.as_ref().filter(|_| !config.store.encryption.plaintext);
    let sealing = sealing.map(|keys| keys.sealing_key().to_owned());
    let usage = open(&config).await?.usage().await.map_err(failed)?;
    super::say("key  secrets  endpoints")?;
    for KeyUse { id, secrets, settings } in usage {
        let name = match &id {
            None if secrets + settings == 0 && sealing.is_some() => continue,
            None => "none (not sealed)",
            Some(id) => id,
        };
        let note = if id == sealing { "  seals" } else { "" };
        super::say(&format!("{name}  {secrets}  {settings}{note}"))?;
    }
    Ok(())
}

async fn rotate(place: Where) -> Result<(), Failure> {
    let config = place.settings()?;
    let encryption = &config.store.encryption;
    if encryption.keys.is_none() && !encryption.plaintext {
        return Err(Failure::usage(
            "encryption.keys is not set; allowed is id:base64,… with the key that is to seal first (hooklane keys \
             generate makes one)",
        ));
    }
    let secrets = open(&config).await?;
    let mut told = Instant::now();
    let mut rewrapped = 0;
    for _ in 0..PASSES_MAX {
        let progress = |so_far: u64| {
            if told.elapsed() >= TOLD_EVERY {
                told = Instant::now();
                super::note(&format!("{} so far", counted(rewrapped + so_far, "value", "values")));
            }
        };
        let pass = secrets.pass(progress).await.map_err(failed)?;
        rewrapped += pass.rewrapped;
        if !pass.unreadable.is_empty() {
            return Err(unreadable(&pass, rewrapped));
        }
        // Once more where something was written: a replica may have written beside it.
        if pass.rewrapped + pass.missed == 0 {
            return finished(&secrets, &config, rewrapped).await;
        }
    }
    Err(Failure::try_again(format!(
        "{} re-wrapped, and replicas still write with another key: see that this one is the first of encryption.keys \
         everywhere, and try again",
        counted(rewrapped, "value was", "values were")
    )))
}

async fn finished(secrets: &Rewrap, config: &Config, rewrapped: u64) -> Result<(), Failure> {
    let gone = secrets.forget_unused().await.map_err(failed)?;
    let encryption = &config.store.encryption;
    let how = match encryption.keys.as_ref().filter(|_| !encryption.plaintext) {
        Some(keys) => format!("everything is sealed with {}", keys.sealing_key()),
        None => "nothing is sealed".to_owned(),
    };
    super::say(&format!("{how}; {} re-wrapped", counted(rewrapped, "value", "values")))?;
    if !gone.is_empty() {
        let gone = gone.join(", ");
        super::note(&format!("not needed any more: {gone}, once no replica has it as the first of encryption.keys"));
    }
    Ok(())
}

fn unreadable(pass: &Pass, rewrapped: u64) -> Failure {
    let lines = pass.unreadable.iter().take(NAMED_MAX).map(|(endpoint, why)| format!("\n  {endpoint}: {why}"));
    Failure::other(format!(
        "{} re-wrapped; of {} something does not open:{}",
        counted(rewrapped, "value was", "values were"),
        counted(pass.unreadable.len() as u64, "endpoint", "endpoints"),
        lines.collect::<String>()
    ))
}

async fn open(config: &Config) -> Result<Rewrap, Failure> {
    Rewrap::open(&config.store).await.map_err(|error| connect_failure(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_generated_key_is_one_that_the_setting_takes() {
        let [one, other] = [None, Some("k2")].map(|id| new_entry(id).expect("a key"));
        assert!(one.starts_with('k') && other.starts_with("k2:"));
        let both = Keyring::parse(&format!("{}, {}", *other, *one)).expect("keys");
        assert_eq!(both.sealing_key(), "k2");
        assert_eq!(new_entry(Some("a b")).expect_err("no id").code(), 64);
    }
}
