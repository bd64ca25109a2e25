//! `hooklane demo` as a new user runs it, into a pipe: it ends by itself, and what it is to show is on the page.

use std::process::{Command, Output};

fn demo() -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hooklane"));
    // Nothing but a path to look for programs on; what is set for another service must not matter.
    let path = std::env::var_os("PATH").unwrap_or_default();
    command.arg("demo").env_clear().env("PATH", path);
    command.env("DATABASE_URL", "postgres://nobody@127.0.0.1:1/nothing").env("HOOKLANE_AUTH", "mtls");
    if let Some(directory) = std::env::var_os("HOOKLANE_POSTGRES_BIN") {
        command.env("HOOKLANE_POSTGRES_BIN", directory);
    }
    command.output().expect("the program runs")
}

/// The words of the first line that begins with `first`.
fn row<'a>(text: &'a str, first: &str) -> Vec<&'a str> {
    let rows = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    rows.into_iter().find(|words| words.first() == Some(&first)).unwrap_or_default()
}

#[test]
fn the_demo_ends_by_itself_and_shows_what_it_promises() {
    let output = demo();
    let text = String::from_utf8(output.stdout).expect("text");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}\n{text}\n{errors}", output.status);
    assert!(!text.contains('\x1b') && !errors.contains('\x1b'), "escape codes in a pipe:\n{text}");
    assert_eq!(errors, "", "a demo that goes well has nothing to warn of");

    let count = |part: &str| text.lines().filter(|line| line.contains(part)).count();
    assert_eq!(count(" publish "), 6, "{text}");
    assert_eq!(count("duplicate of"), 1, "{text}");
    assert_eq!(count("no endpoint wants it"), 1, "{text}");
    assert_eq!(count("QUEUED"), 7, "{text}");
    assert_eq!(count("ATTEMPT_FAILED attempt 1: 503, next in 0."), 3, "{text}");
    assert_eq!(count("ATTEMPT_FAILED attempt 2: 503, next in "), 3, "{text}");
    // Retries at the receiver, signed anew each.
    assert_eq!(count("attempt 3, signature ok, answered 200"), 3, "{text}");

    let summary = text.split("4. ").nth(1).expect("a summary");
    assert_eq!(row(summary, "steady"), ["steady", "4", "4", "0", "4", "4", "of", "4"], "{text}");
    assert_eq!(row(summary, "flaky"), ["flaky", "3", "9", "3", "3", "9", "of", "9"], "{text}");
    let history = text.split("5. ").nth(1).expect("a history");
    assert!(history.contains("SUCCEEDED after 3 attempts"), "{text}");
    assert!(row(history, "2").contains(&"503") && row(history, "3").contains(&"200"), "{text}");
}
