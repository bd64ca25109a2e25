//! Starting: what is refused, and what several at once do to an empty database.

use crate::load::Client;
use crate::program::{Replica, SERVE, run};
use crate::support;

/// Nothing listens there: port 1 is nobody's on loopback, and refused at once.
const NOWHERE: (&str, &str) = ("DATABASE_URL", "postgres://hooklane@127.0.0.1:1/hooklane");

/// A database of this name with nothing in it.
async fn empty_database(name: &str) -> String {
    let postgres = support::postgres().await;
    postgres.create_database(name).await.expect("created");
    postgres.url(name)
}

#[tokio::test]
async fn it_does_not_start_open_to_everybody_unless_told_so() {
    const PLAIN: (&str, &str) = ("HOOKLANE_ENCRYPTION_PLAINTEXT", "true");
    let outside = [NOWHERE, ("HOOKLANE_AUTH", "none"), ("HOOKLANE_GRPC_ADDR", "0.0.0.0:0"), PLAIN];
    let (code, output, error) = run(&["serve"], &outside).await;
    assert_eq!((code, output.as_str()), (Some(64), ""));
    for part in ["HOOKLANE_AUTH", "0.0.0.0:0", "loopback", "--insecure"] {
        assert!(error.contains(part), "{part} in {error}");
    }
    // Then it gets as far as the database, which is not there.
    for (arguments, settings) in
        [(&["serve", "--insecure"][..], &outside[..]), (&["serve"], &[NOWHERE, outside[2], PLAIN])]
    {
        let (code, _, error) = run(arguments, settings).await;
        assert_eq!(code, Some(69), "{error}");
    }
}

#[tokio::test]
async fn keys_are_made_listed_and_revoked_from_the_command_line() {
    let url = empty_database("keys").await;
    let settings = [("DATABASE_URL", url.as_str())];
    let create = ["key", "create", "--name", "shop", "--role", "publisher", "--tenant", "shop", "--expires", "90d"];
    let (code, key, error) = run(&create, &settings).await;
    assert!(code == Some(0) && key.starts_with("hlk_") && key.lines().count() == 1, "{error}");
    let id = error.split_whitespace().find(|word| word.starts_with("key_")).expect("an id").to_owned();
    let list = async |more: &[&str]| {
        let (code, output, error) = run(&[&["key", "list"], more].concat(), &settings).await;
        assert_eq!(code, Some(0), "{error}");
        output
    };
    let table = list(&[]).await;
    let row = table.lines().nth(1).expect("a row");
    for part in [id.as_str(), "shop", "publisher", "live", "never"] {
        assert!(row.contains(part), "{part} in {table}");
    }
    let shown: serde_json::Value = serde_json::from_str(&list(&["--json"]).await).expect("JSON");
    assert_eq!((&shown["id"], &shown["state"]), (&id.as_str().into(), &"live".into()));
    let (code, output, _) = run(&["key", "revoke", &id], &settings).await;
    assert_eq!((code, output), (Some(0), format!("{id} is revoked\n")));
    assert_eq!(list(&[]).await, "", "live ones alone");
    assert!(list(&["--all"]).await.contains("revoked"));
    for (arguments, expected) in [
        (&["key", "revoke", "key_01h455vb4pex5vsknk084sn02q"][..], 1),
        (&["key", "revoke", "shop"], 64),
        (&["key", "create", "--name", "x", "--role", "king", "--all-tenants"], 64),
        (&["key", "create", "--name", "x", "--role", "admin"], 64),
        (&["key", "create", "--name", "x", "--role", "admin", "--tenant", "a", "--all-tenants"], 64),
    ] {
        let (code, output, error) = run(arguments, &settings).await;
        assert_eq!((code, output.as_str()), (Some(expected), ""), "{arguments:?} {error}");
    }
}

#[tokio::test]
async fn every_unknown_setting_and_bad_value_is_told_at_once() {
    let bad = [
        NOWHERE,
        ("HOOKLANE_AUTH", "none"),
        ("HOOKLANE_NO_SUCH", "1"),
        ("HOOKLANE_ROLES", "cook"),
        ("HOOKLANE_RETENTION_FAILED", "1d"),
    ];
    for command in ["serve", "dev", "migrate"] {
        let (code, _, error) = run(&[command], &bad).await;
        assert_eq!(code, Some(64), "{command}: {error}");
        for name in ["HOOKLANE_NO_SUCH", "HOOKLANE_ROLES", "HOOKLANE_RETENTION_FAILED"] {
            assert!(error.contains(name), "{command}: {error}");
        }
    }
}

#[tokio::test]
async fn without_a_database_it_says_so() {
    let settings = [SERVE, &[NOWHERE]].concat();
    for command in ["serve", "migrate"] {
        let (code, output, error) = run(&[command], &settings).await;
        assert_eq!((code, output.as_str()), (Some(69), ""), "{command}: {error}");
        assert!(!error.is_empty());
    }
    let (code, _, error) = run(&["serve"], SERVE).await;
    assert!(code == Some(64) && error.contains("DATABASE_URL"), "{error}");
    let secret = [SERVE, &[("DATABASE_URL", "postgres://u:s3cret@127.0.0.1:1/x")]].concat();
    let (code, output, error) = run(&["serve"], &secret).await;
    assert!(code == Some(69) && !output.contains("s3cret") && !error.contains("s3cret"), "{error}");
}

#[tokio::test]
async fn health_asks_a_replica_whether_it_is_ready() {
    let url = support::database().await;
    let mut replica = Replica::start(&url, &[]).await;
    let ops = replica.ops.to_string();
    let (code, output, error) = run(&["health", "--ops-addr", &ops], &[]).await;
    assert_eq!((code, output.as_str()), (Some(0), "ok\n"), "{error}");
    // As in a container, where it finds the port in its environment.
    let everywhere = format!("0.0.0.0:{}", replica.ops.port());
    let (code, ..) = run(&["health"], &[("HOOKLANE_OPS_ADDR", &everywhere)]).await;
    assert_eq!(code, Some(0));
    let grpc = replica.grpc.trim_start_matches("http://").to_owned();
    let (code, _, error) = run(&["health", "--ops-addr", &grpc], &[]).await;
    assert!(code == Some(75) && error.contains("does not answer as"), "{error}");
    replica.signal("TERM").await;
    replica.ended().await;
    let (code, output, error) = run(&["health", "--ops-addr", &ops], &[]).await;
    assert!(code == Some(75) && output.is_empty() && error.contains(&ops), "{error}");
}

#[tokio::test]
async fn an_address_in_use_is_told() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("binds");
    let address = taken.local_addr().expect("bound").to_string();
    let url = support::database().await;
    let settings = [SERVE, &[("DATABASE_URL", url.as_str()), ("HOOKLANE_GRPC_ADDR", address.as_str())]].concat();
    let (code, _, error) = run(&["serve"], &settings).await;
    assert!(code == Some(64) && error.contains(&address), "{code:?} {error}");
}

#[tokio::test]
async fn replicas_that_start_at_once_on_an_empty_database_all_get_ready() {
    let url = empty_database("many").await;
    let migrating = async {
        let (code, output, error) = run(&["migrate"], &[("DATABASE_URL", &url)]).await;
        assert_eq!(code, Some(0), "{output} {error}");
    };
    let (mut one, mut other, third, ()) = tokio::join!(
        Replica::start(&url, &[]),
        Replica::start(&url, &[]),
        Replica::start(&url, &[("HOOKLANE_ROLES", "api")]),
        migrating
    );
    for replica in [&one, &other, &third] {
        assert_eq!((replica.look("/livez").await, replica.look("/readyz").await), (Some(200), Some(200)));
        Client::connect(replica.grpc.clone()).await.expect("connects");
    }
    drop(third);
    for replica in [&mut one, &mut other] {
        replica.signal("TERM").await;
        assert_eq!(replica.ended().await.code(), Some(0));
        let log = replica.log();
        assert!(!log.contains("ERROR"), "{log}");
    }
}

#[tokio::test]
async fn migrating_again_changes_nothing() {
    let url = empty_database("again").await;
    for _ in 0..2 {
        let (code, output, error) = run(&["migrate", "--database-url", &url], &[]).await;
        assert_eq!((code, output.as_str()), (Some(0), "the schema is up to date\n"), "{error}");
    }
}
