//! `hooklane check-config` and `hooklane settings`.

use serde_json::Value;

use crate::program::run;

const DATABASE: (&str, &str) = ("DATABASE_URL", "postgres://u:s3cret@127.0.0.1:1/x");
const KEYS: (&str, &str) = ("HOOKLANE_ENCRYPTION_KEYS", "k1:AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=");

fn file(content: &str) -> (tempfile::NamedTempFile, String) {
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), content).expect("written");
    let path = file.path().to_str().expect("text").to_owned();
    (file, path)
}

#[tokio::test]
async fn good_settings_are_shown_with_where_they_come_from_and_without_secrets() {
    let (_file, path) =
        file("[egress]\nallow_cidrs = [\"10.20.0.0/16\", \"10.21.0.0/16\"]\n[log]\nfilter = \"debug\"\n");
    let check = ["check-config", "--config", &path, "--roles", "worker"];
    let variables = [DATABASE, KEYS, ("HOOKLANE_SHUTDOWN_GRACE", "5s")];
    let (code, shown, note) = run(&check, &variables).await;
    assert_eq!((code, note.as_str()), (Some(0), "hooklane: the settings are good\n"), "{shown}");
    for (setting, value, source) in [
        ("egress.allow_cidrs", "10.20.0.0/16,10.21.0.0/16", "egress.allow_cidrs in "),
        ("log.filter", "debug", path.as_str()),
        ("roles", "worker", "--roles"),
        ("shutdown.grace", "5s", "HOOKLANE_SHUTDOWN_GRACE"),
        ("database.url", "(a secret)", "DATABASE_URL"),
        ("encryption.keys", "(a secret)", "HOOKLANE_ENCRYPTION_KEYS"),
    ] {
        let line =
            shown.lines().find(|line| line.starts_with(setting)).unwrap_or_else(|| panic!("{setting} in {shown}"));
        assert!(line.contains(value) && line.contains(source), "{line}");
    }
    assert!(!shown.contains("s3cret") && !shown.contains("AQEB") && shown.lines().count() == 7, "{shown}");
    let (_, shown, _) = run(&[&check[..], &["--all", "--json"]].concat(), &variables).await;
    let shown: Vec<Value> = shown.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let auth = shown.iter().find(|one| one["key"] == "auth").expect("auth");
    assert_eq!((&auth["value"], &auth["source"]), (&"api-key".into(), &Value::Null));
    let url = shown.iter().find(|one| one["key"] == "database.url").expect("the URL");
    assert_eq!((&url["value"], &url["source"]), (&Value::Null, &"DATABASE_URL".into()));
    let (code, ..) = run(&["check-config", "--dev"], &[]).await;
    assert_eq!(code, Some(0), "dev needs no setting");
}

#[tokio::test]
async fn everything_that_would_stop_the_start_is_told_with_what_is_allowed() {
    let (_file, path) = file("[grpc]\nadr = \"127.0.0.1:1\"\n[limits]\npayload_bytes = 0\n");
    let bad = [("HOOKLANE_NO_SUCH", "1"), ("HOOKLANE_ROLES", "cook"), ("HOOKLANE_SHUTDOWN_GRACE", "5")];
    let (code, shown, error) = run(&["check-config", "--config", &path], &bad).await;
    assert_eq!((code, shown.as_str()), (Some(64), ""));
    for part in [
        "grpc.adr in ",
        "unknown setting",
        "limits.payload_bytes in ",
        "\"0\" is not a whole number from 1 to 67108864",
        "HOOKLANE_NO_SUCH: is an unknown setting",
        "HOOKLANE_ROLES: \"cook\" is not a list of roles; allowed are api, worker and api,worker",
        "HOOKLANE_SHUTDOWN_GRACE: \"5\" is not a span of time; allowed is such as 250ms",
        "DATABASE_URL: is not set",
        "HOOKLANE_ENCRYPTION_KEYS: is not set",
    ] {
        assert!(error.contains(part), "{part} in {error}");
    }
}

#[tokio::test]
async fn files_that_settings_name_are_looked_into() {
    let (_cert, cert) = file("no certificate");
    let (_key, key) = file("no key");
    let tls = [DATABASE, KEYS, ("HOOKLANE_TLS_CERT_FILE", &cert), ("HOOKLANE_TLS_KEY_FILE", &key)];
    let (code, _, error) = run(&["check-config"], &tls).await;
    assert!(code == Some(64) && error.contains(&cert) && error.contains("certificate in PEM"), "{error}");
    let (_url, url) = file("postgres://u:s3cret@127.0.0.1:1/x\n");
    let (code, shown, error) = run(&["check-config"], &[KEYS, ("DATABASE_URL_FILE", &url)]).await;
    assert!(code == Some(0) && shown.contains("DATABASE_URL_FILE") && !shown.contains("s3cret"), "{shown} {error}");
    let (code, _, error) = run(&["check-config"], &[DATABASE, KEYS, ("DATABASE_URL_FILE", &url)]).await;
    let both = "DATABASE_URL and DATABASE_URL_FILE are both set; leave one out";
    assert!(code == Some(64) && error.contains(both) && !error.contains("s3cret"), "{error}");
    let (code, _, error) = run(&["check-config"], &[("DATABASE_URL_FILE", "/nowhere")]).await;
    assert!(code == Some(64) && error.contains("DATABASE_URL_FILE") && error.contains("/nowhere"), "{error}");
    let (code, _, error) = run(&["check-config", "--database-url", "mysql://s3cret@x"], &[]).await;
    assert!(code == Some(64) && error.contains("--database-url: is no URL of PostgreSQL"), "{error}");
    assert!(!error.contains("s3cret"), "{error}");
}

#[tokio::test]
async fn the_reference_is_at_hand() {
    let (code, shown, error) = run(&["settings", "grpc.addr"], &[]).await;
    assert_eq!(code, Some(0), "{error}");
    for part in ["127.0.0.1:50051", "HOOKLANE_GRPC_ADDR", "--grpc-addr"] {
        assert!(shown.contains(part), "{part} in {shown}");
    }
    let (_, page, _) = run(&["settings", "--markdown"], &[]).await;
    assert_eq!(page, include_str!("../../../docs/settings.md"));
    let (code, _, error) = run(&["settings", "no_such"], &[]).await;
    assert!(code == Some(64) && error.contains("no_such"), "{error}");
}
