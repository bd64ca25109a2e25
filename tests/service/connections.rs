//! Which connection is used next, and what becomes of those that broke.

use std::sync::Arc;

use futures::future::join_all;
use hooklane::store::Store;
use sqlx::PgConnection;

use crate::support;

/// Backends of this database's pools, and those of them that ended a statement since `$1`.
const BACKENDS: &str = "
select count(*), count(*) filter (where state_change > $1)
from pg_stat_activity
where datname = current_database() and application_name = 'hooklane' and query like '%outstanding%'";

/// A store of whose connections at least `count` are open, and a connection beside it.
async fn opened(count: usize) -> (Arc<Store>, PgConnection) {
    let url = support::database().await;
    let store = Store::open(&support::config(url.clone())).await.expect("opens");
    let mut beside = support::connection(&url).await;
    let open = sweep_until_open(&store, &mut beside, count, count as i64).await;
    assert!(open >= count as i64, "{open} are open");
    (store, beside)
}

/// Sweeps `at_once` times, again and again until so many connections are open: so quick a statement may be done by one
/// before another is there. Answers how many are.
async fn sweep_until_open(store: &Store, beside: &mut PgConnection, at_once: usize, wanted: i64) -> i64 {
    let mut open = 0;
    for _ in 0..100 {
        for swept in join_all((0..at_once).map(|_| store.sweep())).await {
            swept.expect("swept, in turn");
        }
        open = backends(beside, "-infinity").await.0;
        if open >= wanted {
            break;
        }
    }
    open
}

async fn backends(beside: &mut PgConnection, since: &str) -> (i64, i64) {
    let statement = BACKENDS.replace("$1", &format!("'{since}'"));
    sqlx::query_as(sqlx::AssertSqlSafe(statement)).fetch_one(beside).await.expect("read")
}

#[tokio::test]
async fn what_one_connection_can_do_is_done_by_one() {
    let (store, mut beside) = opened(4).await;
    let now: String = sqlx::query_scalar("select clock_timestamp()::text").fetch_one(&mut beside).await.expect("read");
    for _ in 0..20 {
        store.sweep().await.expect("swept");
    }
    let (_, used) = backends(&mut beside, &now).await;
    assert_eq!(used, 1, "the one that came back last goes out first");
}

#[tokio::test]
async fn one_broken_connection_tells_of_the_others() {
    let (store, mut beside) = opened(4).await;
    let end = "select count(pg_terminate_backend(pid)) from pg_stat_activity
               where datname = current_database() and application_name = 'hooklane'";
    sqlx::query(end).execute(&mut beside).await.expect("ended");
    let first = store.sweep().await;
    assert!(first.is_err(), "nobody asks a connection before it is used");
    support::eventually("a new one", || async { store.sweep().await.ok() }).await;
    for swept in join_all((0..4).map(|_| store.sweep())).await {
        swept.expect("none of those that ended with it is used");
    }
}

#[tokio::test]
async fn no_more_are_opened_than_the_settings_allow_and_none_is_left_after_the_end() {
    let (store, mut beside) = opened(1).await;
    let open = sweep_until_open(&store, &mut beside, 100, 2).await;
    assert!((2..12).contains(&open), "{open} are open");
    store.close().await;
    let left = tokio::sync::Mutex::new(beside);
    support::eventually("no backend is left", || async {
        let (open, _) = backends(&mut *left.lock().await, "-infinity").await;
        (open == 0).then_some(())
    })
    .await;
    assert!(store.sweep().await.is_err());
}
