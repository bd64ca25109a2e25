//! Which call is being answered: known to whatever runs in it, so that a failure inside is logged with it.

use tokio::task_local;

task_local! {
    static CALL: &'static str;
}

/// Answers a call of that name.
pub(super) async fn answering<F: Future>(name: &'static str, answer: F) -> F::Output {
    CALL.scope(name, answer).await
}

/// The name of the call that is being answered here; empty outside of any.
pub(super) fn call() -> &'static str {
    CALL.try_with(|name| *name).unwrap_or_default()
}
