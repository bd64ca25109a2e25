//! Erasing a tenant while it is at work: complete by a dump of the database, resumable, and nobody else's loss.

use std::process::Stdio;

use hooklane::api::proto::*;
use hooklane::cli::listen::Behaviour;
use http::StatusCode;
use sqlx::{AssertSqlSafe, PgConnection};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

use super::{Service, endpoint, receiver, retries, service_with};
use crate::support::{self, eventually};

/// In the tenant's name, and in everything that it has.
const MARK: &str = "erasemark";

fn command(url: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hooklane"));
    command.args(["tenant", "erase"]).args(arguments).args(["--database-url", url]).kill_on_drop(true);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

async fn run(url: &str, arguments: &[&str]) -> (Option<i32>, String, String) {
    let output = command(url, arguments).output().await.expect("it runs");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
    (output.status.code(), text(output.stdout), text(output.stderr))
}

/// The whole database as text, as `pg_dump` writes it.
async fn dump(url: &str) -> String {
    let mut connection = support::connection(url).await;
    let directory: String = sqlx::query_scalar("select setting from pg_config where name = 'BINDIR'")
        .fetch_one(&mut connection)
        .await
        .expect("known");
    let output = Command::new(format!("{directory}/pg_dump")).arg(url).output().await.expect("it runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// How often something is in a dump, as text or inside bytes.
fn found(dump: &str, text: &str) -> usize {
    let hex: String = text.bytes().map(|byte| format!("{byte:02x}")).collect();
    dump.matches(text).count() + dump.matches(&hex).count()
}

async fn execute(connection: &mut PgConnection, statement: &str) {
    sqlx::raw_sql(AssertSqlSafe(statement.to_owned())).execute(connection).await.expect(statement);
}

fn event_for(tenant: &str, n: usize) -> PublishRequest {
    PublishRequest {
        tenant: tenant.to_owned(),
        event_type: format!("{tenant}.created"),
        body: Some(publish_request::Body::Payload(format!(r#"{{"of": "{tenant}", "n": {n}}}"#).into())),
        idempotency_key: format!("{tenant}-{n}"),
        ordering_key: format!("{tenant}-{}", n % 3),
        metadata: [(format!("{tenant}-name"), format!("{tenant}-value"))].into(),
        ..PublishRequest::default()
    }
}

/// A tenant with something in every table that there is: endpoints that succeed, fail, are paused, ordered and unlisted.
async fn live(service: &Service, url: &str, tenant: &str, taking: &str, refusing: &str) {
    let of = |endpoint: Endpoint| Endpoint {
        tenant: tenant.to_owned(),
        description: format!("{tenant} in words"),
        labels: [(format!("{tenant}-label"), tenant.to_owned())].into(),
        headers: [("x-of".to_owned(), tenant.to_owned())].into(),
        ..endpoint
    };
    let there = |base: &str| endpoint(&format!("{base}/{tenant}"));
    service.register(of(there(taking))).await;
    service.register(of(Endpoint { retry_policy: Some(retries(1)), ..there(refusing) })).await;
    let waiting = service.register(of(Endpoint { ordering: Ordering::ByKey.into(), ..there(taking) })).await;
    let request = PauseEndpointRequest { endpoint_id: waiting.id.clone() };
    service.client.clone().pause_endpoint(request).await.expect("paused");
    let failing = Endpoint { filter: "event.data.missing == 1".to_owned(), ..there(taking) };
    service.register(of(failing)).await;
    let mut last = PublishResponse::default();
    for n in 0..12 {
        last = service.publish(event_for(tenant, n)).await;
    }
    for delivery in last.deliveries.iter().filter(|delivery| delivery.endpoint_id != waiting.id) {
        eventually("it is settled", || async {
            Some(()).filter(|()| true).zip(service.delivery(&delivery.delivery_id).await.settle_time)
        })
        .await;
    }
    let inline = InlineEndpoint {
        endpoint: Some(Endpoint { tenant: String::new(), ..there(taking) }),
        secret: super::SECRET.to_owned(),
    };
    service.publish(PublishRequest { inline_endpoint: Some(Box::new(inline)), ..event_for(tenant, 100) }).await;
    let filter = ReplayFilter {
        tenant: tenant.to_owned(),
        states: vec![DeliveryState::Succeeded.into()],
        ..ReplayFilter::default()
    };
    let request = StartReplayRequest { filter: Some(filter), ..StartReplayRequest::default() };
    service.client.clone().start_replay(request).await.expect("started");
    let mut connection = support::connection(url).await;
    let statement = format!("select hooklane.publish('{tenant}.sql', '\"{tenant}\"', tenant => '{tenant}')");
    execute(&mut connection, &statement).await;
    // What comes into being on occasion: an event that outlasted its day, a day that is detached and not dropped yet.
    let occasional = format!(
        "insert into events_kept (id, tenant, event_type, payload, content_type)
           values (gen_random_uuid(), '{tenant}', '{tenant}.old', '{tenant}', 'text/plain');
         insert into inbox (id, tenant, event_type, payload, is_repeat, priority, deliver_time)
           values (new_uuid(), '{tenant}', '{tenant}.late', '{tenant}', false, 2, now() + interval '1 hour');
         create table if not exists events_19990101 (like events including all);
         insert into events_19990101 (id, tenant, event_type, payload, content_type)
           values (gen_random_uuid(), '{tenant}', '{tenant}.old', '{tenant}', 'text/plain');"
    );
    execute(&mut connection, &occasional).await;
    let key = Command::new(env!("CARGO_BIN_EXE_hooklane"))
        .args(["key", "create", "--name", tenant, "--role", "viewer", "--tenant", tenant, "--database-url", url])
        .output()
        .await
        .expect("it runs");
    assert!(key.status.success());
    eventually("alerts and statistics are on record", || async {
        let mut connection = support::connection(url).await;
        let counts: (i64, i64, i64) = sqlx::query_as(
            "select (select count(*) from alerts where tenant = $1), (select count(*) from stats where tenant = $1),
                    (select count(*) from endpoint_minutes m join endpoints e on e.id = m.endpoint_id where e.tenant = $1)",
        )
        .bind(tenant)
        .fetch_one(&mut connection)
        .await
        .ok()?;
        Some(()).filter(|()| counts.0 > 0 && counts.1 > 0 && counts.2 > 0)
    })
    .await;
}

#[tokio::test]
async fn a_tenant_is_erased_completely_and_nobody_else_loses_anything() {
    let url = support::database().await;
    let service = service_with(url.clone(), &[]).await;
    let taking = receiver(Behaviour::default()).await;
    let refusing = receiver(Behaviour { status: Some(StatusCode::SERVICE_UNAVAILABLE), ..Behaviour::default() }).await;
    let mut connection = support::connection(&url).await;
    live(&service, &url, MARK, &taking.url(), &refusing.url()).await;
    live(&service, &url, "neighbour", &taking.url(), &refusing.url()).await;
    let ids: Vec<String> = sqlx::query_scalar("select id::text from endpoints where tenant = $1")
        .bind(MARK)
        .fetch_all(&mut connection)
        .await
        .expect("read");
    assert!(ids.len() >= 5 && found(&dump(&url).await, MARK) > 100);

    let (code, _, told) = run(&url, &["--tenant", MARK]).await;
    assert!(code == Some(64) && told.contains("--yes"), "{told}");
    assert!(found(&dump(&url).await, MARK) > 100, "nothing is erased that was not meant");

    // Killed in the middle, and started again.
    let mut killed: Child = command(&url, &["--tenant", MARK, "--yes"]).spawn().expect("it starts");
    let mut lines = BufReader::new(killed.stderr.take().expect("piped")).lines();
    while let Some(line) = lines.next_line().await.expect("read") {
        if line.contains("outstanding: ") || line.contains("events") {
            break;
        }
    }
    killed.kill().await.expect("killed");
    assert!(found(&dump(&url).await, MARK) > 0, "it was in the middle");
    let (code, said, told) = run(&url, &["--tenant", MARK, "--yes"]).await;
    assert_eq!(code, Some(0), "{told}");
    assert!(said.contains("is erased"), "{said}");

    let left = dump(&url).await;
    assert_eq!(found(&left, MARK), 0, "{:?}", left.lines().filter(|line| line.contains(MARK)).collect::<Vec<_>>());
    for id in &ids {
        assert_eq!(found(&left, id), 0, "{id}");
    }
    let (code, said, _) = run(&url, &["--tenant", MARK, "--yes"]).await;
    assert!(code == Some(0) && said.contains("0 rows"), "{said}");

    // The neighbour is as it was, and goes on; and the name can be used again.
    let neighbours: i64 = sqlx::query_scalar("select count(*) from endpoints where tenant = 'neighbour'")
        .fetch_one(&mut connection)
        .await
        .expect("counted");
    assert_eq!(neighbours, ids.len() as i64);
    for tenant in ["neighbour", MARK] {
        let there = Endpoint { tenant: tenant.to_owned(), ..endpoint(&taking.url()) };
        let registered = service.register(there).await.id;
        let published = service.publish(event_for(tenant, 1_000)).await;
        let delivery = published.deliveries.iter().find(|delivery| delivery.endpoint_id == registered);
        service.in_state(&delivery.expect("matched").delivery_id, DeliveryState::Succeeded).await;
    }
}

/// Every table is a tenant's by its columns, or has nothing of a tenant: whoever adds one says which.
#[tokio::test]
async fn no_table_is_forgotten() {
    const OF_NOBODY: [&str; 9] = [
        "_sqlx_migrations",
        "chore_turns",
        "encryption_keys",
        "failures_told",
        "leaving_partitions",
        "publish_limits",
        "replicas",
        "stream_clusters",
        "stream_key",
    ];
    let mut connection = support::connection(&support::database().await).await;
    let tables: Vec<(String, Vec<String>)> = sqlx::query_as(
        "select c.relname::text, array(select a.attname::text from pg_attribute a
                                       where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped)
         from pg_class c where c.relnamespace = 'hooklane'::regnamespace and c.relkind in ('r', 'p')",
    )
    .fetch_all(&mut connection)
    .await
    .expect("read");
    assert!(tables.len() > 30);
    for (table, columns) in tables {
        let tells =
            ["tenant", "endpoint_id", "replay_id"].iter().any(|told| columns.iter().any(|column| column == told));
        let is_exempt = OF_NOBODY.contains(&table.as_str());
        assert!(tells || is_exempt, "{table}: `hooklane tenant erase` finds nothing of a tenant in {columns:?}");
    }
}
