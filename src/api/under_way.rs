//! Which call is being answered: known to whatever runs in it, so that a failure inside is logged with it.

use tokio::task_local;

use crate::domain::trace::TraceId;

/// A call that is being answered.
#[derive(Debug, Clone, Copy)]
pub(super) struct UnderWay {
    /// Its name.
    pub(super) name: &'static str,
    /// The trace that it belongs to, recorded here or by its caller; `None` of one that belongs to none.
    pub(super) trace_id: Option<TraceId>,
}

task_local! {
    static CALL: UnderWay;
}

impl UnderWay {
    /// Answers the call.
    pub(super) async fn answering<F: Future>(self, answer: F) -> F::Output {
        CALL.scope(self, answer).await
    }

    /// Goes on with its answer, which follows piece by piece.
    pub(super) fn going_on<T>(self, go_on: impl FnOnce() -> T) -> T {
        CALL.sync_scope(self, go_on)
    }
}

/// The name of the call that is being answered here; empty outside of any.
pub(super) fn call() -> &'static str {
    CALL.try_with(|call| call.name).unwrap_or_default()
}

/// Its trace, as a field of a line; outside of any the line has none.
pub(super) fn trace_id() -> Option<tracing::field::DisplayValue<TraceId>> {
    CALL.try_with(|call| call.trace_id).ok().flatten().map(tracing::field::display)
}
