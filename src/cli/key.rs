//! `hooklane key`: makes, lists and revokes API keys, in the database itself: whoever may reach that may make keys.

use std::time::Duration;

use rand::TryRng as _;
use rand::rngs::SysRng;
use zeroize::Zeroizing;

use super::Failure;
use super::database::{Where, failed};
use super::serve::connect_failure;
use super::show::{Cell, Column, Table};
use crate::config::parse_span;
use crate::domain::Problem;
use crate::domain::access::{Role, Scope};
use crate::domain::api_key::ApiKey;
use crate::domain::id::KeyId;
use crate::store::{DbClock, KEYS_MAX, KeyRecord, Keys, NewKey};

/// Make, list and revoke API keys
///
/// Works on the database that the replicas share, none of which has to run. A replica knows of a new key at once, and of
/// a revocation within seconds.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    Create(CreateArgs),
    List(ListArgs),
    Revoke(RevokeArgs),
}

/// Make a key and show it, the only time
///
/// The key alone goes to standard output, so that it can be kept by a script; what it is goes to standard error.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Examples:\n  hooklane key create --name shop --role publisher --tenant shop --expires \
                             90d\n  hooklane key create --name ops --role admin --all-tenants > ops.key")]
#[command(group = clap::ArgGroup::new("whose").args(["tenant", "all_tenants"]).required(true))]
struct CreateArgs {
    /// Who holds it, for people
    #[arg(long, value_parser = parse_name)]
    name: String,
    /// What it may do: admin, publisher, operator or viewer
    #[arg(long, value_parser = Role::parse)]
    role: Role,
    /// The tenant whose things it may touch
    #[arg(long, value_parser = parse_tenant)]
    tenant: Option<Scope>,
    /// Every tenant's
    #[arg(long)]
    all_tenants: bool,
    /// When it ends by itself: 12h, 90d [default: never]
    #[arg(long, value_name = "SPAN", value_parser = parse_expiry)]
    expires: Option<Duration>,
    /// One line of JSON, with the key in it
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    place: Where,
}

/// List keys, oldest first
#[derive(Debug, clap::Args)]
struct ListArgs {
    /// Those that are revoked or expired, too
    #[arg(long)]
    all: bool,
    /// A line of JSON for each
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    place: Where,
}

/// Revoke a key: calls with it are refused and its streams ended within seconds
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Example:\n  hooklane key revoke key_01h455vb4pex5vsknk084sn02q")]
struct RevokeArgs {
    /// Its id, as `list` shows it
    id: KeyId,
    #[command(flatten)]
    place: Where,
}

/// Does what is asked.
pub async fn run(args: Args) -> Result<(), Failure> {
    match args.command {
        Command::Create(args) => create(args).await,
        Command::List(args) => list(args).await,
        Command::Revoke(args) => revoke(args).await,
    }
}

async fn create(args: CreateArgs) -> Result<(), Failure> {
    let (keys, clock) = open(args.place).await?;
    let mut secret = Zeroizing::new([0; 32]);
    SysRng
        .try_fill_bytes(&mut *secret)
        .map_err(|error| Failure::internal(format!("the operating system gave no random bytes: {error}")))?;
    let key = ApiKey::new(KeyId::from_uuid(clock.new_uuid()), secret);
    let new = NewKey {
        id: key.id(),
        name: args.name,
        role: args.role,
        scope: args.tenant.unwrap_or(Scope::All),
        digest: key.digest(),
        expires_in: args.expires,
    };
    if !keys.create(&new).await.map_err(failed)? {
        return Err(Failure::other(format!("there are {KEYS_MAX} keys already; revoke some")));
    }
    let text = key.expose();
    if args.json {
        let shown = serde_json::json!({
            "id": new.id.to_string(), "name": new.name, "role": new.role.as_str(), "tenant": new.scope.to_string(),
            "key": *text,
        });
        return super::say(&shown.to_string());
    }
    super::say(&text)?;
    let whose = match &new.scope {
        Scope::All => "every tenant".to_owned(),
        Scope::Tenant(tenant) => format!("the tenant {tenant}"),
    };
    super::note(&format!("{} is a key of {} for {whose}; it is not shown again", new.id, new.role));
    Ok(())
}

async fn list(args: ListArgs) -> Result<(), Failure> {
    let (keys, clock) = open(args.place).await?;
    let mut records = keys.list().await.map_err(failed)?;
    records.retain(|record| args.all || record.is_live);
    if args.json {
        return records.iter().try_for_each(|record| super::say(&json(record)));
    }
    let columns = ["id", "name", "role", "tenant", "state", "created", "expires", "last used"].map(Column::left);
    Table::new(&columns).print(&records.iter().map(|record| row(record, &clock)).collect::<Vec<_>>())
}

async fn revoke(args: RevokeArgs) -> Result<(), Failure> {
    let (keys, _) = open(args.place).await?;
    match keys.revoke(args.id).await.map_err(failed)? {
        true => super::say(&format!("{} is revoked", args.id)),
        false => Err(Failure::other(format!("there is no key {}", args.id))),
    }
}

async fn open(place: Where) -> Result<(Keys, DbClock), Failure> {
    Keys::open(&place.settings()?.store).await.map_err(|error| connect_failure(&error))
}

fn state(record: &KeyRecord) -> &'static str {
    match (record.is_live, record.revoke_time) {
        (true, _) => "live",
        (false, Some(_)) => "revoked",
        (false, None) => "expired",
    }
}

fn json(record: &KeyRecord) -> String {
    serde_json::json!({
        "id": record.id.to_string(),
        "name": record.name,
        "role": record.role.as_str(),
        "tenant": record.scope.to_string(),
        "state": state(record),
        "create_time": record.create_time.to_string(),
        "expire_time": record.expire_time.map(|time| time.to_string()),
        "revoke_time": record.revoke_time.map(|time| time.to_string()),
        "last_used_time": record.last_used_time.map(|time| time.to_string()),
    })
    .to_string()
}

fn row(record: &KeyRecord, clock: &DbClock) -> Vec<Cell> {
    let day = |time: crate::domain::time::Timestamp| time.to_string().chars().take(10).collect::<String>();
    let ago = |time: crate::domain::time::Timestamp| match clock.now().since(time).as_secs() {
        seconds @ 0..120 => format!("{seconds} s ago"),
        seconds @ 120..7_200 => format!("{} min ago", seconds / 60),
        seconds @ 7_200..172_800 => format!("{} h ago", seconds / 3_600),
        _ => day(time),
    };
    let cells = [
        record.id.to_string(),
        record.name.clone(),
        record.role.to_string(),
        record.scope.to_string(),
        state(record).to_owned(),
        day(record.create_time),
        record.expire_time.map_or_else(|| "never".to_owned(), day),
        record.last_used_time.map_or_else(|| "never".to_owned(), ago),
    ];
    cells.iter().map(Cell::from).collect()
}

fn parse_name(text: &str) -> Result<String, Problem> {
    let is_good = (1..=128).contains(&text.chars().count()) && !text.chars().any(char::is_control);
    match is_good && text.trim() == text {
        true => Ok(text.to_owned()),
        false => Err(Problem::new("is no name; allowed are 1 to 128 characters, no control characters among them")),
    }
}

fn parse_tenant(text: &str) -> Result<Scope, Problem> {
    match Scope::parse(text)? {
        Scope::All => Err(Problem::new("is no tenant; every tenant is --all-tenants")),
        own @ Scope::Tenant(_) => Ok(own),
    }
}

fn parse_expiry(text: &str) -> Result<Duration, String> {
    const MAX: Duration = Duration::from_secs(100 * 365 * 24 * 3600);
    let span = parse_span(text)?;
    match span.is_zero() || span > MAX {
        true => Err("is out of range; allowed is 1ms to 36500d".to_owned()),
        false => Ok(span),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_write_is_checked() {
        assert_eq!(parse_name("the shop's"), Ok("the shop's".to_owned()));
        for bad in ["", " x", "a\nb", "\u{1b}[31m", &"x".repeat(129)] {
            assert!(parse_name(bad).is_err(), "{bad:?}");
        }
        assert!(parse_tenant("shop").is_ok() && parse_tenant("*").is_err() && parse_tenant("").is_err());
        assert!(parse_expiry("90d").is_ok() && parse_expiry("0s").is_err() && parse_expiry("99999d").is_err());
    }
}
