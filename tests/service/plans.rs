//! The plans of the hot statements, with statistics taken while the tables were empty and with those of large ones:
//! the engine's connections must find every row by index either way. Work is counted in pages, never in time.

use hooklane::domain::id::EndpointId;
use hooklane::domain::time::Timestamp;
use hooklane::store::plans::{self, Guarded};
use sqlx::{AssertSqlSafe, Connection, PgConnection};

use crate::support;

/// Rows outstanding for one silent endpoint, beside the lane that is looked at.
const BACKLOG: u32 = 50_000;
/// Endpoints beside the one that is looked at.
const ENDPOINTS: u32 = 1_000;
/// Rows that the statements touch.
const BATCH: u32 = 100;
/// Keys of the silent endpoint, each with a delivery that is parked.
const KEYS: u32 = 10_000;

/// Makes the backlog, and `BATCH` rows of another endpoint: due for a claim, or held by claim 1.
async fn fill(connection: &mut PgConnection, is_held: bool) {
    let rows = format!(
        "insert into outstanding (id, endpoint_id, event_id, due_at, state, priority, payload_format, tenant, event_type)
         select md5('row' || n)::uuid, md5('silent')::uuid, md5('event' || n)::uuid, now() - interval '1 minute', 1, 2, 1,
                'default', 'a'
         from generate_series(1, {BACKLOG}) n;
         insert into endpoints (id, tenant, url, shown_url, description, event_types, signature_scheme, payload_format,
                                timeout_ms, max_in_flight, labels, state, version, create_time, update_time)
         select md5(case n when 0 then 'live' else 'endpoint' || n end)::uuid, 'default', 'http://h/', 'http://h/', '',
                '{{}}', 1, 1, 1000, 1000, '{{}}', 1, 1, now(), now()
         from generate_series(0, {ENDPOINTS}) n;
         insert into endpoint_health (endpoint_id) select id from endpoints;
         insert into outstanding (id, endpoint_id, event_id, due_at, state, priority, payload_format, tenant, event_type,
                                  lease_until, attempt_started_at, attempt_count, claim_gen)
         select md5('live' || n)::uuid, md5('live')::uuid, md5('event' || n)::uuid, now() - interval '1 second',
                case when {is_held} then 2 else 1 end, 2, 1, 'default', 'a',
                case when {is_held} then now() + interval '1 hour' end, case when {is_held} then now() end,
                case when {is_held} then 1 else 0 end, case when {is_held} then 1 else 0 end
         from generate_series(1, {BATCH}) n;
         insert into order_keys (endpoint_id, key)
         select md5('live')::uuid, 'key' || n from generate_series(1, {BATCH}) n
         union all select md5('silent')::uuid, 'key' || n from generate_series(1, {KEYS}) n;
         insert into outstanding (id, endpoint_id, event_id, due_at, state, priority, payload_format, tenant, event_type,
                                  order_key, seq, expire_at)
         select md5('parked ' || k.endpoint_id || k.key)::uuid, k.endpoint_id, md5(k.key)::uuid, 'infinity', 1, 2, 1,
                'default', 'a', k.key, 1,
                now() + case when k.endpoint_id = md5('live')::uuid then -1 else 1 end * interval '1 hour'
         from order_keys k;"
    );
    sqlx::raw_sql(AssertSqlSafe(rows)).execute(connection).await.expect("filled");
}

/// What a plan did: each scan of a table, and the pages touched in all.
struct Explained {
    scans: Vec<Scan>,
    pages: u64,
}

struct Scan {
    table: String,
    how: String,
    /// Rows it looked at, whether they were wanted or not.
    rows: f64,
}

async fn explain(connection: &mut PgConnection, statement: &Guarded, arguments: &str) -> Explained {
    let types = if statement.types.is_empty() { String::new() } else { format!("({})", statement.types) };
    let prepare = format!("prepare guarded {types} as {}", statement.sql);
    sqlx::raw_sql(AssertSqlSafe(prepare)).execute(&mut *connection).await.expect("prepared");
    let execute = format!("explain (analyze, buffers, format json) execute guarded {arguments}");
    let plan: serde_json::Value =
        sqlx::query_scalar(AssertSqlSafe(execute)).fetch_one(connection).await.expect("explained");
    let mut explained = Explained { scans: Vec::new(), pages: 0 };
    read_node(&plan[0]["Plan"], &mut explained);
    explained
}

fn read_node(node: &serde_json::Value, explained: &mut Explained) {
    let text = |key: &str| node[key].as_str().unwrap_or_default().to_owned();
    let pages = |key: &str| node[key].as_u64().unwrap_or_default();
    explained.pages = explained.pages.max(pages("Shared Hit Blocks") + pages("Shared Read Blocks"));
    if text("Node Type").contains("Scan") && !text("Relation Name").is_empty() {
        let number = |key: &str| node[key].as_f64().unwrap_or_default();
        let rows = (number("Actual Rows") + number("Rows Removed by Filter")) * number("Actual Loops");
        explained.scans.push(Scan { table: text("Relation Name"), how: text("Node Type"), rows });
    }
    for child in node["Plans"].as_array().into_iter().flatten() {
        read_node(child, explained);
    }
}

/// The numbers 1 to `BATCH` as an SQL array of `of`, an expression over n.
fn array(of: &str, kind: &str) -> String {
    format!("array(select ({of})::{kind} from generate_series(1, {BATCH}) n order by md5('live' || n)::uuid)")
}

/// The values of expressions as a list of literals, for EXECUTE takes no subquery.
async fn literals(connection: &mut PgConnection, expressions: &[String]) -> String {
    let mut literals = Vec::new();
    for expression in expressions {
        let select = format!("select quote_nullable(({expression})::text)");
        let literal: String =
            sqlx::query_scalar(AssertSqlSafe(select)).fetch_one(&mut *connection).await.expect("evaluated");
        literals.push(literal);
    }
    if literals.is_empty() { String::new() } else { format!("({})", literals.join(", ")) }
}

async fn check(statement: &Guarded, arguments: &[String], is_held: bool, is_analyzed: bool) {
    let url = support::database().await;
    let mut admin = support::connection(&url).await;
    for table in ["outstanding", "endpoints", "endpoint_health", "order_keys"] {
        let off = format!("alter table {table} set (autovacuum_enabled = off); analyze {table};");
        sqlx::raw_sql(AssertSqlSafe(off)).execute(&mut admin).await.expect("statistics of an empty table");
    }
    fill(&mut admin, is_held).await;
    if is_analyzed {
        sqlx::raw_sql("analyze").execute(&mut admin).await.expect("analyzed");
    }
    let arguments = literals(&mut admin, arguments).await;
    let mut engine = plans::connect(&url).await.expect("connects");
    let explained = explain(&mut engine, statement, &arguments).await;
    for Scan { table, how, rows } in &explained.scans {
        let what = format!("{} (analyzed: {is_analyzed}) reads {rows} rows of {table} by {how}", statement.name);
        let by_index = ["Index Scan", "Index Only Scan", "Tid Scan"].contains(&how.as_str());
        assert!(by_index || !["outstanding", "order_keys"].contains(&table.as_str()), "{what}");
        assert!(*rows <= f64::from(2 * BATCH), "{what}");
    }
    assert!(!explained.scans.is_empty(), "the plan was read");
    // A look-up is some four pages, a changed row some ten with its indexes; the backlog alone has 1,000 pages of heap
    // and 50,000 rows, each at least a page touched by a scan in index order.
    assert!(explained.pages < 60 * u64::from(BATCH), "{} touched {} pages", statement.name, explained.pages);
    engine.close().await.expect("closes");
}

/// The pages that a claim of an endpoint's due deliveries touches from a low-water mark on. It is rolled back.
pub(crate) async fn claim_pages(url: &str, endpoint: EndpointId, from: Timestamp) -> u64 {
    let mut engine = plans::connect(url).await.expect("connects");
    let from = if from.micros() == i64::MIN { "-infinity".to_owned() } else { from.to_string() };
    let arguments = [
        format!("array['{}']::uuid[]", endpoint.uuid()),
        "array[64]".to_owned(),
        format!("array['{from}'::timestamptz]"),
        "15".to_owned(),
        "'r'::text".to_owned(),
        "array[0]".to_owned(),
        "array[0]".to_owned(),
        "null".to_owned(),
        "array[0]::bigint[]".to_owned(),
        "array[null]::timestamptz[]".to_owned(),
        "array[2]::smallint[]".to_owned(),
    ];
    let arguments = literals(&mut engine, &arguments).await;
    sqlx::raw_sql("begin").execute(&mut engine).await.expect("begun");
    let explained = explain(&mut engine, &plans::CLAIM, &arguments).await;
    sqlx::raw_sql("rollback").execute(&mut engine).await.expect("rolled back");
    explained.pages
}

#[tokio::test]
async fn a_claim_reads_its_own_lane_alone() {
    let arguments = [
        "array[md5('live')::uuid]",
        "array[64]",
        "array['-infinity'::timestamptz]",
        "15",
        "'r'::text",
        "array[0]",
        "array[0]",
        "null",
        "array[0]::bigint[]",
        "array[null]::timestamptz[]",
        "array[2]::smallint[]",
    ];
    let arguments = arguments.map(str::to_owned);
    check(&plans::CLAIM, &arguments, false, false).await;
    check(&plans::CLAIM, &arguments, false, true).await;
}

#[tokio::test]
async fn a_publish_looks_up_the_endpoints_whose_offers_it_takes() {
    let of = |value: &str, kind: &str| array(value, kind);
    let none = |kind: &str| format!("'{{}}'::{kind}[]");
    let arguments = [
        "array['default']".to_owned(),
        "array[0]::bigint[]".to_owned(),
        // The events of these were written before.
        none("uuid"),
        none("text"),
        none("text"),
        none("bytea"),
        none("text"),
        none("text"),
        none("jsonb"),
        of("md5('new' || n)", "uuid"),
        of("md5('endpoint' || n)", "uuid"),
        of("md5('event' || n)", "uuid"),
        of("1", "smallint"),
        of("'default'", "text"),
        of("'a'", "text"),
        none("text"),
        none("smallint"),
        none("text"),
        none("timestamptz"),
        none("timestamptz"),
        none("smallint"),
        none("timestamptz"),
        none("timestamptz"),
        none("text"),
        none("boolean"),
        none("bytea"),
        format!("array(select n from generate_series(1, {BATCH}) n)"),
        of("md5('endpoint' || n)", "uuid"),
        of("1", "bigint"),
        "null".to_owned(),
        "12".to_owned(),
        "'r'::text".to_owned(),
        format!("array(select n from generate_series(1, {BATCH}) n)"),
        format!("array(select n from generate_series(1, {BATCH}) n)"),
    ];
    for is_analyzed in [false, true] {
        check(&plans::PUBLISH, &arguments, false, is_analyzed).await;
    }
}

#[tokio::test]
async fn what_others_have_in_flight_is_found_without_reading_a_backlog() {
    let others = ["array[md5('live')::uuid]".to_owned(), "'r'::text".to_owned()];
    let ids = [array("md5('live' || n)", "uuid")];
    for is_analyzed in [false, true] {
        check(&plans::ELSEWHERE, &others, true, is_analyzed).await;
        check(&plans::FOLLOW, &ids, true, is_analyzed).await;
    }
}

#[tokio::test]
async fn gates_are_read_endpoint_by_endpoint() {
    let ids = ["array(select md5('endpoint' || n)::uuid from generate_series(1, 100) n)".to_owned()];
    for is_analyzed in [false, true] {
        check(&plans::GATES, &ids, false, is_analyzed).await;
    }
}

#[tokio::test]
async fn a_completion_reads_its_own_rows_alone() {
    let ids = array("md5('live' || n)", "uuid");
    let of = |value: &str, kind: &str| array(value, kind);
    let arguments = [
        ids.clone(),
        ids,
        "'{}'::uuid[]".to_owned(),
        of("1", "int"),
        of("4", "smallint"),
        of("1", "int"),
        of("null", "text"),
        of("0", "bigint"),
        of("now()", "timestamptz"),
        of("5", "bigint"),
        of("1", "smallint"),
        of("200", "int"),
        of("1", "smallint"),
        of("false", "boolean"),
        of("'http://h/'", "text"),
        of("null", "text"),
        of("''", "text"),
        of("''", "bytea"),
        "array[md5('live')::uuid]".to_owned(),
        "array[1.0]::float8[]".to_owned(),
        "array[0.0]::float8[]".to_owned(),
        "array[0]".to_owned(),
        "array[true]".to_owned(),
        "array[false]".to_owned(),
        "'canceled'::text".to_owned(),
    ];
    // The same columns but for those that a success has no use for.
    let mut succeeded =
        [0, 3, 5, 8, 9, 11, 12, 13, 14, 16, 17, 18, 19, 20].map(|place| arguments[place].clone()).to_vec();
    succeeded.extend([of("1", "int"), of("1", "int")]);
    for is_analyzed in [false, true] {
        check(&plans::COMPLETE, &arguments, true, is_analyzed).await;
        check(&plans::SUCCEED, &succeeded, true, is_analyzed).await;
    }
}

#[tokio::test]
async fn a_renewal_and_a_release_read_their_own_rows_alone() {
    let claims = [array("md5('live' || n)", "uuid"), array("1", "int")];
    let renewed = [claims.as_slice(), &["15".to_owned()]].concat();
    for is_analyzed in [false, true] {
        check(&plans::RENEW, &renewed, true, is_analyzed).await;
        check(&plans::RELEASE, &claims, true, is_analyzed).await;
    }
}

#[tokio::test]
async fn what_follows_in_an_order_is_found_by_its_keys_alone() {
    let keys = [array("md5('live')", "uuid"), array("'key' || n", "text")];
    let failed = [keys.as_slice(), &[array("md5('live' || n)", "uuid")]].concat();
    for is_analyzed in [false, true] {
        check(&plans::ORDER_LOCK, &keys, true, is_analyzed).await;
        check(&plans::ORDER_BLOCK, &failed, true, is_analyzed).await;
        check(&plans::ORDER_ADVANCE, &keys, true, is_analyzed).await;
    }
}

#[tokio::test]
async fn what_falls_due_next_and_what_expires_is_found_without_reading_a_backlog() {
    let next = ["array[md5('live')::uuid]".to_owned(), "now() - interval '1 hour'".to_owned(), "64".to_owned()];
    let expire = [BATCH.to_string(), "'expired'".to_owned()];
    for is_analyzed in [false, true] {
        check(&plans::UPCOMING, &next, false, is_analyzed).await;
        check(&plans::EXPIRE, &expire, true, is_analyzed).await;
    }
}

#[tokio::test]
async fn the_sweep_steps_over_a_backlog() {
    check(&plans::SWEEP, &[], false, false).await;
    check(&plans::SWEEP, &[], false, true).await;
}
