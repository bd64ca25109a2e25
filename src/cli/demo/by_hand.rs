//! What `--keep` adds: commands to paste into another terminal, with the addresses of this run.

use super::screen::{Paint, Screen};
use super::stage::Stage;
use super::watch::Watch;
use crate::cli::Failure;
use crate::domain::secret::Secret;

/// Says how to go on, then shows what happens until dropped.
pub(super) async fn go_on(stage: &Stage, watch: &mut Watch<'_>, screen: &Screen) -> Result<(), Failure> {
    explain(stage, screen)?;
    watch.go_on().await
}

fn explain(stage: &Stage, screen: &Screen) -> Result<(), Failure> {
    screen.heading("6", "Go on by hand", "in another terminal; what happens shows here; Ctrl-C ends")?;
    let hooklane = std::env::args().next().unwrap_or_else(|| "hooklane".to_owned());
    let secret = Secret::from_random(&rand::random());
    let call = |what: &str| format!("{hooklane} {what} --addr {}", stage.grpc_addr);
    let add = format!(
        "echo {} | {}",
        secret.expose(),
        call("endpoint add http://127.0.0.1:8080 --event-type 'order.*' --secret-file -"),
    );
    let steps = [
        ("Publish an event", call(r#"publish order.created '{"order": "A-1002"}'"#)),
        ("See the latest deliveries", call("delivery list --limit 3")),
        ("And the endpoints", call("endpoint list")),
        (
            "Run a receiver that fails now and then",
            format!("{hooklane} listen --fail-rate 0.5 --secret {}", secret.expose()),
        ),
        ("Register it", add),
        (
            "List what there is to call by gRPC",
            format!("grpcurl -plaintext {} describe hooklane.v1.WebhookService", stage.grpc_addr),
        ),
        ("Ask whether it is well", format!("curl http://{}/health", stage.ops_addr())),
    ];
    for (what, command) in steps {
        screen.line(&screen.paint(Paint::Dim, &format!("# {what}")))?;
        screen.line(&command)?;
    }
    screen.blank()
}
