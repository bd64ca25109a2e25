//! Every live API key, in memory and read anew each few seconds: a call costs no statement, whoever guesses keys costs
//! none either, and a key that was revoked is gone everywhere within seconds.
//!
//! A key that nobody here has heard of may have been made a moment ago. It is looked for once more, in a reading that
//! begins after the call came, and such readings are at most five a second, whatever is asked.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, Semaphore, watch};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::caller::Caller;
use super::door::Credential;
use super::quota::{CallerLimits, Over, Usage};
use crate::api::status;
use crate::domain::api_key::{ApiKey, KeyDigest};
use crate::domain::id::KeyId;
use crate::domain::time::Timestamp;
use crate::store::{KeyRecord, Store};

/// Between two readings.
const READ_INTERVAL: Duration = Duration::from_secs(2);
/// Between two readings that were asked for.
const READ_PAUSE: Duration = Duration::from_millis(200);
/// How long a reading may take.
const READ_MAX: Duration = Duration::from_secs(2);
/// How long what was read is trusted while the database does not answer: the contract gives a revocation 60 s.
const TRUST_MAX: Duration = Duration::from_secs(50);
/// Calls that wait for another reading at once.
const LOOKUPS_MAX: usize = 256;
/// How long one waits.
const LOOKUP_MAX: Duration = Duration::from_secs(5);
/// How often `last_used_time` of one key is written.
const NOTE_INTERVAL: Duration = Duration::from_secs(60);

/// The live keys.
#[derive(Debug)]
pub(super) struct KeyRing {
    store: Arc<Store>,
    limits: CallerLimits,
    read: watch::Sender<Reading>,
    asked: Notify,
    lookups: Semaphore,
}

/// What was read last.
#[derive(Debug, Default)]
struct Reading {
    keys: HashMap<KeyId, Held>,
    /// When the last reading began that succeeded.
    began: Option<Instant>,
    /// When the last reading began.
    tried: Option<Instant>,
}

#[derive(Debug, Clone)]
struct Held {
    credential: Arc<Credential>,
    digest: KeyDigest,
    expire_time: Option<Timestamp>,
    /// The last use that is on record.
    noted: Option<Timestamp>,
}

impl KeyRing {
    /// Reads until `shutdown`, in a task of its own.
    pub(super) fn start(store: Arc<Store>, limits: CallerLimits, shutdown: CancellationToken) -> Arc<Self> {
        let ring = Arc::new(Self {
            store,
            limits,
            read: watch::Sender::default(),
            asked: Notify::new(),
            lookups: Semaphore::new(LOOKUPS_MAX),
        });
        tokio::spawn(run(Arc::clone(&ring), shutdown));
        ring
    }

    /// Whose key it is, if that is known already.
    pub(super) fn known(&self, key: &ApiKey) -> Option<Result<Arc<Credential>, Status>> {
        let read = self.read.borrow();
        read.keys.get(&key.id()).map(|held| self.judge(held, key))
    }

    /// Whose key it is, by a reading that begins after this call.
    pub(super) async fn look_up(&self, key: &ApiKey) -> Result<Arc<Credential>, Status> {
        let _place = self.lookups.try_acquire().map_err(|_| status::too_many_lookups())?;
        let came = Instant::now();
        let mut readings = self.read.subscribe();
        self.asked.notify_one();
        let later = readings.wait_for(|read| read.tried.is_some_and(|tried| tried >= came));
        let read = timeout(LOOKUP_MAX, later).await.map_err(|_| status::store_unavailable())?;
        let read = read.map_err(|_| status::draining())?;
        if read.began.is_none_or(|began| began < came) {
            return Err(status::store_unavailable());
        }
        read.keys.get(&key.id()).map_or_else(|| Err(status::credential_invalid()), |held| self.judge(held, key))
    }

    fn judge(&self, held: &Held, key: &ApiKey) -> Result<Arc<Credential>, Status> {
        let now = self.store.clock().now();
        let is_expired = held.expire_time.is_some_and(|end| end <= now);
        // Compared in any case, so that a wrong secret of an expired key takes as long as a right one.
        if !held.digest.is(&key.digest()) || is_expired {
            return Err(status::credential_invalid());
        }
        held.credential.usage.touch(now);
        Ok(Arc::clone(&held.credential))
    }

    async fn read_anew(&self) {
        let began = Instant::now();
        let records = self.store.keys().live(READ_MAX).await;
        self.read.send_modify(|read| {
            read.tried = Some(began);
            match records {
                Ok(records) => {
                    read.began = Some(began);
                    self.replace(&mut read.keys, records);
                }
                Err(error) => {
                    tracing::warn!(%error, "the API keys could not be read");
                    if read.began.is_none_or(|began| began.elapsed() >= TRUST_MAX) {
                        read.keys.drain().for_each(|(_, held)| held.credential.usage.end(Over::Unknown));
                    }
                }
            }
        });
    }

    /// Whoever stays keeps what they have under way; whoever is gone is told.
    fn replace(&self, keys: &mut HashMap<KeyId, Held>, records: Vec<KeyRecord>) {
        let mut former = std::mem::take(keys);
        for record in records {
            let known = former.remove(&record.id);
            let noted = record.last_used_time.max(known.as_ref().and_then(|held| held.noted));
            let credential = known.map_or_else(|| Arc::new(self.credential(&record)), |held| held.credential);
            let held = Held { credential, digest: record.digest, expire_time: record.expire_time, noted };
            keys.insert(record.id, held);
        }
        former.into_values().for_each(|held| held.credential.usage.end(Over::Revoked));
    }

    /// Name, role and tenant of a key never change.
    fn credential(&self, record: &KeyRecord) -> Credential {
        let caller = Caller::new(record.name.clone(), record.role, record.scope.clone());
        Credential { caller, usage: Arc::new(Usage::new(self.limits)) }
    }

    /// Writes down when keys were used, each once a minute at most; at the end of the process all that is not yet.
    async fn note_used(&self, is_end: bool) {
        let mut used = Vec::new();
        for (id, held) in &self.read.borrow().keys {
            let Some(at) = held.credential.usage.used_at() else { continue };
            let is_news = held.noted.is_none_or(|noted| at > noted && (is_end || at.since(noted) >= NOTE_INTERVAL));
            if is_news {
                used.push((*id, at));
            }
        }
        if used.is_empty() {
            return;
        }
        match self.store.keys().note_used(&used).await {
            Ok(()) => self.read.send_modify(|read| {
                for (id, at) in used {
                    if let Some(held) = read.keys.get_mut(&id) {
                        held.noted = Some(at);
                    }
                }
            }),
            Err(error) => tracing::warn!(%error, "it could not be noted when API keys were used"),
        }
    }
}

async fn run(ring: Arc<KeyRing>, shutdown: CancellationToken) {
    loop {
        let last = Instant::now();
        ring.read_anew().await;
        ring.note_used(false).await;
        tokio::select! {
            () = shutdown.cancelled() => break,
            () = sleep_until(last + READ_INTERVAL) => {}
            () = ring.asked.notified() => sleep_until(last + READ_PAUSE).await,
        }
    }
    ring.note_used(true).await;
}
