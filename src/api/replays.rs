//! StartReplay, GetReplay, ListReplays, CancelReplay and StreamReplay.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::{self, BoxStream};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::auth::Caller;
use super::connection::AGE_MAX;
use super::convert::{Violations, replay, sole};
use super::paging::{Binding, cut, page_size};
use super::service::Webhooks;
use super::{proto, status};
use crate::domain::id::ReplayId;
use crate::store::{Replay, ReplayState, Store};

/// How often a stream looks whether its replay has come further: it may be at work on another replica.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// What tonic sends.
pub(super) type ReplayStream = BoxStream<'static, Result<proto::StreamReplayResponse, Status>>;

impl Webhooks {
    /// Starts a replay.
    pub(super) async fn start(
        &self,
        caller: &Caller,
        request: proto::StartReplayRequest,
    ) -> Result<proto::StartReplayResponse, Status> {
        let mut v = Violations::new();
        let Some(new) = replay::from_proto(caller, &request, &mut v) else { return Err(v.into_status()) };
        let started = self.services.store.start_replay(&new).await.map_err(status::start_replay_refused)?;
        Ok(proto::StartReplayResponse { replay: Some(replay::to_proto(started)) })
    }

    /// One replay.
    pub(super) async fn replay(
        &self,
        caller: &Caller,
        request: proto::GetReplayRequest,
    ) -> Result<proto::GetReplayResponse, Status> {
        let id: ReplayId = sole("replay_id", request.replay_id.parse())?;
        let found = self.stored_replay(caller, id).await?;
        Ok(proto::GetReplayResponse { replay: Some(replay::to_proto(found)) })
    }

    /// A page of replays.
    pub(super) async fn list_replays_page(
        &self,
        caller: &Caller,
        request: proto::ListReplaysRequest,
    ) -> Result<proto::ListReplaysResponse, Status> {
        let binding = Binding::of("ListReplays").with(caller.meant(&request.tenant));
        let mut v = Violations::new();
        let tenant = caller.tenants("tenant", &request.tenant, &mut v);
        let limit = v.take("page_size", page_size(request.page_size));
        let before = v.take("page_token", binding.parse(&request.page_token));
        let (Some(tenant), Some(limit), Some(before)) = (tenant, limit, before) else { return Err(v.into_status()) };
        let before = before.map(ReplayId::from_uuid);
        let found = self.services.store.list_replays(tenant.as_ref(), before, limit + 1).await?;
        let (replays, end) = cut(found, None, limit, |one| one.id);
        Ok(proto::ListReplaysResponse {
            replays: replays.into_iter().map(replay::to_proto).collect(),
            next_page_token: end.map(|last| binding.token(last.uuid())).unwrap_or_default(),
        })
    }

    /// Ends a replay.
    pub(super) async fn cancel_replay_of(
        &self,
        caller: &Caller,
        request: proto::CancelReplayRequest,
    ) -> Result<proto::CancelReplayResponse, Status> {
        let id: ReplayId = sole("replay_id", request.replay_id.parse())?;
        self.stored_replay(caller, id).await?;
        let ended = self.services.store.cancel_replay(id).await?.ok_or_else(|| status::replay_not_found(id))?;
        Ok(proto::CancelReplayResponse { replay: Some(replay::to_proto(ended)) })
    }

    /// Opens a stream of a replay's progress: as it stands, whenever that changes, and to its end.
    pub(super) async fn stream_progress(
        &self,
        caller: &Caller,
        request: proto::StreamReplayRequest,
        finish_at: Option<Instant>,
    ) -> Result<ReplayStream, Status> {
        let id: ReplayId = sole("replay_id", request.replay_id.parse())?;
        let place = Arc::clone(&self.streams).try_acquire_owned().map_err(|_| status::too_many_streams())?;
        let first = self.stored_replay(caller, id).await?;
        let progress = Progress {
            known: first,
            is_told: false,
            store: Arc::clone(&self.services.store),
            shutdown: self.shutdown.clone(),
            finish_at: finish_at.unwrap_or_else(|| Instant::now() + AGE_MAX),
            _place: place,
        };
        Ok(progress.into_stream())
    }

    /// A replay, where it is there for this caller.
    async fn stored_replay(&self, caller: &Caller, id: ReplayId) -> Result<Replay, Status> {
        let found = self.services.store.replay(id).await?.filter(|replay| caller.owns(&replay.asked.filter.tenant));
        found.ok_or_else(|| status::replay_not_found(id))
    }
}

/// One open stream.
struct Progress {
    /// As it was told last.
    known: Replay,
    /// Whether it was told at all.
    is_told: bool,
    store: Arc<Store>,
    shutdown: CancellationToken,
    /// When the connection is asked to finish.
    finish_at: Instant,
    _place: OwnedSemaphorePermit,
}

impl Progress {
    fn into_stream(self) -> ReplayStream {
        stream::unfold(Some(self), |progress| async move {
            let mut progress = progress?;
            match progress.next().await {
                Ok(Some(replay)) => {
                    let message = proto::StreamReplayResponse { replay: Some(replay::to_proto(replay)) };
                    Some((Ok(message), Some(progress)))
                }
                Ok(None) => None,
                Err(refusal) => Some((Err(refusal), None)),
            }
        })
        .boxed()
    }

    /// The next thing to tell; `None` once the end was told.
    async fn next(&mut self) -> Result<Option<Replay>, Status> {
        if !self.is_told {
            self.is_told = true;
            return Ok(Some(self.known.clone()));
        }
        while self.known.state == ReplayState::Running {
            tokio::select! {
                biased;
                () = self.shutdown.cancelled() => return Err(status::draining()),
                () = sleep_until(self.finish_at) => return Err(status::reconnect()),
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
            let found =
                self.store.replay(self.known.id).await?.ok_or_else(|| status::replay_not_found(self.known.id))?;
            if found != self.known {
                self.known = found.clone();
                return Ok(Some(found));
            }
        }
        Ok(None)
    }
}
