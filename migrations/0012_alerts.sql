-- Being told: alerts as rows, the counts they are found by, and how far the failed deliveries have been told of.
-- Only additions: older replicas go on beside it, and open no alerts.

-- A condition that somebody should look at, open while `close_time` is null. One row a condition: `alerts_open` lets any
-- number of replicas find the same one at once.
create table hooklane.alerts (
  id                uuid        not null,
  tenant            text        not null,
  endpoint_id       uuid        not null,
  kind              smallint    not null,
  -- ENDPOINT_FAILING: the highest threshold of consecutive failures that was reached; 1 for the other kinds
  level             integer     not null,
  -- the operational events of these levels are published
  told_level        integer     not null default 0,
  -- no operational event tells of it: of its kind there is none, or it is the operational ones themselves that fail
  is_quiet          boolean     not null,
  -- nothing remains to be published of its end
  is_close_told     boolean     not null default false,
  message           text        not null,
  details           jsonb       not null,
  open_time         timestamptz not null,
  close_time        timestamptz,
  acknowledge_time  timestamptz,
  -- empty: callers were not authenticated
  acknowledged_by   text,
  constraint alerts_pkey primary key (id),
  constraint alerts_kind_check check (kind between 1 and 6),
  constraint alerts_level_check check (level >= 1 and told_level >= 0),
  constraint alerts_acknowledge_check check ((acknowledge_time is null) = (acknowledged_by is null))
);
create unique index alerts_open on hooklane.alerts (endpoint_id, kind) where close_time is null;
create index alerts_untold on hooklane.alerts (id)
  where not is_quiet and (told_level < level or (close_time is not null and not is_close_told));
create index alerts_tenant on hooklane.alerts (tenant, id);
create index alerts_tenant_open on hooklane.alerts (tenant, id) where close_time is null;
create index alerts_endpoint on hooklane.alerts (endpoint_id, id);
create index alerts_closed on hooklane.alerts (close_time) where close_time is not null;

-- What happened at an endpoint in a minute (by the time it was added up). Replicas count in memory and add what they
-- have every few seconds, so it costs nothing for each delivery, and a crash may lose the last seconds: for judging a
-- share or a growth, not for accounts. Attempts and deliveries of operational events are not counted.
create table hooklane.endpoint_minutes (
  minute             timestamptz not null,
  endpoint_id        uuid        not null,
  attempts           bigint      not null,
  failed_attempts    bigint      not null,
  -- that became FAILED
  failed_deliveries  bigint      not null,
  -- events on which the filter failed
  filter_errors      bigint      not null,
  constraint endpoint_minutes_pkey primary key (minute, endpoint_id),
  constraint endpoint_minutes_counts_check
    check (attempts >= failed_attempts and failed_attempts >= 0 and failed_deliveries >= 0 and filter_errors >= 0)
) with (fillfactor = 60);

-- Which chore was last begun when, so that of several replicas one does what need not be done by each.
create table hooklane.chore_turns (
  chore       text        not null,
  taken_time  timestamptz not null,
  constraint chore_turns_pkey primary key (chore)
) with (fillfactor = 10);

-- How far `hooklane.delivery.failed` has come in the timeline: everything visible in `since` is told of. Pages of what is
-- visible in `until` beside it are under way where that is set, told of up to (xid, delivery_id).
create table hooklane.failures_told (
  is_only      boolean     not null default true,
  since        pg_snapshot not null,
  since_time   timestamptz not null,
  until        pg_snapshot,
  until_time   timestamptz,
  xid          xid8,
  delivery_id  uuid,
  constraint failures_told_pkey primary key (is_only),
  constraint failures_told_only_check check (is_only),
  constraint failures_told_until_check
    check ((until is null) = (until_time is null) and (until is null) = (xid is null)
           and (until is null) = (delivery_id is null))
) with (fillfactor = 10);
-- From now on: what failed before was never promised to be told.
insert into hooklane.failures_told (since, since_time) values (pg_current_snapshot(), now());

-- Failures alone, so that looking for new ones reads nothing else. A row that is no failure costs the comparison.
create index timeline_failed on hooklane.timeline (xid, delivery_id) where kind = 5;

-- Who is told of failed deliveries: these are all the patterns that match `hooklane.delivery.failed`.
create index endpoints_told_of_failures on hooklane.endpoints (tenant)
  where delete_time is null
    and event_types && array['hooklane.*', 'hooklane.delivery.*', 'hooklane.delivery.failed'];
