-- What operators do with history: lists that stay fast, dead letters, replays, statistics. Only additions: older replicas
-- go on beside it, and what they settle appears in all of it but the statistics.
--
-- The indexes are built while settling waits. A history of ten million rows takes some ten seconds.

-- ── lists ──────────────────────────────────────────────────────────────────────────────────────────────────────────

-- A tenant's deliveries by age, whoever else has how many. Appended to at nearly the same place for each tenant.
create index settled_succeeded_tenant on hooklane.settled_succeeded (tenant, id);
create index settled_failed_tenant on hooklane.settled_failed (tenant, id);

-- ── dead letters ───────────────────────────────────────────────────────────────────────────────────────────────────

-- A FAILED delivery is a dead letter until its time is over, or it was dismissed (DeleteDeadLetters), retried or replayed.
alter table hooklane.settled_failed
  add column dismiss_time timestamptz,
  add constraint settled_failed_dismiss_check check (dismiss_time is null or state = 5);

-- One for each way to ask, so that neither dismissed ones nor other tenants' are stepped over. Failed rows alone have
-- them, and those have at least one attempt behind them, mostly six.
create index settled_failed_dead on hooklane.settled_failed (settle_time, id)
  where state = 5 and dismiss_time is null;
create index settled_failed_dead_tenant on hooklane.settled_failed (tenant, settle_time, id)
  where state = 5 and dismiss_time is null;
create index settled_failed_dead_endpoint on hooklane.settled_failed (endpoint_id, settle_time, id)
  where state = 5 and dismiss_time is null;

-- ── replays ────────────────────────────────────────────────────────────────────────────────────────────────────────

-- A replay first collects what it is about, as its items, and then puts them back in small batches. Both move in the
-- transaction that does the work, so whoever goes on finds exactly what is left.
create table hooklane.replays (
  id              uuid              not null,
  tenant          text              not null,
  -- the filter, as requested; empty arrays: no condition, but no states: FAILED
  endpoint_ids    uuid[]            not null,
  event_types     text[]            not null,
  states          smallint[]        not null,
  create_after    timestamptz,
  create_before   timestamptz,
  delivery_ids    uuid[]            not null,
  dry_run         boolean           not null,
  -- 0: unlimited
  max_per_second  double precision  not null,
  -- 1 RUNNING, 2 COMPLETED, 3 CANCELED, 4 FAILED
  state           smallint          not null,
  -- collecting: the range that is walked (null: all were), and the last id of it that was looked at
  walk            integer,
  walked_to       uuid,
  matched         bigint            not null default 0,
  replayed        bigint            not null default 0,
  skipped         bigint            not null default 0,
  -- not worked on before: keeps the pace over restarts and replicas
  next_time       timestamptz       not null,
  error           text,
  create_time     timestamptz       not null,
  end_time        timestamptz,
  -- whether items and lanes of an ended one are gone
  is_cleared      boolean           not null default false,
  constraint replays_pkey primary key (id),
  constraint replays_state_check check (state between 1 and 4),
  constraint replays_end_check check ((state = 1) = (end_time is null)),
  constraint replays_error_check check ((state = 4) = (error is not null)),
  constraint replays_pace_check check (max_per_second >= 0),
  constraint replays_counts_check check (matched >= 0 and replayed >= 0 and skipped >= 0)
) with (fillfactor = 50);
create index replays_tenant on hooklane.replays (tenant, id);
create index replays_uncleared on hooklane.replays (id) where not is_cleared;

-- What a replay is about: a settled delivery as it stood when it was collected. One that has moved since is not there
-- any more under its settle time, and is skipped.
create table hooklane.replay_items (
  replay_id     uuid         not null,
  endpoint_id   uuid         not null,
  id            uuid         not null,
  settle_time   timestamptz  not null,
  is_succeeded  boolean      not null,
  constraint replay_items_pkey primary key (replay_id, endpoint_id, id)
);

-- How far each endpoint's part has come: one that is slow or paused does not hold up the others.
create table hooklane.replay_lanes (
  replay_id    uuid         not null,
  endpoint_id  uuid         not null,
  -- items up to this one are done
  done_to      uuid         not null default '00000000-0000-0000-0000-000000000000',
  items_left   bigint       not null,
  -- not looked at before
  look_time    timestamptz  not null default '-infinity',
  constraint replay_lanes_pkey primary key (replay_id, endpoint_id),
  constraint replay_lanes_left_check check (items_left >= 0)
) with (fillfactor = 50);

-- Deliveries that a replay made anew, from SUCCEEDED ones. Beside the deliveries: no hot row carries it.
create table hooklane.replay_deliveries (
  delivery_id  uuid  not null,
  replay_id    uuid  not null,
  constraint replay_deliveries_pkey primary key (delivery_id)
);

-- ── statistics ─────────────────────────────────────────────────────────────────────────────────────────────────────

-- What each process counted in a minute, an hour or a day (grain 1, 2, 3): a row is written by its process alone, with
-- all it has counted so far, so that one written twice says the same. The nil endpoint is the tenant's sum.
-- Histograms are those of `domain::histogram`.
create table hooklane.stats (
  grain        smallint     not null,
  start_time   timestamptz  not null,
  tenant       text         not null,
  endpoint_id  uuid         not null,
  writer       uuid         not null,
  attempts     bigint       not null,
  succeeded    bigint       not null,
  failed       bigint       not null,
  -- of the attempts, together
  duration_us  bigint       not null,
  durations    bytea        not null,
  end_to_end   bytea        not null,
  constraint stats_pkey primary key (grain, start_time, tenant, endpoint_id, writer),
  constraint stats_grain_check check (grain between 1 and 3),
  constraint stats_counts_check check (attempts >= 0 and succeeded >= 0 and failed >= 0 and duration_us >= 0)
) with (fillfactor = 70);
