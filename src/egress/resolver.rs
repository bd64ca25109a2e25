//! From a host to its addresses.
//!
//! The system's resolver holds a thread for as long as it takes, which is up to half a minute where nobody answers, also
//! when the attempt that asked has ended. So a host is asked for once at a time, for all attempts that wait for it, and
//! the hosts asked for at once have a bound: slow ones cost the others no thread.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared};
use tokio::sync::Semaphore;

use super::guard::DialError;

/// Hosts asked for at once: half of the threads that the runtime has for what blocks.
const LOOKUPS_MAX: usize = 256;

/// Asks for addresses.
#[derive(Clone)]
pub(super) struct Resolver(Arc<Lookups>);

struct Lookups {
    source: Source,
    running: Mutex<HashMap<Arc<str>, Lookup>>,
    room: Semaphore,
}

/// Who is asked.
#[derive(Default)]
enum Source {
    /// The system: its files, its name servers, its rules.
    #[default]
    System,
    /// A test.
    #[cfg(test)]
    Scripted(super::tests::script::Script),
}

/// A question under way. Nobody who has not waited for it gets its answer: each attempt has addresses of its own time.
type Lookup = Shared<BoxFuture<'static, Option<Arc<[IpAddr]>>>>;

impl Default for Resolver {
    /// The system's.
    fn default() -> Self {
        Self::of(Source::default())
    }
}

impl Resolver {
    fn of(source: Source) -> Self {
        Self(Arc::new(Lookups { source, running: Mutex::default(), room: Semaphore::new(LOOKUPS_MAX) }))
    }

    #[cfg(test)]
    pub(super) fn scripted(script: super::tests::script::Script) -> Self {
        Self::of(Source::Scripted(script))
    }

    /// Every address of a host. A literal address resolves to itself, without asking anyone.
    pub(super) async fn resolve(&self, host: &str, port: u16) -> Result<Vec<SocketAddr>, DialError> {
        if let Ok(literal) = host.parse::<IpAddr>() {
            return Ok(vec![SocketAddr::new(literal, port)]);
        }
        let addresses = self.0.join(host).await.ok_or(DialError::Unresolved)?;
        Ok(addresses.iter().map(|address| SocketAddr::new(*address, port)).collect())
    }
}

impl Lookups {
    /// The question for this host: the one that is under way, or a new one.
    fn join(self: &Arc<Self>, host: &str) -> Lookup {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(lookup) = running.get(host) {
            return lookup.clone();
        }
        let host: Arc<str> = host.into();
        // A task of its own: whoever asked first may be gone before the answer.
        let asked = tokio::spawn(Arc::clone(self).ask(Arc::clone(&host)));
        let lookup = async move { asked.await.ok().flatten() }.boxed().shared();
        running.insert(host, lookup.clone());
        lookup
    }

    async fn ask(self: Arc<Self>, host: Arc<str>) -> Option<Arc<[IpAddr]>> {
        // Never closed.
        let room = self.room.acquire().await;
        let addresses = match &self.source {
            Source::System => {
                // Any port: what is asked for is addresses.
                let found = tokio::net::lookup_host((&*host, 0)).await;
                found.map(|found| found.map(|address| address.ip()).collect()).unwrap_or_default()
            }
            #[cfg(test)]
            Source::Scripted(script) => script.resolve(&host).await,
        };
        drop(room);
        self.running.lock().unwrap_or_else(PoisonError::into_inner).remove(&host);
        let addresses: Arc<[IpAddr]> = addresses;
        (!addresses.is_empty()).then_some(addresses)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures::future::join_all;

    use super::super::tests::script::Script;
    use super::*;

    #[tokio::test]
    async fn literals_of_both_families_resolve_to_themselves() {
        for (host, address) in [("127.0.0.1", "127.0.0.1:80"), ("::1", "[::1]:80")] {
            let resolved = Resolver::default().resolve(host, 80).await;
            assert_eq!(resolved, Ok(vec![address.parse().expect("an address")]));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_host_is_asked_for_once_at_a_time_and_anew_each_time() {
        let script = Script::late(&[&["1.1.1.1"], &["2.2.2.2"]], Duration::from_secs(10));
        let resolver = Resolver::scripted(script.clone());
        for (time, address) in [(1, "1.1.1.1:443"), (2, "2.2.2.2:443")] {
            // Whoever gives up leaves the others their answer.
            let impatient = tokio::time::timeout(Duration::from_secs(1), resolver.resolve("slow.example.com", 443));
            assert!(impatient.await.is_err());
            let answers = join_all((0..100).map(|_| resolver.resolve("slow.example.com", 443))).await;
            assert_eq!(script.asked().len(), time);
            assert!(answers.iter().all(|answer| *answer == Ok(vec![address.parse().expect("an address")])));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn hosts_that_nobody_answers_for_are_forgotten() {
        let resolver = Resolver::scripted(Script::late(&[&[]], Duration::from_secs(30)));
        let hosts: Vec<_> = (0..2 * LOOKUPS_MAX).map(|number| format!("{number}.example.com")).collect();
        let asked = join_all(hosts.iter().map(|host| resolver.resolve(host, 443))).await;
        assert!(asked.iter().all(|answer| *answer == Err(DialError::Unresolved)));
        assert!(resolver.0.running.lock().expect("no panic").is_empty());
    }
}
