//! The laws of the code map, read off the sources: who may use whom, where SQL, prost types and the HTTP client stand,
//! how large a file may be without saying why.

use std::fs;
use std::path::{Path, PathBuf};

/// Which modules each module may use, as ARCHITECTURE.md says.
const MAY_USE: &[(&str, &[&str])] = &[
    ("domain", &[]),
    ("telemetry", &["domain"]),
    ("store", &["domain", "telemetry"]),
    ("egress", &["domain", "telemetry"]),
    ("live", &["store", "domain", "telemetry"]),
    ("engine", &["store", "egress", "domain", "telemetry"]),
    // The egress for TestEndpoint alone: see `the_api_sends_test_requests_alone`.
    ("api", &["live", "store", "egress", "domain", "telemetry"]),
    ("ops", &["store", "domain", "telemetry"]),
];

/// Everything of ours that a module could use.
const MODULES: &[&str] =
    &["api", "app", "cli", "config", "domain", "egress", "engine", "live", "ops", "store", "telemetry"];

/// A file longer than this says why in its header, with the words "long because".
const LINES_MAX: usize = 400;

struct Source {
    path: PathBuf,
    module: String,
    text: String,
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("a readable folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let relative = path.strip_prefix(&root).expect("below src");
                let first = relative.components().next().expect("a name").as_os_str().to_string_lossy();
                let module = first.trim_end_matches(".rs").to_owned();
                let text = fs::read_to_string(&path).expect("readable");
                found.push(Source { path: relative.to_owned(), module, text });
            }
        }
    }
    assert!(found.len() > 40, "the sources were found");
    found
}

/// The file without comments and its tests.
fn code(source: &Source) -> String {
    let lines = source.text.lines().take_while(|line| !line.starts_with("#[cfg(test)]"));
    lines.map(|line| line.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n")
}

#[test]
fn modules_use_only_whom_they_may() {
    for source in sources() {
        let Some((_, allowed)) = MAY_USE.iter().find(|(module, _)| *module == source.module) else { continue };
        let code = code(&source);
        for module in MODULES.iter().filter(|module| **module != source.module && !allowed.contains(module)) {
            let is_used = [format!("crate::{module}::"), format!("crate::{module};"), format!("crate::{{{module}")]
                .iter()
                .any(|usage| code.contains(usage.as_str()));
            assert!(!is_used, "{} uses {module}, which {} may not", source.path.display(), source.module);
        }
        for grouped in code.split("use crate::{").skip(1) {
            let names = grouped.split(';').next().unwrap_or_default();
            for module in MODULES.iter().filter(|module| **module != source.module && !allowed.contains(module)) {
                let is_named = names.split(|c: char| !c.is_alphanumeric() && c != '_').any(|name| name == *module);
                assert!(!is_named, "{} uses {module}, which {} may not", source.path.display(), source.module);
            }
        }
    }
}

#[test]
fn sql_stands_in_the_store_alone() {
    // A server of one's own must be made before a store can be; the bench measures bare SQL beside the service.
    let exempt = ["cli/postgres", "cli/bench"];
    for source in sources().iter().filter(|source| source.module != "store") {
        if exempt.iter().any(|folder| source.path.starts_with(folder)) {
            continue;
        }
        assert!(!code(source).contains("sqlx::"), "{} speaks SQL", source.path.display());
    }
}

#[test]
fn prost_types_stand_in_the_api_and_its_clients_alone() {
    for source in sources().iter().filter(|source| !["api", "cli"].contains(&source.module.as_str())) {
        // Traces are sent by gRPC, too.
        if source.path.ends_with("telemetry/traces/export.rs") {
            continue;
        }
        let code = code(source);
        for usage in ["prost", "tonic", "proto::"] {
            assert!(!code.contains(usage), "{} uses {usage}", source.path.display());
        }
    }
}

#[test]
fn the_http_client_stands_in_the_egress_alone() {
    // The bench compares with a bare client of its own; the receiver's tests send to it as a stranger would.
    // Traces go to the operator's own collector.
    let exempt = ["egress", "cli/bench", "cli/listen/tests.rs", "telemetry/traces/export.rs"];
    for source in sources().iter().filter(|source| !exempt.iter().any(|place| source.path.starts_with(place))) {
        let code = code(source);
        for usage in ["client::legacy", "hyper::client", "hyper_rustls"] {
            assert!(!code.contains(usage), "{} opens connections of its own", source.path.display());
        }
    }
}

#[test]
fn the_api_sends_test_requests_alone() {
    for source in sources().iter().filter(|source| source.module == "api") {
        let is_allowed = ["api/testing.rs", "api/server.rs"].iter().any(|place| source.path.ends_with(place));
        assert!(is_allowed || !code(source).contains("egress::"), "{} sends past the engine", source.path.display());
    }
}

#[test]
fn every_file_says_what_lives_in_it() {
    for source in sources() {
        let header = source.text.lines().take_while(|line| line.starts_with("//!")).count();
        assert!((1..=12).contains(&header), "{} begins with {header} lines of //!", source.path.display());
    }
}

#[test]
fn long_files_say_why() {
    for source in sources() {
        let lines = source.text.lines().count();
        let header: String = source.text.lines().take_while(|line| line.starts_with("//!")).collect();
        assert!(lines <= LINES_MAX || header.contains("long because"), "{} has {lines} lines", source.path.display());
    }
}

#[test]
fn no_bucket_modules() {
    for source in sources() {
        for part in source.path.components() {
            let name = part.as_os_str().to_string_lossy();
            let name = name.trim_end_matches(".rs");
            assert!(!["util", "utils", "common", "helpers", "misc"].contains(&name), "{}", source.path.display());
        }
    }
}
