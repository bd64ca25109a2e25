//! The loop that keeps this replica among the others: beats, learns who is there, passes lanes on, tells and hears.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::standing::{Next, Standing};
use super::telling::Telling;
use super::{Handover, Resigning, Tenure, View};
use crate::domain::rendezvous::Driver;
use crate::engine::sleep_until;
use crate::store::{self, DEAD_AFTER, Note, Replica, Roles, Session, Store, Work};

/// Between two heartbeats.
const BEAT_EVERY: Duration = Duration::from_secs(2);
/// While others are waited for.
const BEAT_SOON: Duration = Duration::from_millis(200);
/// Between two heartbeats at least, however often somebody asks for one.
const BEAT_GAP: Duration = Duration::from_millis(10);
/// Deeds gathered into a note that is about to go out.
const DEEDS_MAX: usize = 256;
/// The wait after a stay that ended by a fault, doubled up to two seconds while stays are short.
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(2);
/// How long claims under way may hold up a new stay: their statements have ended by then, or never will.
const SETTLE_MAX: Duration = Duration::from_secs(5);

/// Why a stay ended.
#[derive(Debug, thiserror::Error)]
enum Lost {
    /// The others have given this replica up.
    #[error("the others found this replica dead")]
    Removed,
    /// There is no room for another row.
    #[error("there are too many replicas on this database")]
    TooMany,
    /// The session failed.
    #[error(transparent)]
    Session(#[from] store::Error),
}

/// This replica.
#[derive(Debug)]
pub(super) struct Member {
    store: Arc<Store>,
    roles: Roles,
    handovers: mpsc::Sender<Handover>,
    tenure: Arc<Tenure>,
    resigning: Resigning,
    /// As the engine was told last.
    view: View,
    /// While it has not caught up with that.
    settling: Option<oneshot::Receiver<()>>,
    /// Whom this replica reckons with for certain.
    sees: Vec<Uuid>,
}

/// One stay among the others.
struct Stay {
    session: Session,
    standing: Standing,
    telling: Telling,
    /// As of the last heartbeat.
    others: Vec<Replica>,
    /// Whether the others were told that it drives.
    told_drives: bool,
    /// Who was told that it reckons with them.
    answered: Vec<Uuid>,
    beaten_at: Instant,
    beat_at: Instant,
}

impl Member {
    pub(super) fn new(
        store: Arc<Store>,
        roles: Roles,
        handovers: mpsc::Sender<Handover>,
        tenure: Arc<Tenure>,
        resigning: Resigning,
    ) -> Self {
        Self { store, roles, handovers, tenure, resigning, view: View::default(), settling: None, sees: Vec::new() }
    }

    /// Stays until `end`, again and again where a stay is lost.
    pub(super) async fn run(mut self, end: CancellationToken) {
        let mut earlier = None;
        let mut wait = RETRY_FIRST;
        // What was told of the present absence: whether claims have ended.
        let mut told = None;
        while !end.is_cancelled() {
            let joined = tokio::select! {
                joined = self.join(&mut earlier) => joined,
                () = end.cancelled() => return,
            };
            let began = Instant::now();
            let lost = match joined {
                Ok(stay) => {
                    told = None;
                    match self.stay(stay, &end).await {
                        Ok(()) => return,
                        Err(lost) => lost,
                    }
                }
                Err(lost) => lost,
            };
            if began.elapsed() > DEAD_AFTER {
                wait = RETRY_FIRST;
            }
            let claims_nothing = self.roles.worker && !self.tenure.holds_at(Instant::now());
            match claims_nothing {
                _ if told == Some(claims_nothing) => {
                    tracing::debug!(%lost, "this replica could not join the others yet")
                }
                true => tracing::warn!(%lost, "this replica claims nothing until it has joined the others again"),
                false => tracing::info!(%lost, "this replica joins the others again"),
            }
            told = Some(claims_nothing);
            let _ = tokio::time::timeout(wait, end.cancelled()).await;
            wait = (wait * 2).min(RETRY_MAX);
        }
    }

    /// Joins the others as somebody new, in place of an `earlier` stay.
    async fn join(&mut self, earlier: &mut Option<Uuid>) -> Result<Stay, Lost> {
        // While there is no connection to be had, the earlier stay goes on for as long as its tenure.
        let mut session = self.store.session().await?;
        self.let_go().await;
        if !self.store.join(&mut session, self.roles, *earlier).await? {
            return Err(Lost::TooMany);
        }
        let me = session.id();
        *earlier = Some(me);
        self.store.claim_as(me);
        session.tell(&Note::Members { to: None }).await?;
        // What was told while nobody listened here.
        self.look_at_everything();
        let now = Instant::now();
        Ok(Stay {
            session,
            standing: Standing::new(me, self.roles.worker && !self.resigning.asked.is_cancelled()),
            telling: Telling::new(now),
            others: Vec::new(),
            told_drives: false,
            answered: vec![me],
            beaten_at: now,
            beat_at: now,
        })
    }

    fn look_at_everything(&self) {
        self.store.take_in(&Work { is_more: true, is_grown: true, ..Work::default() });
    }

    async fn stay(&mut self, mut stay: Stay, end: &CancellationToken) -> Result<(), Lost> {
        let resign = self.resigning.asked.clone();
        let mut has_resigned = false;
        loop {
            let tell_at = stay.telling.tell_at();
            tokio::select! {
                biased;
                () = end.cancelled() => break,
                () = tokio::time::sleep_until(stay.beat_at.into()) => self.beat(&mut stay).await?,
                () = settled(&mut self.settling) => {
                    self.settling = None;
                    self.sees = self.view.ids();
                    stay.beat_at = Instant::now();
                }
                () = resign.cancelled(), if !has_resigned => {
                    has_resigned = true;
                    self.resign(&mut stay).await?;
                }
                () = sleep_until(tell_at) => {
                    for deed in std::iter::from_fn(|| stay.telling.try_next()).take(DEEDS_MAX).collect::<Vec<_>>() {
                        stay.telling.gather(deed, &self.view, self.store.clock().now());
                    }
                    let work = stay.telling.take(Instant::now());
                    stay.session.tell(&Note::Work(work)).await?;
                }
                note = stay.session.heard() => match note? {
                    Note::Work(work) => self.store.take_in(&work),
                    Note::Members { to } if to.is_none_or(|to| to == stay.session.id()) => {
                        stay.beat_at = stay.beat_at.min(stay.beaten_at + BEAT_GAP);
                    }
                    Note::Members { .. } => {}
                },
                deed = stay.telling.next() => stay.telling.gather(deed, &self.view, self.store.clock().now()),
            }
        }
        if let Err(error) = stay.session.leave().await {
            tracing::info!(%error, "the others were not told that this replica left; they will find out");
        }
        Ok(())
    }

    /// One heartbeat, and what follows from what it finds.
    async fn beat(&mut self, stay: &mut Stay) -> Result<(), Lost> {
        let me = stay.session.id();
        let said = (stay.standing.drives(), self.sees.clone());
        let sent_at = Instant::now();
        let roll = stay.session.beat(said.0, &said.1).await?;
        if !roll.here.iter().any(|one| one.id == me) {
            return Err(Lost::Removed);
        }
        let had_ended = !self.tenure.holds_at(sent_at);
        self.tenure.extend(sent_at);
        if had_ended {
            self.look_at_everything();
        }
        for gone in roll.removed {
            tracing::info!(replica = gone.name, "a replica is gone; its lanes go on elsewhere");
        }
        stay.others = roll.here.into_iter().filter(|one| one.id != me).collect();
        let next = stay.standing.take_in(&stay.others);
        self.reckon(stay).await;
        stay.beaten_at = sent_at;
        stay.beat_at = match next {
            Next::AtOnce => sent_at,
            Next::Soon => sent_at + BEAT_SOON,
            Next::InTime => sent_at + until_next(&stay.others),
        };
        if said.0 != stay.standing.drives() || said.1 != self.sees {
            stay.beat_at = sent_at;
        }
        self.tell(stay, said).await?;
        stay.telling.to(&stay.others, &self.store);
        Ok(())
    }

    /// Whom to reckon with, after a heartbeat. While nothing is driven that holds at once, else once the engine has
    /// caught up.
    async fn reckon(&mut self, stay: &Stay) {
        let me = stay.session.id();
        let drivers = stay.others.iter().filter(|one| one.drives).map(|one| Driver::new(one.id, &one.name));
        let view = View::of(me, drivers.chain([Driver::new(me, self.store.replica())]).collect());
        if !stay.standing.is_driving() {
            self.sees = view.ids();
        } else if self.settling.is_none() && view != self.view {
            tracing::info!(replicas = view.drivers.len(), "lanes are dealt anew");
            self.change_view(view).await;
        }
    }

    /// Tells those who wait for it what the last heartbeat has said.
    async fn tell(&self, stay: &mut Stay, (drives, sees): (bool, Vec<Uuid>)) -> Result<(), Lost> {
        if drives != stay.told_drives {
            stay.told_drives = drives;
            stay.session.tell(&Note::Members { to: None }).await?;
        }
        let newcomers = sees.iter().filter(|id| !stay.answered.contains(id)).copied();
        for newcomer in newcomers.collect::<Vec<_>>() {
            stay.session.tell(&Note::Members { to: Some(newcomer) }).await?;
        }
        stay.answered = sees;
        Ok(())
    }

    async fn resign(&mut self, stay: &mut Stay) -> Result<(), Lost> {
        stay.standing.resign();
        // The engine has ended its claims before it asked for this, and takes no handover any more.
        (self.view, self.settling) = (View::default(), None);
        self.beat(stay).await?;
        self.resigning.done.cancel();
        Ok(())
    }

    /// Drives nothing any more, and waits until that is so.
    async fn let_go(&mut self) {
        if !self.resigning.asked.is_cancelled() {
            let caught_up = async {
                if let Some(settling) = self.settling.take() {
                    let _ = settling.await;
                }
                self.change_view(View::default()).await;
                if let Some(settling) = self.settling.take() {
                    let _ = settling.await;
                }
            };
            let _ = tokio::time::timeout(SETTLE_MAX, caught_up).await;
        }
        (self.view, self.settling, self.sees) = (View::default(), None, Vec::new());
    }

    async fn change_view(&mut self, view: View) {
        if view == self.view {
            return;
        }
        self.view = view.clone();
        let (settled, settling) = oneshot::channel();
        // Without an engine that takes it, it is as good as settled: `settled` is gone with the message.
        let _ = self.handovers.send(Handover { view, settled }).await;
        self.settling = Some(settling);
    }
}

/// Once the engine has caught up; never, while there is nothing to catch up with.
async fn settled(settling: &mut Option<oneshot::Receiver<()>>) {
    match settling {
        // An engine that has gone away drives nothing: that is as good.
        Some(settling) => drop(settling.await),
        None => std::future::pending().await,
    }
}

/// Until the next heartbeat: sooner than usual, where another replica will be dead by then.
fn until_next(others: &[Replica]) -> Duration {
    let lives = others.iter().filter(|one| one.drives).map(|one| DEAD_AFTER.saturating_sub(one.silent_for));
    lives.map(|life| life + BEAT_GAP).min().map_or(BEAT_EVERY, |life| life.min(BEAT_EVERY))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_heartbeat_comes_when_somebody_else_may_be_dead() {
        let other = |drives, silent_s| Replica {
            id: Uuid::from_u128(1),
            name: String::new(),
            version: String::new(),
            roles: Roles { api: false, worker: true },
            drives,
            sees: Vec::new(),
            silent_for: Duration::from_secs(silent_s),
        };
        assert_eq!(until_next(&[]), BEAT_EVERY);
        assert_eq!(until_next(&[other(true, 1), other(false, 9)]), BEAT_EVERY);
        assert_eq!(until_next(&[other(true, 1), other(true, 9)]), Duration::from_secs(1) + BEAT_GAP);
        assert_eq!(until_next(&[other(true, 60)]), BEAT_GAP);
    }
}
