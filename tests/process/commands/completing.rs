//! Shell completions, by the shells that read them.

use tokio::process::Command;

use crate::program::run;

/// Completes the last word of a line as bash does.
const COMPLETE: &str = r#"
source <("$0" completions bash)
complete_at() {
    COMP_WORDS=(hooklane "$@")
    COMP_CWORD=$#
    COMPREPLY=()
    _hooklane hooklane "${@: -1}" "${COMP_WORDS[$(($# - 1))]}"
    echo "${COMPREPLY[@]}"
}
complete_at endp
complete_at endpoint ro
complete_at endpoint add --fil
complete_at publish --priority h
"#;

#[tokio::test]
async fn shells_complete_commands_flags_and_values() {
    for shell in ["zsh", "fish"] {
        let (code, script, error) = run(&["completions", shell], &[]).await;
        assert!(code == Some(0) && script.contains("endpoint") && script.contains("max-in-flight"), "{shell}: {error}");
    }
    let mut bash = Command::new("/bin/bash");
    let output = bash.args(["-c", COMPLETE, env!("CARGO_BIN_EXE_hooklane")]).output().await.expect("bash");
    let (completed, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(completed, "endpoint\nrotate\n--filter\nhigh\n", "{errors}");
}
