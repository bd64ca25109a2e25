//! How commands call: keys from flags, files and the environment; TLS; certificates of their own.

use rcgen::string::Ia5String;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType};

use super::Stage;
use crate::program::run;

#[tokio::test]
async fn keys_come_from_flags_files_and_the_environment() {
    let stage = Stage::set(&[("HOOKLANE_AUTH", "api-key")]).await;
    let (code, _, error) = stage.run(&["endpoint", "list"]).await;
    assert!(code == Some(1) && error.contains("CREDENTIAL_MISSING") && error.contains("HOOKLANE_API_KEY"), "{error}");
    let create = ["key", "create", "--name", "ops", "--role", "operator", "--all-tenants"];
    let (_, key, _) = run(&create, &[("DATABASE_URL", &stage.url)]).await;
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), &key).expect("written");
    let path = file.path().to_str().expect("text");
    let addr = ("HOOKLANE_GRPC_ADDR", stage.addr());
    for (flags, variables) in [
        (&["--api-key", key.trim()][..], &[addr][..]),
        (&["--api-key-file", path], &[addr]),
        (&[], &[addr, ("HOOKLANE_API_KEY", key.trim())]),
        (&[], &[addr, ("HOOKLANE_API_KEY_FILE", path)]),
        (&["--api-key-file", path], &[addr, ("HOOKLANE_API_KEY", "hlk_of_another_service")]),
    ] {
        for command in [&["endpoint", "list"][..], &["stats"], &["replay", "--dry-run"], &["dlq", "list"]] {
            let (code, output, error) = run(&[command, flags].concat(), variables).await;
            assert_eq!(code, Some(0), "{command:?} {flags:?} {output} {error}");
        }
    }
    let (code, _, error) = stage.run(&["endpoint", "list", "--api-key", "hlk_unknown"]).await;
    assert!(code == Some(1) && error.contains("CREDENTIAL_INVALID"), "{error}");
    let (code, _, error) = stage.run(&["endpoint", "add", "http://127.0.0.1:1", "--api-key-file", path]).await;
    assert!(code == Some(1) && error.contains("ROLE_REQUIRED") && error.contains("admin"), "{error}");
    let (code, _, error) = stage.run(&["stats", "--api-key-file", "/nowhere"]).await;
    assert!(code == Some(64) && error.contains("/nowhere"), "{error}");
}

#[tokio::test]
async fn health_asks_the_grpc_port_without_a_key() {
    let stage = Stage::set(&[("HOOKLANE_AUTH", "api-key")]).await;
    assert_eq!(stage.done(&["health", "--grpc"]).await, "ok\n");
}

/// Certificates of one authority, as files.
struct Files {
    folder: tempfile::TempDir,
}

impl Files {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("parameters");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("a CA");
        let files = Self { folder: tempfile::tempdir().expect("a folder") };
        files.write("ca", &issuer.pem());
        let text = |text: &str| Ia5String::try_from(text).expect("ASCII");
        for (name, known_as) in [("server", "hooks.example"), ("client", "ops.example"), ("expired", "hooks.example")] {
            let mut params = CertificateParams::new(Vec::new()).expect("parameters");
            params.subject_alt_names = vec![SanType::DnsName(text(known_as))];
            if name == "expired" {
                params.not_after = rcgen::date_time_ymd(2020, 1, 1);
            }
            let key = KeyPair::generate().expect("a key");
            files.write(name, &params.signed_by(&key, &issuer).expect("signed").pem());
            files.write(&format!("{name}-key"), &key.serialize_pem());
        }
        files
    }

    fn write(&self, name: &str, content: &str) {
        std::fs::write(self.path(name), content).expect("written");
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_string_lossy().into_owned()
    }
}

#[tokio::test]
async fn commands_speak_tls_and_trust_whom_they_are_told_to() {
    let files = Files::new();
    let (cert, key, ca) = (files.path("server"), files.path("server-key"), files.path("ca"));
    let stage = Stage::set(&[("HOOKLANE_TLS_CERT_FILE", &cert), ("HOOKLANE_TLS_KEY_FILE", &key)]).await;
    let name = ["--tls-name", "hooks.example"];
    let list = ["endpoint", "list"];
    stage.done(&[&list[..], &["--ca-file", &ca], &name].concat()).await;
    assert_eq!(stage.done(&[&["health", "--grpc", "--ca-file", &ca][..], &name].concat()).await, "ok\n");
    let https = format!("https://{}", stage.addr());
    let (code, _, error) =
        run(&[&list[..], &name].concat(), &[("HOOKLANE_GRPC_ADDR", &https), ("HOOKLANE_CA_FILE", &ca)]).await;
    assert_eq!(code, Some(0), "{error}");
    // Trusted by nobody here; of another name; and plain text, which the service does not speak.
    for (flags, part) in [
        (&["--tls", "--tls-name", "hooks.example"][..], "UnknownIssuer"),
        (&["--ca-file", &ca, "--tls-name", "other.example"], "other.example"),
        (&[], "cannot be reached"),
    ] {
        let (code, _, error) = stage.run(&[&list[..], flags].concat()).await;
        assert!(code == Some(69) && error.contains(part), "{code:?} {error}");
    }
}

#[tokio::test]
async fn a_certificate_that_has_expired_is_told() {
    let files = Files::new();
    let (cert, key, ca) = (files.path("expired"), files.path("expired-key"), files.path("ca"));
    let stage = Stage::set(&[("HOOKLANE_TLS_CERT_FILE", &cert), ("HOOKLANE_TLS_KEY_FILE", &key)]).await;
    let (code, _, error) = stage.run(&["health", "--grpc", "--ca-file", &ca, "--tls-name", "hooks.example"]).await;
    assert!(code == Some(75) && error.contains("certificate expired"), "{code:?} {error}");
}

#[tokio::test]
async fn commands_show_a_certificate_of_their_own() {
    let files = Files::new();
    let path = |name: &str| files.path(name);
    let (cert, key, ca) = (path("server"), path("server-key"), path("ca"));
    let stage = Stage::set(&[
        ("HOOKLANE_AUTH", "mtls"),
        ("HOOKLANE_TLS_CERT_FILE", &cert),
        ("HOOKLANE_TLS_KEY_FILE", &key),
        ("HOOKLANE_TLS_CLIENT_CA_FILE", &ca),
        ("HOOKLANE_TLS_CLIENTS", "dns:ops.example viewer *"),
    ])
    .await;
    let (own, own_key) = (path("client"), path("client-key"));
    let trust = ["--ca-file", &ca, "--tls-name", "hooks.example"];
    let shown = [&trust[..], &["--client-cert-file", &own, "--client-key-file", &own_key]].concat();
    stage.done(&[&["endpoint", "list"][..], &shown].concat()).await;
    let (code, _, error) = stage.run(&[&["endpoint", "add", "http://127.0.0.1:1"][..], &shown].concat()).await;
    assert!(code == Some(1) && error.contains("ROLE_REQUIRED"), "{error}");
    let (code, ..) = stage.run(&[&["endpoint", "list"][..], &trust].concat()).await;
    assert_eq!(code, Some(69), "no certificate, no connection");
    let (code, _, error) =
        stage.run(&[&["endpoint", "list"][..], &trust, &["--client-cert-file", &own]].concat()).await;
    assert!(code == Some(64) && error.contains("--client-key-file"), "{error}");
}
