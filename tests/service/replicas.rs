//! Several replicas on one database.

use hooklane::store::Store;

use crate::support;

#[tokio::test]
async fn a_replica_of_an_earlier_version_starts_where_a_later_one_has_migrated() {
    let url = support::database().await;
    let later = "insert into _sqlx_migrations (version, description, success, checksum, execution_time)
                 values (9999, 'of a later version', true, 'x', 1)";
    sqlx::query(later).execute(&mut support::connection(&url).await).await.expect("recorded");
    let store = Store::open(&support::config(url)).await.expect("opens");
    store.ping().await.expect("answers");
}
