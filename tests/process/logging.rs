//! What a replica logs: a failure once, with its ids; by a filter that can be changed while it runs.

use hooklane::api::proto::*;
use hooklane::cli::listen::Behaviour;
use http::StatusCode;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::commands::receiver;
use crate::program::{Replica, run};
use crate::support::{connection, database, eventually};

/// The filter where no setting names one, as the program says it.
const DEFAULT: &str = "info,sqlx=warn,sqlx_core::pool=error\n";

/// The log lines of a delivery, as objects.
fn lines(replica: &Replica, delivery: &str) -> Vec<serde_json::Value> {
    lines_with(replica, "delivery", delivery)
}

/// The lines with that message, as objects.
fn saying(replica: &Replica, message: &str) -> Vec<serde_json::Value> {
    lines_with(replica, "message", message)
}

fn lines_with(replica: &Replica, field: &str, value: &str) -> Vec<serde_json::Value> {
    let log = replica.log();
    let objects = log.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("no JSON: {line}")));
    objects.filter(|line: &serde_json::Value| line[field] == value).collect()
}

type Client = webhook_service_client::WebhookServiceClient<tonic::transport::Channel>;

async fn client(replica: &Replica) -> Client {
    Client::connect(replica.grpc.clone()).await.expect("connects")
}

const TRACE_ID: &str = "0af7651916cd43dd8448eb211c80319c";

/// A call that belongs to a trace, which nobody has to record.
fn traced<T>(message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    let traceparent = format!("00-{TRACE_ID}-b7ad6b7169203331-00");
    request.metadata_mut().insert("traceparent", traceparent.parse().expect("a value"));
    request
}

/// Publishes an event of that trace to everybody; answers the delivery's id.
async fn publish(client: &Client, event_type: &str) -> String {
    let event = PublishRequest {
        event_type: event_type.to_owned(),
        body: Some(publish_request::Body::Payload("{}".into())),
        ..PublishRequest::default()
    };
    let published = client.clone().publish(traced(event)).await.expect("published").into_inner();
    published.deliveries[0].delivery_id.clone()
}

async fn register(client: &Client, url: &str) -> String {
    let endpoint = Endpoint { url: url.to_owned(), ..Endpoint::default() };
    let register = RegisterEndpointRequest { endpoint: Some(endpoint), secret: String::new() };
    let answer = client.clone().register_endpoint(register).await.expect("registered").into_inner();
    answer.endpoint.expect("one").id
}

async fn in_state(client: &Client, delivery: &str, state: DeliveryState) {
    eventually(&format!("it is {state:?}"), || async {
        let request = GetDeliveryRequest { delivery_id: delivery.to_owned() };
        let found = client.clone().get_delivery(request).await.expect("read").into_inner().delivery.expect("one");
        (found.state() == state).then_some(())
    })
    .await;
}

async fn failing_delivery(replica: &Replica, url: &str) -> (String, String) {
    let mut client =
        webhook_service_client::WebhookServiceClient::connect(replica.grpc.clone()).await.expect("connects");
    let backoff = ExponentialBackoff {
        initial_delay: Some(prost_types::Duration { seconds: 0, nanos: 10_000_000 }),
        ..ExponentialBackoff::default()
    };
    let policy = RetryPolicy {
        backoff: Some(retry_policy::Backoff::Exponential(backoff)),
        max_retries: Some(1),
        ..RetryPolicy::default()
    };
    let endpoint = Endpoint { url: url.to_owned(), retry_policy: Some(policy), ..Endpoint::default() };
    let register = RegisterEndpointRequest { endpoint: Some(endpoint), secret: String::new() };
    let id = client.register_endpoint(register).await.expect("registered").into_inner().endpoint.expect("one").id;
    let event = PublishRequest {
        event_type: "order.created".to_owned(),
        endpoint_ids: vec![id],
        body: Some(publish_request::Body::Payload("{}".into())),
        ..PublishRequest::default()
    };
    let published = client.publish(event).await.expect("published").into_inner();
    let delivery = published.deliveries[0].delivery_id.clone();
    eventually("it has failed", || async {
        let request = GetDeliveryRequest { delivery_id: delivery.clone() };
        let found = client.clone().get_delivery(request).await.expect("read").into_inner().delivery.expect("one");
        (found.state() == DeliveryState::Failed).then_some(())
    })
    .await;
    (delivery, published.event_id)
}

#[tokio::test]
async fn a_failed_delivery_is_logged_once_with_its_ids_and_its_attempts_when_asked_for() {
    let failing = Behaviour { status: Some(StatusCode::INTERNAL_SERVER_ERROR), ..Behaviour::default() };
    let receiver = receiver(failing).await;
    let replica = Replica::start(&database().await, &[("HOOKLANE_LOG_FORMAT", "json")]).await;
    let ops = replica.ops.to_string();
    let log_level = async |arguments: &[&str]| {
        let arguments = [&["log-level", "--ops-addr", &ops], arguments].concat();
        run(&arguments, &[]).await
    };
    let (code, said, _) = log_level(&[]).await;
    assert_eq!((code, said.as_str()), (Some(0), DEFAULT));

    let (delivery, event) = failing_delivery(&replica, &receiver.url()).await;
    let told = eventually("it is logged", || async { lines(&replica, &delivery).pop() }).await;
    assert_eq!(lines(&replica, &delivery).len(), 1, "once");
    let received = receiver.next().await.expect("a request");
    let trace_id = received.headers["traceparent"].to_str().expect("text")[3..35].to_owned();
    for (field, expected) in [
        ("level", "INFO"),
        ("target", "hooklane::delivery"),
        ("message", "a delivery failed for good"),
        ("event", event.as_str()),
        ("event_type", "order.created"),
        ("tenant", "default"),
        ("trace_id", trace_id.as_str()),
        ("outcome", "http_error"),
        ("reason", "HTTP 500: Internal Server Error"),
    ] {
        assert_eq!(told[field], expected, "{field} of {told}");
    }
    assert_eq!(told["attempt"], 2);
    assert!(told["endpoint"].as_str().is_some_and(|id| id.starts_with("ep_")), "{told}");

    let (code, said, _) = log_level(&["info,hooklane::delivery=debug"]).await;
    let whole = "info,hooklane::delivery=debug,sqlx=warn,sqlx_core::pool=error\n";
    assert_eq!((code, said.as_str()), (Some(0), whole), "with what goes with it");
    let (delivery, _) = failing_delivery(&replica, &receiver.url()).await;
    let attempts = eventually("each attempt is logged", || async {
        Some(lines(&replica, &delivery)).filter(|lines| lines.len() == 2)
    })
    .await;
    assert_eq!((&attempts[0]["level"], &attempts[0]["attempt"]), (&"DEBUG".into(), &1.into()));
    assert_eq!((&attempts[1]["level"], &attempts[1]["attempt"]), (&"INFO".into(), &2.into()));

    let (code, _, problem) = log_level(&["debg"]).await;
    assert!(code == Some(64) && problem.contains("\"debg\"") && problem.contains("hooklane=debug"), "{problem}");
    let (code, said, _) = log_level(&["--reset"]).await;
    assert_eq!((code, said.as_str()), (Some(0), DEFAULT));
    let (delivery, _) = failing_delivery(&replica, &receiver.url()).await;
    eventually("it is logged", || async { lines(&replica, &delivery).pop() }).await;
    assert_eq!(lines(&replica, &delivery).len(), 1);
    // Whoever may not change it learns so, and it stays.
    let page = replica.send("PUT", "/log/filter", "Origin: http://localhost\r\nContent-Length: 3\r\n\r\noff").await;
    assert!(page.expect("an answer").starts_with("HTTP/1.1 403 "));
    assert_eq!(log_level(&[]).await.1, DEFAULT);
}

#[tokio::test]
async fn a_failure_inside_is_logged_with_the_trace_and_the_deliveries_that_it_concerns() {
    let receiver = receiver(Behaviour::default()).await;
    let url = database().await;
    let mut database = connection(&url).await;
    let mut change = async |statement: &'static str| {
        sqlx::query(statement).execute(&mut database).await.expect(statement);
    };
    let replica = Replica::start(&url, &[("HOOKLANE_LOG_FORMAT", "json")]).await;
    let mut client = client(&replica).await;
    register(&client, &receiver.url()).await;

    // A call that fails: by its name and its trace.
    change("alter table hooklane.replays rename to elsewhere").await;
    let get = GetReplayRequest { replay_id: "rpl_01h455vb4pex5vsknk084sn02q".to_owned() };
    let refused = client.get_replay(traced(get)).await.expect_err("it fails");
    assert_eq!(refused.code(), tonic::Code::Internal);
    change("alter table hooklane.elsewhere rename to replays").await;
    let failed = saying(&replica, "a call failed in the database");
    assert_eq!(failed.len(), 1, "once: {failed:?}");
    for (field, expected) in [("level", "ERROR"), ("call", "GetReplay"), ("trace_id", TRACE_ID)] {
        assert_eq!(failed[0][field], expected, "{field} of {}", failed[0]);
    }

    // Events that are not published.
    change("alter table hooklane.events add constraint no_such check (event_type <> 'order.impossible')").await;
    let event = PublishRequest {
        event_type: "order.impossible".to_owned(),
        body: Some(publish_request::Body::Payload("{}".into())),
        ..PublishRequest::default()
    };
    client.publish(traced(event)).await.expect_err("it is refused");
    let failed = saying(&replica, "events were not published");
    assert_eq!(failed.len(), 1, "once: {failed:?}");
    assert_eq!((&failed[0]["level"], &failed[0]["events"]), (&"ERROR".into(), &1.into()));
    assert_eq!(failed[0]["trace_ids"], TRACE_ID);
    assert!(failed[0]["ids"].as_str().is_some_and(|id| id.starts_with("evt_")), "{}", failed[0]);

    // Results that wait.
    change("alter table hooklane.settled_succeeded rename to elsewhere").await;
    let delivery = publish(&client, "order.created").await;
    let waiting =
        eventually("results wait", || async { saying(&replica, "results wait for the database").pop() }).await;
    assert_eq!((&waiting["results"], &waiting["level"]), (&1.into(), &"WARN".into()));
    assert_eq!((&waiting["deliveries"], &waiting["trace_ids"]), (&delivery.as_str().into(), &TRACE_ID.into()));
    change("alter table hooklane.elsewhere rename to settled_succeeded").await;
    in_state(&client, &delivery, DeliveryState::Succeeded).await;

    // A result that the database refuses, whatever is left out of it.
    change("alter table hooklane.settled_succeeded add constraint no_such check (event_type <> 'order.refused')").await;
    let delivery = publish(&client, "order.refused").await;
    let refused = eventually("it is refused", || async {
        lines(&replica, &delivery).into_iter().find(|line| line["message"] == "the database refused a result")
    })
    .await;
    assert_eq!((&refused["level"], &refused["trace_id"]), (&"ERROR".into(), &TRACE_ID.into()));
    assert!(refused["endpoint"].as_str().is_some_and(|id| id.starts_with("ep_")), "{refused}");
}

#[tokio::test]
async fn an_attempt_that_was_lost_with_its_worker_is_logged_by_who_finds_it() {
    let silent = Behaviour { silent: true, ..Behaviour::default() };
    let receiver = receiver(silent).await;
    let url = database().await;
    let mut lost = Replica::start(&url, &[]).await;
    let name = lost.name().await;
    let at_first = client(&lost).await;
    register(&at_first, &receiver.url()).await;
    let delivery = publish(&at_first, "order.created").await;
    receiver.next().await.expect("a request");
    lost.signal("KILL").await;
    lost.ended().await;
    receiver.set_behaviour(Behaviour::default());
    let lapse = "update hooklane.outstanding set lease_until = now()";
    sqlx::query(lapse).execute(&mut connection(&url).await).await.expect("lapsed");

    let filter = "info,hooklane::delivery=debug";
    let settings = [("HOOKLANE_LOG_FORMAT", "json"), ("HOOKLANE_LOG", filter)];
    let successor = Replica::start(&url, &settings).await;
    in_state(&client(&successor).await, &delivery, DeliveryState::Succeeded).await;
    let told = eventually("it is logged", || async { lines(&successor, &delivery).pop() }).await;
    for (field, expected) in [
        ("level", "DEBUG"),
        ("message", "an attempt was lost with its worker"),
        ("outcome", "lost"),
        ("trace_id", TRACE_ID),
        ("replica", name.as_str()),
    ] {
        assert_eq!(told[field], expected, "{field} of {told}");
    }
    let all = saying(&successor, "attempts were lost with their workers");
    assert_eq!(all.len(), 1, "once: {all:?}");
    assert_eq!((&all[0]["level"], &all[0]["attempts"]), (&"INFO".into(), &1.into()));
    assert_eq!((&all[0]["deliveries"], &all[0]["trace_ids"]), (&delivery.as_str().into(), &TRACE_ID.into()));
}

#[tokio::test]
async fn leases_that_are_not_renewed_and_attempts_that_do_not_end_are_logged_with_their_traces() {
    let silent = Behaviour { silent: true, ..Behaviour::default() };
    let receiver = receiver(silent).await;
    let url = database().await;
    let mut database = connection(&url).await;
    let mut change = async |statement: &'static str| {
        sqlx::query(statement).execute(&mut database).await.expect(statement);
    };
    let settings = [("HOOKLANE_LOG_FORMAT", "json"), ("HOOKLANE_SHUTDOWN_GRACE", "1ms")];
    let mut replica = Replica::start(&url, &settings).await;
    let client = client(&replica).await;
    register(&client, &receiver.url()).await;
    let delivery = publish(&client, "order.created").await;
    receiver.next().await.expect("a request");

    change("alter table hooklane.outstanding rename to elsewhere").await;
    let kept = eventually("it is told", || async { saying(&replica, "leases were not renewed").pop() }).await;
    change("alter table hooklane.elsewhere rename to outstanding").await;
    replica.signal("TERM").await;
    replica.ended().await;
    let left = saying(&replica, "attempts did not end in time; they will show as LOST").remove(0);
    for line in [kept, left] {
        assert_eq!((&line["deliveries"], &line["trace_ids"]), (&delivery.as_str().into(), &TRACE_ID.into()), "{line}");
    }
}

/// Answers the first request with 200, and no other at all.
async fn one_answer() -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let url = format!("http://{}/", listener.local_addr().expect("bound"));
    tokio::spawn(async move {
        let mut open = Vec::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            if open.is_empty() {
                let mut request = [0; 8_192];
                let _ = stream.read(&mut request).await;
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").await;
            }
            open.push(stream);
        }
    });
    url
}

#[tokio::test]
async fn claims_that_are_not_handed_back_are_logged_with_their_traces() {
    let url = database().await;
    let replica = Replica::start(&url, &[("HOOKLANE_LOG_FORMAT", "json")]).await;
    let mut client = client(&replica).await;
    let endpoint = Endpoint { url: one_answer().await, max_in_flight: 1, ..Endpoint::default() };
    let register = RegisterEndpointRequest { endpoint: Some(endpoint), secret: String::new() };
    let endpoint_id =
        client.register_endpoint(register).await.expect("registered").into_inner().endpoint.expect("one").id;
    let refuse = "create function no_way_back() returns trigger language plpgsql as
                    'begin raise exception ''no way back''; end';
                  create trigger no_way_back before update on hooklane.outstanding for each row
                    when (new.attempt_count < old.attempt_count) execute function no_way_back()";
    sqlx::raw_sql(refuse).execute(&mut connection(&url).await).await.expect("a trigger");

    // The answer to the first lets two more be claimed, one of them ahead of the cap.
    client.pause_endpoint(PauseEndpointRequest { endpoint_id: endpoint_id.clone() }).await.expect("paused");
    let mut deliveries = Vec::new();
    for _ in 0..3 {
        deliveries.push(publish(&client, "order.created").await);
    }
    client.resume_endpoint(ResumeEndpointRequest { endpoint_id }).await.expect("resumed");
    let words = "claims were not handed back; their leases will lapse";
    let line = eventually("it is told", || async { saying(&replica, words).pop() }).await;
    assert_eq!((&line["claims"], &line["trace_ids"]), (&1.into(), &TRACE_ID.into()), "{line}");
    assert!(deliveries.iter().any(|id| line["deliveries"] == id.as_str()), "{line}");
}

#[tokio::test]
async fn a_database_that_goes_away_is_told_once() {
    let url = database().await;
    let (server, name) = url.rsplit_once('/').expect("a database's URL");
    let (name, options) = name.split_once('?').map_or((name, String::new()), |(name, rest)| (name, format!("?{rest}")));
    let replica = Replica::start(&url, &[("HOOKLANE_LOG_FORMAT", "json")]).await;
    let mut beside = connection(&format!("{server}/postgres{options}")).await;
    let away = format!(
        "alter database \"{name}\" allow_connections false;
         select pg_terminate_backend(pid) from pg_stat_activity where datname = '{name}';"
    );
    sqlx::raw_sql(sqlx::AssertSqlSafe(away)).execute(&mut beside).await.expect("away");
    let said = |words: &'static str| {
        let replica = &replica;
        move || async move { replica.log().contains(words).then_some(()) }
    };
    eventually("it is told", said("the database does not answer")).await;
    eventually("it is told", said("this replica claims nothing until it has joined the others again")).await;
    // Time for the chores to try and try again.
    tokio::time::sleep(std::time::Duration::from_secs(3)).await;
    let back = format!("alter database \"{name}\" allow_connections true");
    sqlx::raw_sql(sqlx::AssertSqlSafe(back)).execute(&mut beside).await.expect("back");
    eventually("it is told", said("the database answers again")).await;
    let log = replica.log();
    let told = log.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).expect("JSON"));
    let told: Vec<String> = told
        .filter(|line| line["level"] != "INFO")
        .map(|line| line["message"].as_str().expect("words").to_owned())
        .collect();
    assert_eq!(told.len(), 3, "{told:#?}");
}
