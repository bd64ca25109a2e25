//! What the engine remembers of endpoints between claims: prepared addresses, keys and policies.
//!
//! A claim tells each endpoint's current version, so what is remembered is used only while it is current: a changed
//! policy holds from the next attempt on, on every replica, without anybody being told.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::domain::circuit::{CircuitPolicy, DisablePolicy};
use crate::domain::id::{EndpointId, IdMap};
use crate::domain::rate::RateLimit;
use crate::domain::retry::{EventRetryPolicy, RetryDefaults, RetryPolicy};
use crate::domain::signature::Signer;
use crate::egress::Target;
use crate::store::{self, LaneEndpoint, Store};

/// An endpoint, ready to be delivered to.
pub(super) struct Prepared {
    pub(super) version: i64,
    pub(super) target: Target,
    pub(super) shown_url: Arc<str>,
    retry_policy: Option<RetryPolicy>,
    event_retry_policies: Vec<EventRetryPolicy>,
    retry_defaults: Arc<RetryDefaults>,
    pub(super) max_in_flight: u32,
    pub(super) rate_limit: Option<RateLimit>,
    pub(super) circuit_breaker: CircuitPolicy,
    pub(super) disable_policy: DisablePolicy,
}

impl Prepared {
    /// When failures of such events are retried.
    pub(super) fn retry_policy(&self, event_type: &str) -> &RetryPolicy {
        self.retry_defaults.choose(&self.event_retry_policies, self.retry_policy.as_ref(), event_type)
    }
}

/// The endpoints delivered to lately.
pub(super) struct Roster {
    retry_defaults: Arc<RetryDefaults>,
    known: Mutex<IdMap<EndpointId, Arc<Prepared>>>,
}

/// Endpoints, as far as they can be delivered to.
#[derive(Default)]
pub(super) struct Current {
    pub(super) endpoints: IdMap<EndpointId, Arc<Prepared>>,
    /// Those that are there and cannot be read here, such as for a key that this replica does not have.
    pub(super) unreadable: Vec<EndpointId>,
}

/// Endpoints remembered at most; beyond it the memory starts anew.
const KNOWN_MAX: usize = 50_000;

impl Roster {
    pub(super) fn new(retry_defaults: RetryDefaults) -> Self {
        Self { retry_defaults: Arc::new(retry_defaults), known: Mutex::default() }
    }

    /// What is remembered of an endpoint.
    pub(super) fn known(&self, id: EndpointId) -> Option<Arc<Prepared>> {
        self.lock().get(&id).cloned()
    }

    /// Endpoints as they are now: remembered where the version fits, read where it does not.
    pub(super) async fn current(&self, store: &Store, versions: &IdMap<EndpointId, i64>) -> store::Result<Current> {
        let mut current = Current {
            endpoints: IdMap::with_capacity_and_hasher(versions.len(), Default::default()),
            unreadable: Vec::new(),
        };
        let mut outdated = Vec::new();
        {
            let known = self.lock();
            for (id, version) in versions {
                match known.get(id) {
                    Some(prepared) if prepared.version == *version => {
                        current.endpoints.insert(*id, Arc::clone(prepared));
                    }
                    _ => outdated.push(*id),
                }
            }
        }
        self.load(store, &outdated, &mut current).await?;
        Ok(current)
    }

    /// Reads and remembers endpoints.
    async fn load(&self, store: &Store, ids: &[EndpointId], current: &mut Current) -> store::Result<()> {
        if ids.is_empty() {
            return Ok(());
        }
        let mut loaded = HashMap::with_capacity(ids.len());
        for (id, read) in store.lane_endpoints(ids).await? {
            let endpoint = match read {
                Ok(endpoint) => endpoint,
                Err(error) => {
                    tracing::error!(endpoint = %id, %error, "an endpoint cannot be read; its deliveries wait");
                    current.unreadable.push(id);
                    continue;
                }
            };
            match self.prepare(endpoint) {
                Ok(prepared) => {
                    loaded.insert(id, Arc::new(prepared));
                }
                Err(problem) => {
                    tracing::error!(endpoint = %id, %problem, "an endpoint's URL cannot be requested; its deliveries wait");
                    current.unreadable.push(id);
                }
            }
        }
        let mut known = self.lock();
        if known.len() + loaded.len() > KNOWN_MAX {
            known.clear();
        }
        known.extend(loaded.iter().map(|(id, prepared)| (*id, Arc::clone(prepared))));
        current.endpoints.extend(loaded);
        Ok(())
    }

    fn prepare(&self, endpoint: LaneEndpoint) -> Result<Prepared, crate::domain::Problem> {
        let signer = Signer::of(&endpoint.secrets);
        let target = Target::new(&endpoint.url, signer, endpoint.timeout)?;
        let target = target.with_headers(&endpoint.headers).with_tls(&endpoint.tls);
        Ok(Prepared {
            version: endpoint.version,
            shown_url: target.shown_url().into(),
            target,
            retry_policy: endpoint.retry_policy,
            event_retry_policies: endpoint.event_retry_policies,
            retry_defaults: Arc::clone(&self.retry_defaults),
            max_in_flight: endpoint.max_in_flight,
            rate_limit: endpoint.rate_limit,
            circuit_breaker: endpoint.circuit_breaker,
            disable_policy: endpoint.disable_policy,
        })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, IdMap<EndpointId, Arc<Prepared>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
