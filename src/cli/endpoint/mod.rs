//! `hooklane endpoint`: registers, shows, changes, tests and removes endpoints.

mod describe;
mod shape;

use self::describe::{fields, row};
#[cfg(test)]
pub(super) use self::shape::NEW;
use self::shape::{ShapeArgs, scheme};
use super::client::{CallArgs, Client, Typed, refused_as, set_fields, to_json};
use super::delivery::attempt_fields;
use super::each::each;
use super::flags;
use super::pages::PageArgs;
use super::show::{Column, Table, time, visible, word};
use super::{Failure, note, say};
use crate::api::proto::{
    Attempt, AttemptOutcome, DeleteEndpointRequest, Endpoint, EndpointState, GetEndpointRequest, ListEndpointsRequest,
    PauseEndpointRequest, RegisterEndpointRequest, ResumeEndpointRequest, RotateSecretRequest, SignatureScheme,
    TestEndpointRequest, UpdateEndpointRequest,
};

/// Register, show, change, pause, test and remove endpoints
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    call: CallArgs,
}

#[derive(Debug, Clone, clap::Subcommand)]
enum Command {
    Add(Box<AddArgs>),
    List(ListArgs),
    Show(IdArgs),
    Update(Box<UpdateArgs>),
    /// Send nothing to endpoints for now: their deliveries wait
    Pause(IdsArgs),
    /// Send to paused or disabled endpoints again, what has waited first
    Resume(IdsArgs),
    Rotate(RotateArgs),
    Test(TestArgs),
    Delete(DeleteArgs),
}

/// Register an endpoint and show its secret, the only time
#[derive(Debug, Clone, clap::Args)]
#[command(after_long_help = "Examples:\n  hooklane endpoint add https://example.com/hooks --event-type 'order.*'\n  \
                             hooklane endpoint add https://example.com/hooks --retry-delays 1m,5m,2h\n  \
                             hooklane endpoint add --from endpoint.json")]
#[command(group = clap::ArgGroup::new("where").args(["url", "from"]).required(true).multiple(true))]
struct AddArgs {
    /// Where events are posted
    #[arg(value_name = "URL")]
    url: Option<String>,
    /// Whose it is [default: the caller's own tenant]
    #[arg(long, value_name = "TENANT")]
    tenant: Option<String>,
    /// The caller's own id of it: registering it again is refused
    #[arg(long, value_name = "ID")]
    external_id: Option<String>,
    /// A file with the secret to sign with, - for standard input [default: the service makes one]
    #[arg(long, value_name = "FILE")]
    secret_file: Option<String>,
    #[command(flatten)]
    shape: ShapeArgs,
}

/// List endpoints, newest first
#[derive(Debug, Clone, clap::Args)]
struct ListArgs {
    /// Whose, or '*' for every tenant's [default: the caller's own tenant]
    #[arg(long, value_name = "TENANT", default_value = "", hide_default_value = true)]
    tenant: String,
    /// Those in this state; repeatable
    #[arg(long = "state", value_name = "STATE", value_parser = state())]
    states: Vec<EndpointState>,
    /// Those that get events of this type
    #[arg(long, value_name = "TYPE", default_value = "", hide_default_value = true)]
    event_type: String,
    /// Those with this label, NAME=VALUE; repeatable
    #[arg(long = "label", value_name = "PAIR", value_parser = flags::pair)]
    labels: Vec<(String, String)>,
    #[command(flatten)]
    page: PageArgs,
}

/// Show an endpoint
#[derive(Debug, Clone, clap::Args)]
struct IdArgs {
    /// Its id, ep_…
    id: String,
}

/// Change an endpoint: what is named, and nothing else
///
/// A list, a map or a policy that is named takes the place of the whole former one.
#[derive(Debug, Clone, clap::Args)]
#[command(after_long_help = "Examples:\n  hooklane endpoint update ep_… --timeout 10s --max-in-flight 4\n  hooklane \
                             endpoint update ep_… --url https://example.com/new\n  hooklane endpoint update ep_… --clear \
                             filter --clear rate_limit")]
struct UpdateArgs {
    /// Its id, ep_…
    id: String,
    /// Where events are posted
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// The caller's own id of it
    #[arg(long, value_name = "ID")]
    external_id: Option<String>,
    /// A field of the contract to set back to its default, such as filter or rate_limit; repeatable
    #[arg(long = "clear", value_name = "FIELD")]
    clear: Vec<String>,
    #[command(flatten)]
    shape: ShapeArgs,
}

#[derive(Debug, Clone, clap::Args)]
struct IdsArgs {
    /// Their ids, ep_…
    #[arg(required = true, value_name = "ID")]
    ids: Vec<String>,
}

/// Give an endpoint another secret and show it, the only time
///
/// The former one goes on signing beside it for the overlap.
#[derive(Debug, Clone, clap::Args)]
struct RotateArgs {
    /// Its id, ep_…
    id: String,
    /// A file with the secret to sign with, - for standard input [default: the service makes one]
    #[arg(long, value_name = "FILE")]
    secret_file: Option<String>,
    /// For how long the former one goes on, up to 7d; 0s ends it at once [default: 24h]
    #[arg(long, value_name = "SPAN", value_parser = flags::span)]
    overlap: Option<prost_types::Duration>,
    /// Another scheme to sign by from now on
    #[arg(long, value_name = "SCHEME", value_parser = scheme())]
    signature_scheme: Option<SignatureScheme>,
}

/// Send an endpoint one request now, and show what came of it
///
/// Nothing of it is queued, kept or counted. Exit code 1 where the endpoint did not answer with a 2xx status.
#[derive(Debug, Clone, clap::Args)]
struct TestArgs {
    /// Its id, ep_…
    id: String,
    /// The event type it is sent as [default: hooklane.test]
    #[arg(long, value_name = "TYPE", default_value = "", hide_default_value = true)]
    event_type: String,
    /// The payload: JSON, @FILE, or - for standard input [default: {}]
    #[arg(long, value_name = "DATA")]
    data: Option<String>,
}

/// Remove an endpoint: what waits for it is canceled
#[derive(Debug, Clone, clap::Args)]
struct DeleteArgs {
    /// Its id, ep_…
    id: String,
    /// Really do it
    #[arg(long)]
    yes: bool,
}

pub(super) const TYPED: Typed = &[
    ("endpoint_id", "ID"),
    ("secret", "--secret-file"),
    ("overlap", "--overlap"),
    ("signature_scheme", "--signature-scheme"),
    ("event_type", "--event-type"),
    ("payload", "--data"),
];

fn state() -> impl clap::builder::TypedValueParser<Value = EndpointState> {
    flags::one_of("ENDPOINT_STATE", &["active", "paused", "disabled"], EndpointState::from_str_name)
}

/// Does what is asked.
pub async fn run(args: Args) -> Result<(), Failure> {
    if let Command::Delete(DeleteArgs { id, yes: false }) = &args.command {
        let words = format!("{id} was not deleted: what waits for it would be canceled; --yes does it");
        return Err(Failure::usage(words));
    }
    let client = args.call.connection.connect().await?;
    let json = args.call.json;
    match args.command {
        Command::Add(args) => add(client, *args, json).await,
        Command::List(args) => list(client, args, json).await,
        Command::Show(args) => show(client, args.id, json).await,
        Command::Update(args) => update(client, *args, json).await,
        Command::Pause(args) => pause(client, args.ids, json).await,
        Command::Resume(args) => resume(client, args.ids, json).await,
        Command::Rotate(args) => rotate(client, args, json).await,
        Command::Test(args) => test(client, args, json).await,
        Command::Delete(args) => delete(client, args.id, json).await,
    }
}

async fn add(mut client: Client, args: AddArgs, json: bool) -> Result<(), Failure> {
    let secret = flags::read_secret(args.secret_file.as_deref())?;
    let (mut endpoint, typed) = (args.shape.apply()?, args.shape.typed());
    endpoint.url = args.url.unwrap_or(endpoint.url);
    endpoint.tenant = args.tenant.unwrap_or(endpoint.tenant);
    endpoint.external_id = args.external_id.unwrap_or(endpoint.external_id);
    let request = RegisterEndpointRequest { endpoint: Some(endpoint), secret };
    let answer = client.register_endpoint(request).await.map_err(refused_as("RegisterEndpoint", typed))?.into_inner();
    if json {
        return say(&to_json(&answer)?);
    }
    let endpoint = endpoint_of(answer.endpoint)?;
    let mut shown = fields(&endpoint);
    shown.add("secret", &answer.secret);
    shown.print()?;
    note("the secret is not shown again");
    Ok(())
}

async fn list(mut client: Client, args: ListArgs, json: bool) -> Result<(), Failure> {
    let table = Table::new(&[
        Column::left("id"),
        Column::left("state"),
        Column::left("circuit"),
        Column::right("health"),
        Column::left("event types"),
        Column::left("url"),
    ]);
    let mut pages = args.page.pages(table, json);
    while let Some((page_size, page_token)) = pages.next() {
        let request = ListEndpointsRequest {
            tenant: args.tenant.clone(),
            states: args.states.iter().map(|state| i32::from(*state)).collect(),
            event_type: args.event_type.clone(),
            labels: args.labels.iter().cloned().collect(),
            page_size,
            page_token,
        };
        let page =
            client.list_endpoints(request).await.map_err(refused_as("ListEndpoints", flags::FILTERS))?.into_inner();
        pages.show(&page.endpoints, page.next_page_token, row)?;
    }
    Ok(())
}

async fn show(mut client: Client, endpoint_id: String, json: bool) -> Result<(), Failure> {
    let answer =
        client.get_endpoint(GetEndpointRequest { endpoint_id }).await.map_err(refused_as("GetEndpoint", flags::ID))?;
    print(answer.into_inner().endpoint, json)
}

async fn update(mut client: Client, args: UpdateArgs, json: bool) -> Result<(), Failure> {
    let (mut endpoint, typed) = (args.shape.apply()?, args.shape.typed());
    endpoint.url = args.url.unwrap_or(endpoint.url);
    endpoint.external_id = args.external_id.unwrap_or(endpoint.external_id);
    let mut paths = set_fields(&endpoint)?;
    paths.extend(args.clear);
    if paths.is_empty() {
        return Err(Failure::usage("nothing is named that is to change"));
    }
    endpoint.id = args.id;
    let update_mask = Some(prost_types::FieldMask { paths });
    let request = UpdateEndpointRequest { endpoint: Some(endpoint), update_mask };
    let answer = client.update_endpoint(request).await.map_err(refused_as("UpdateEndpoint", typed))?;
    print(answer.into_inner().endpoint, json)
}

async fn pause(mut client: Client, ids: Vec<String>, json: bool) -> Result<(), Failure> {
    each(ids, async |endpoint_id| {
        let request = PauseEndpointRequest { endpoint_id };
        let answer = client.pause_endpoint(request).await.map_err(refused_as("PauseEndpoint", flags::ID))?;
        tell(answer.into_inner().endpoint, json)
    })
    .await
}

async fn resume(mut client: Client, ids: Vec<String>, json: bool) -> Result<(), Failure> {
    each(ids, async |endpoint_id| {
        let request = ResumeEndpointRequest { endpoint_id };
        let answer = client.resume_endpoint(request).await.map_err(refused_as("ResumeEndpoint", flags::ID))?;
        tell(answer.into_inner().endpoint, json)
    })
    .await
}

async fn rotate(mut client: Client, args: RotateArgs, json: bool) -> Result<(), Failure> {
    let request = RotateSecretRequest {
        endpoint_id: args.id,
        secret: flags::read_secret(args.secret_file.as_deref())?,
        overlap: args.overlap,
        signature_scheme: args.signature_scheme.unwrap_or_default().into(),
    };
    let answer = client.rotate_secret(request).await.map_err(refused_as("RotateSecret", TYPED))?.into_inner();
    if json {
        return say(&to_json(&answer)?);
    }
    // Alone on standard output, so that a script can keep it.
    say(&visible(&answer.secret))?;
    match time(answer.previous_expire_time.as_ref()).as_str() {
        "" => note("the secret is not shown again; the former one has ended"),
        until => note(&format!("the secret is not shown again; the former one goes on signing until {until}")),
    }
    Ok(())
}

async fn test(mut client: Client, args: TestArgs, json: bool) -> Result<(), Failure> {
    let payload = args.data.as_deref().map(super::publish::data).transpose()?.unwrap_or_default();
    let request = TestEndpointRequest { endpoint_id: args.id, event_type: args.event_type, payload: payload.into() };
    let answer = client.test_endpoint(request).await.map_err(refused_as("TestEndpoint", TYPED))?.into_inner();
    let attempt =
        answer.attempt.clone().ok_or_else(|| Failure::internal("the service answered without the attempt"))?;
    match json {
        true => say(&to_json(&answer)?)?,
        false => attempt_fields(&attempt).print()?,
    }
    judge(&attempt)
}

/// A script learns by the exit code how the test went.
fn judge(attempt: &Attempt) -> Result<(), Failure> {
    match attempt.outcome() {
        AttemptOutcome::Succeeded => Ok(()),
        _ => Err(Failure::other(format!("the endpoint did not take it: {}", visible(&attempt.error)))),
    }
}

async fn delete(mut client: Client, endpoint_id: String, json: bool) -> Result<(), Failure> {
    let request = DeleteEndpointRequest { endpoint_id: endpoint_id.clone(), ..DeleteEndpointRequest::default() };
    let answer = client.delete_endpoint(request).await.map_err(refused_as("DeleteEndpoint", flags::ID))?.into_inner();
    match json {
        true => say(&to_json(&answer)?),
        false => say(&format!("{endpoint_id} is deleted; canceled with it: {}", answer.canceled_deliveries)),
    }
}

fn endpoint_of(endpoint: Option<Endpoint>) -> Result<Endpoint, Failure> {
    endpoint.ok_or_else(|| Failure::internal("the service answered without the endpoint"))
}

fn print(endpoint: Option<Endpoint>, json: bool) -> Result<(), Failure> {
    let endpoint = endpoint_of(endpoint)?;
    if json { say(&to_json(&endpoint)?) } else { fields(&endpoint).print() }
}

fn tell(endpoint: Option<Endpoint>, json: bool) -> Result<(), Failure> {
    let endpoint = endpoint_of(endpoint)?;
    let state = word(endpoint.state().as_str_name(), "ENDPOINT_STATE");
    if json { say(&to_json(&endpoint)?) } else { say(&format!("{} is {state}", endpoint.id)) }
}
