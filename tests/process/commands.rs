//! The command line for people, as programs of their own against a running service: what they do, print and exit with.

mod alerting;
mod calling;
mod checking;
mod completing;
mod delivering;
mod refusing;
mod tailing;
mod topping;

use hooklane::cli::listen::{Behaviour, Receiver, ReceiverOptions};
use serde_json::Value;

use crate::program::{Replica, run};
use crate::support::{self, eventually};

/// A service, and commands that call it.
struct Stage {
    replica: Replica,
    url: String,
}

impl Stage {
    async fn set(settings: &[(&str, &str)]) -> Self {
        let url = support::database().await;
        let replica = Replica::start(&url, settings).await;
        Self { replica, url }
    }

    fn addr(&self) -> &str {
        self.replica.grpc.trim_start_matches("http://")
    }

    /// Runs `hooklane …` on the service: exit code, standard output, standard error.
    async fn run(&self, arguments: &[&str]) -> (Option<i32>, String, String) {
        run(arguments, &[("HOOKLANE_GRPC_ADDR", self.addr())]).await
    }

    /// The same where all has to go well: standard output.
    async fn done(&self, arguments: &[&str]) -> String {
        let (code, output, error) = self.run(arguments).await;
        assert_eq!(code, Some(0), "{arguments:?}\n{output}\n{error}");
        assert!(!output.contains('\x1b'), "escape codes in a pipe: {output:?}");
        output
    }

    /// The same with `--json`: every line.
    async fn json(&self, arguments: &[&str]) -> Vec<Value> {
        let output = self.done(&[arguments, &["--json"]].concat()).await;
        output.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
    }

    /// Registers an endpoint with these flags; answers its id.
    async fn add(&self, url: &str, flags: &[&str]) -> String {
        let added = self.json(&[&["endpoint", "add", url], flags].concat()).await;
        added[0]["endpoint"]["id"].as_str().expect("an id").to_owned()
    }

    /// Publishes an event that one endpoint wants; answers the delivery's id.
    async fn publish(&self, event_type: &str) -> String {
        let published = self.json(&["publish", event_type, "{\"n\":1}"]).await;
        published[0]["deliveries"][0]["deliveryId"].as_str().expect("a delivery").to_owned()
    }

    /// Waits until a delivery is in that state; answers it.
    async fn reaches(&self, delivery: &str, state: &str) -> Value {
        eventually(&format!("{delivery} is {state}"), || async {
            let shown = self.json(&["delivery", "show", delivery]).await.remove(0);
            (shown["state"] == format!("DELIVERY_STATE_{state}")).then_some(shown)
        })
        .await
    }
}

/// A receiver that behaves so and checks no signature.
pub(crate) async fn receiver(behaviour: Behaviour) -> Receiver {
    Receiver::start(ReceiverOptions { behaviour, ..ReceiverOptions::default() }).await.expect("a receiver")
}

/// What stands behind a name in a list of fields.
fn field<'a>(output: &'a str, name: &str) -> &'a str {
    let line = output.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("{name} in {output}"));
    line[name.len()..].trim()
}

/// The words of a table's row that begins with `first`.
fn row<'a>(output: &'a str, first: &str) -> Vec<&'a str> {
    let line = output.lines().find(|line| line.starts_with(first)).unwrap_or_else(|| panic!("{first} in {output}"));
    line.split_whitespace().collect()
}
