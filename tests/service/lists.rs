//! Lists of deliveries at size: the pages of a table with ten times the rows touch as many buffers, with the planner's
//! defaults; and what they answer is whole. Rows are made by `generate_series`.

use std::collections::BTreeSet;
use std::sync::Arc;

use hooklane::domain::delivery::DeliveryState;
use hooklane::domain::fields::Tenant;
use hooklane::domain::id::{DeliveryId, EndpointId, EventId};
use hooklane::domain::pattern::EventPattern;
use hooklane::domain::time::Timestamp;
use hooklane::store::{DeliveryFilter, Store, plans};
use serde_json::Value;
use sqlx::{AssertSqlSafe, PgConnection};
use uuid::Uuid;

use crate::support;

/// Settled rows of the two sizes.
const SMALL: u32 = 30_000;
const LARGE: u32 = 300_000;
/// Days that they are spread over, today the last.
const DAYS: u32 = 2;

/// Fills both settled tables: of 1,000 rows one is of a small tenant and endpoint, one in 3 is not SUCCEEDED, one in
/// 300 is CANCELED, one in 20 is of a rare type, one in 10 was made apart from its event.
async fn fill(connection: &mut PgConnection, rows: u32) {
    let settled = format!(
        "create temporary table made as
         select n, (millis || '7' || substr(case when n % 10 = 7 then d else e end, 1, 3)
                    || '8' || substr(d, 4, 15))::uuid as id, at,
                md5(case when n % 1000 = 0 then 'small' else 'big' || n % 7 end)::uuid as endpoint_id,
                (millis || '7' || substr(e, 1, 3) || '8' || substr(e, 4, 15))::uuid as event_id,
                case when n % 1000 = 0 then 'small' else 'default' end as tenant,
                case when n % 20 = 0 then 'order.rare' else 'order.usual' end as event_type
         from generate_series(1, {rows}) n
         cross join lateral (select date_trunc('day', now()) + interval '12 hours' - interval '{DAYS} days'
                                    + n / 2 * 2 * interval '1 day' * {DAYS} / {rows} as at) t
         cross join lateral (select lpad(to_hex(floor(extract(epoch from at) * 1000)::bigint), 12, '0') as millis,
                                    md5(n::text) as d, md5('event' || n / 2) as e) i;
         do $$
         begin
           for day in 1..{DAYS} loop
             for kind in 0..1 loop
               begin
                 execute format('create table %I partition of %I for values from (%L) to (%L)',
                   case kind when 0 then 'settled_succeeded_old' else 'settled_failed_old' end || day,
                   case kind when 0 then 'settled_succeeded' else 'settled_failed' end,
                   date_trunc('day', now()) - day * interval '1 day',
                   date_trunc('day', now()) - (day - 1) * interval '1 day');
               exception when others then null;
               end;
             end loop;
           end loop;
         end $$;
         insert into settled_succeeded (id, endpoint_id, event_id, settle_time, claim_gen, attempt_count, last_status,
                                        priority, payload_format, tenant, event_type)
         select id, endpoint_id, event_id, at + interval '1 second', 1, 1, 200, 2, 1, tenant, event_type
         from made where n % 3 <> 0;
         insert into settled_failed (id, endpoint_id, event_id, settle_time, claim_gen, attempt_count, last_status, state,
                                     priority, payload_format, tenant, event_type, reason)
         select id, endpoint_id, event_id, at + interval '1 second', 1, 6, 503, case when n % 300 = 0 then 6 else 5 end,
                2, 1, tenant, event_type, 'HTTP 503: Service Unavailable'
         from made where n % 3 = 0;
         insert into endpoints (id, tenant, url, shown_url, description, event_types, signature_scheme, payload_format,
                                timeout_ms, max_in_flight, labels, state, version, create_time, update_time)
         select distinct on (endpoint_id) endpoint_id, tenant, 'http://h/', 'http://h/', '', '{{}}'::text[], 1, 1, 1000,
                1000, '{{}}'::jsonb, 1, 1, now(), now()
         from made;
         insert into deliveries_apart (delivery_id, event_id, tenant)
         select id, event_id, tenant from made where n % 10 = 7;
         analyze settled_succeeded; analyze settled_failed; analyze endpoints; analyze deliveries_apart;"
    );
    sqlx::raw_sql(AssertSqlSafe(settled)).execute(connection).await.expect("filled");
}

async fn made(connection: &mut PgConnection, expression: &str) -> Uuid {
    let select = format!("select {expression}");
    sqlx::query_scalar(AssertSqlSafe(select)).fetch_one(connection).await.expect("selected")
}

/// Every filter there is, by name, alone and in the combinations that meet different indexes.
async fn filters(connection: &mut PgConnection) -> Vec<(&'static str, DeliveryFilter)> {
    let big = EndpointId::from_uuid(made(connection, "md5('big1')::uuid").await);
    let small = EndpointId::from_uuid(made(connection, "md5('small')::uuid").await);
    let event = EventId::from_uuid(made(connection, "(select event_id from made where n = 20007)").await);
    let tenant = |name: &str| Some(Tenant::parse(name).expect("a tenant"));
    let types = |text: &str| vec![EventPattern::parse(text).expect("a pattern")];
    let noon: i64 = sqlx::query_scalar(
        "select extract(epoch from date_trunc('day', now()) - interval '12 hours')::bigint * 1000000",
    )
    .fetch_one(connection)
    .await
    .expect("a time");
    let noon = Timestamp::from_micros(noon);
    let all = DeliveryFilter::default();
    let mut filters = vec![
        ("everybody's", all.clone()),
        ("a large tenant's", DeliveryFilter { tenant: tenant("default"), ..all.clone() }),
        ("a small tenant's", DeliveryFilter { tenant: tenant("small"), ..all.clone() }),
        ("nobody's", DeliveryFilter { tenant: tenant("nobody"), ..all.clone() }),
        ("a busy endpoint's", DeliveryFilter { tenant: tenant("default"), endpoint: Some(big), ..all.clone() }),
        ("a quiet endpoint's", DeliveryFilter { tenant: tenant("small"), endpoint: Some(small), ..all.clone() }),
        ("another tenant's endpoint's", DeliveryFilter { tenant: tenant("small"), endpoint: Some(big), ..all.clone() }),
        ("an event's", DeliveryFilter { tenant: tenant("default"), event: Some(event), ..all.clone() }),
        ("of a usual type", DeliveryFilter { event_types: types("order.*"), tenant: tenant("default"), ..all.clone() }),
        (
            "of a rare type",
            DeliveryFilter { event_types: types("order.rare"), tenant: tenant("default"), ..all.clone() },
        ),
        ("of no type", DeliveryFilter { event_types: types("user.*"), tenant: tenant("default"), ..all.clone() }),
        ("since noon", DeliveryFilter { create_after: Some(noon), tenant: tenant("default"), ..all.clone() }),
        ("until noon", DeliveryFilter { create_before: Some(noon), tenant: tenant("default"), ..all.clone() }),
    ];
    for (name, states) in [
        ("succeeded", vec![DeliveryState::Succeeded]),
        ("failed", vec![DeliveryState::Failed]),
        ("canceled", vec![DeliveryState::Canceled]),
        ("expired", vec![DeliveryState::Expired]),
        ("failed and waiting", vec![DeliveryState::Failed, DeliveryState::Retrying, DeliveryState::Pending]),
    ] {
        filters.push((name, DeliveryFilter { states: states.clone(), tenant: tenant("default"), ..all.clone() }));
        filters.push((name, DeliveryFilter { states, endpoint: Some(big), tenant: tenant("default"), ..all.clone() }));
    }
    filters
}

struct Read {
    buffers: u64,
    /// Rows that the widest scan looked at.
    rows: f64,
    plan: Value,
}

async fn explain(connection: &mut PgConnection, filter: &DeliveryFilter) -> Read {
    let plan = plans::explain_list(connection, filter, 51).await.expect("explained");
    let node = &plan[0]["Plan"];
    let buffers = ["Shared Hit Blocks", "Shared Read Blocks"].map(|key| node[key].as_u64().unwrap_or_default());
    let mut rows = 0.0;
    widest(node, &mut rows);
    Read { buffers: buffers.iter().sum(), rows, plan }
}

fn widest(node: &Value, rows: &mut f64) {
    let number = |key: &str| node[key].as_f64().unwrap_or_default();
    if node["Node Type"].as_str().unwrap_or_default().contains("Scan") && node["Relation Name"].is_string() {
        *rows = f64::max(*rows, (number("Actual Rows") + number("Rows Removed by Filter")) * number("Actual Loops"));
    }
    node["Plans"].as_array().into_iter().flatten().for_each(|child| widest(child, rows));
}

/// An id about which `pages` pages of 50 of the filter are newer, or the oldest one.
async fn ceiling(connection: &mut PgConnection, filter: &DeliveryFilter, rows: u32) -> Option<DeliveryId> {
    let found: Option<Uuid> = sqlx::query_scalar(
        "select id from (
           select id, tenant, endpoint_id, event_id from settled_succeeded
           union all select id, tenant, endpoint_id, event_id from settled_failed
         ) d
         where ($1::text is null or tenant = $1) and ($2::uuid is null or endpoint_id = $2)
           and ($3::uuid is null or event_id = $3)
         order by id desc offset $4 limit 1",
    )
    .bind(filter.tenant.as_ref().map(|tenant| tenant.as_str().to_owned()))
    .bind(filter.endpoint.map(EndpointId::uuid))
    .bind(filter.event.map(EventId::uuid))
    .bind(i64::from(rows))
    .fetch_optional(connection)
    .await
    .expect("found");
    found.map(DeliveryId::from_uuid)
}

#[tokio::test]
async fn a_page_of_any_filter_reads_as_much_of_ten_times_as_many_rows() {
    let mut sizes = Vec::new();
    for rows in [SMALL, LARGE] {
        let url = support::database().await;
        let mut admin = support::connection(&url).await;
        fill(&mut admin, rows).await;
        let mut reader = plans::connect_reader(&url).await.expect("connects");
        let mut reads = Vec::new();
        for (name, filter) in filters(&mut admin).await {
            let deep = ceiling(&mut admin, &filter, 50_000.min(rows / 2)).await;
            for (page, before) in [("first", None), ("a deep", deep)] {
                if page == "first" || before.is_some() {
                    let read = explain(&mut reader, &DeliveryFilter { before, ..filter.clone() }).await;
                    reads.push((format!("{name}: {page} page"), read));
                }
            }
        }
        sizes.push(reads);
    }
    let [small, large] = &sizes[..] else { panic!("two sizes") };
    for (what, read) in large {
        let buffers = read.buffers;
        println!("{what}: {buffers} buffers, {} rows, {} ms", read.rows, read.plan[0]["Execution Time"]);
        // A walk looks at 3,000 rows at most in each table, and once more for where it stopped; each row that is shown
        // looks for its event's key in every day.
        assert!(read.rows <= 3_500.0, "{what} looks at {} rows: {}", read.rows, read.plan);
        assert!(buffers <= 5_000, "{what} touches {buffers} buffers: {}", read.plan);
        if let Some((_, before)) = small.iter().find(|(other, _)| other == what) {
            let allowed = before.buffers * 2 + 1_000;
            assert!(buffers <= allowed, "{what} touches {buffers} buffers, of a tenth of the rows {}", before.buffers);
        }
    }
    for name in
        ["everybody's", "a large tenant's", "a small tenant's", "a busy endpoint's", "a quiet endpoint's", "failed"]
    {
        for (what, read) in large.iter().filter(|(what, _)| what.starts_with(name)) {
            assert!(read.buffers <= 2_500, "{what} touches {} buffers: {}", read.buffers, read.plan);
        }
    }
}

/// All pages of a list, and how many were short.
async fn all_pages(store: &Arc<Store>, filter: &DeliveryFilter, limit: u32) -> (Vec<DeliveryId>, usize) {
    let (mut filter, mut ids, mut short) = (filter.clone(), Vec::new(), 0);
    loop {
        let (page, end) = store.list_deliveries(&filter, limit).await.expect("listed");
        assert!(page.len() <= limit as usize);
        short += usize::from(end.is_some() && page.len() < limit as usize);
        ids.extend(page.into_iter().map(|row| row.id));
        match end {
            Some(end) => {
                assert!(filter.before.is_none_or(|before| end < before), "it goes on");
                filter.before = Some(end);
            }
            None => return (ids, short),
        }
    }
}

#[tokio::test]
async fn every_filter_lists_all_that_there_is_each_once_newest_first() {
    let url = support::database().await;
    let mut admin = support::connection(&url).await;
    fill(&mut admin, 30_000).await;
    let waiting = "insert into outstanding (id, endpoint_id, event_id, due_at, state, priority, payload_format, tenant,
                                            event_type, attempt_count)
         select (lpad(to_hex(floor(extract(epoch from now()) * 1000)::bigint - 9000 + n), 12, '0') || '7'
                 || substr(md5('w' || n), 1, 3) || '8' || substr(md5('w' || n), 4, 15))::uuid,
                md5(case when n % 2000 = 0 then 'small' else 'big' || n % 7 end)::uuid, md5('w' || n)::uuid,
                now() + interval '1 hour', case when n % 5 = 0 then 3 else 1 end, 2, 1,
                case when n % 2000 = 0 then 'small' else 'default' end, 'order.usual', case when n % 5 = 0 then 1 else 0 end
         from generate_series(1, 8000) n";
    sqlx::raw_sql(waiting).execute(&mut admin).await.expect("filled");
    let store = Store::open(&support::config(url)).await.expect("opens");
    for (name, filter) in filters(&mut admin).await {
        let (listed, short) = all_pages(&store, &filter, 400).await;
        let expected: Vec<Uuid> = sqlx::query_scalar(
            "select id from deliveries
             where ($1::text is null or tenant = $1) and ($2::uuid is null or endpoint_id = $2)
               and ($3::uuid is null or event_id = $3) and (cardinality($4::smallint[]) = 0 or state = any($4))
               and ($5::text is null or event_type ~ $5)
               and ($6::bigint is null or uuid_time(id) >= to_timestamp($6 / 1e6))
               and ($7::bigint is null or uuid_time(id) < to_timestamp($7 / 1e6))
             order by id desc",
        )
        .bind(filter.tenant.as_ref().map(|tenant| tenant.as_str().to_owned()))
        .bind(filter.endpoint.map(EndpointId::uuid))
        .bind(filter.event.map(EventId::uuid))
        .bind(filter.states.iter().map(|state| *state as i16).collect::<Vec<_>>())
        .bind(filter.event_types.first().map(|pattern| pattern.to_string().replace(".*", "[.].*")))
        .bind(filter.create_after.map(Timestamp::micros))
        .bind(filter.create_before.map(Timestamp::micros))
        .fetch_all(&mut admin)
        .await
        .expect("selected");
        let listed: Vec<Uuid> = listed.into_iter().map(DeliveryId::uuid).collect();
        assert_eq!(listed.iter().collect::<BTreeSet<_>>().len(), listed.len(), "{name}: each once");
        assert_eq!(listed, expected, "{name}");
        if ["a small tenant's", "a quiet endpoint's"].contains(&name) {
            assert_eq!(short, 0, "{name}: few among many are found at once");
        }
    }
    store.close().await;
}
