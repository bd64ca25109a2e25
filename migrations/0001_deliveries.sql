-- Everything of Hooklane stands in the schema `hooklane`, which exists before this: the list of applied migrations is
-- in it, too.
--
-- Ids are UUIDv7: they tell when they were drawn, so no table carries a create time of its own, newest-first lists
-- are descending ids, and `events` is partitioned by id.
--
-- Numbers of states, kinds, outcomes and triggers are those of the contract (proto/hooklane/v1).

-- When a UUIDv7 was drawn, to the millisecond (RFC 9562, section 5.7).
create function hooklane.uuid_time(id uuid) returns timestamptz
  language sql immutable strict parallel safe
  return to_timestamp(('x' || substr(replace(id::text, '-', ''), 1, 12))::bit(48)::bigint / 1000.0);

-- ── endpoints ──────────────────────────────────────────────────────────────────────────────────────────────────────

-- `config_version` moves with every change of the tenant's endpoints. A publish proves in its own statement that it
-- matched against the current one, so that it sees every endpoint whose registration was acknowledged before.
create table hooklane.tenants (
  tenant          text   not null,
  config_version  bigint not null,
  constraint tenants_pkey primary key (tenant)
);

create table hooklane.endpoints (
  id                uuid        not null,
  tenant            text        not null,
  url               text        not null,
  -- without user information and query: what history, logs and viewers may show
  shown_url         text        not null,
  description       text        not null,
  event_types       text[]      not null,
  signature_scheme  smallint    not null,
  payload_format    smallint    not null,
  -- null: the server's default
  retry_policy      jsonb,
  timeout_ms        integer     not null,
  max_in_flight     integer     not null,
  labels            jsonb       not null,
  external_id       text,
  state             smallint    not null,
  -- the etag: counts changes of what an owner decides
  version           bigint      not null,
  create_time       timestamptz not null,
  update_time       timestamptz not null,
  -- set: a tombstone, whose outstanding deliveries are being canceled
  delete_time       timestamptz,
  -- set: nothing can be outstanding for the tombstone any more
  drain_time        timestamptz,
  constraint endpoints_pkey primary key (id),
  constraint endpoints_state_check check (state between 1 and 3),
  constraint endpoints_signature_scheme_check check (signature_scheme between 1 and 5),
  constraint endpoints_payload_format_check check (payload_format between 1 and 5),
  constraint endpoints_timeout_check check (timeout_ms between 1000 and 300000),
  constraint endpoints_max_in_flight_check check (max_in_flight between 1 and 1024),
  constraint endpoints_version_check check (version >= 1),
  constraint endpoints_drain_check check (drain_time is null or delete_time is not null)
);
create unique index endpoints_external_id on hooklane.endpoints (tenant, external_id)
  where external_id is not null and delete_time is null;
create index endpoints_tenant on hooklane.endpoints (tenant, id) where delete_time is null;
create index endpoints_undrained on hooklane.endpoints (id) where delete_time is not null and drain_time is null;

-- The newest version signs; an older one signs too until it expires. `key_id` names the master key that `secret` is
-- sealed with; null: not sealed.
create table hooklane.endpoint_secrets (
  endpoint_id  uuid        not null,
  version      integer     not null,
  secret       bytea       not null,
  key_id       text,
  create_time  timestamptz not null,
  expire_time  timestamptz,
  constraint endpoint_secrets_pkey primary key (endpoint_id, version),
  constraint endpoint_secrets_version_check check (version >= 1)
);

-- Narrow and of its own, so that counting attempts never touches an endpoint's etag. Updated in place (HOT): no column
-- but the key is indexed, and half of each page is free.
create table hooklane.endpoint_health (
  endpoint_id           uuid             not null,
  score                 double precision not null default 1,
  consecutive_failures  integer          not null default 0,
  last_success_time     timestamptz,
  last_failure_time     timestamptz,
  constraint endpoint_health_pkey primary key (endpoint_id),
  constraint endpoint_health_score_check check (score between 0 and 1),
  constraint endpoint_health_failures_check check (consecutive_failures >= 0)
) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000);

-- ── events ─────────────────────────────────────────────────────────────────────────────────────────────────────────

-- A day a partition, by id. Payloads are written once and never updated.
create table hooklane.events (
  id               uuid  not null,
  tenant           text  not null,
  event_type       text  not null,
  payload          bytea not null,
  content_type     text  not null,
  idempotency_key  text,
  -- null: none
  metadata         jsonb,
  constraint events_pkey primary key (id)
) partition by range (id);

-- (tenant, key) names the event itself (nil endpoint); (tenant, key, endpoint) each delivery it made.
-- `fingerprint` is SHA-256 over event type, content type and payload: a repeat must have the same.
create table hooklane.idempotency_keys (
  tenant       text        not null,
  key          text        not null,
  endpoint_id  uuid        not null,
  event_id     uuid        not null,
  delivery_id  uuid,
  fingerprint  bytea       not null,
  expire_time  timestamptz not null,
  constraint idempotency_keys_pkey primary key (tenant, key, endpoint_id),
  constraint idempotency_keys_delivery_check
    check ((delivery_id is null) = (endpoint_id = '00000000-0000-0000-0000-000000000000')),
  constraint idempotency_keys_fingerprint_check check (length(fingerprint) = 32)
);
create index idempotency_keys_expire on hooklane.idempotency_keys (expire_time);

-- ── deliveries: one state, one place ───────────────────────────────────────────────────────────────────────────────

-- What is still to be done: small and hot. A claim changes no indexed column, so with a page's rest free (fillfactor
-- 60) it is a HOT update. A lapsed lease leaves the row in `outstanding_due` where the next claim finds it.
-- Autovacuum by count, not by share: a queue's dead rows slow its claims long before they are a tenth of a million.
create table hooklane.outstanding (
  id                  uuid        not null,
  endpoint_id         uuid        not null,
  event_id            uuid        not null,
  due_at              timestamptz not null,
  -- set while a worker holds the row
  lease_until         timestamptz,
  attempt_started_at  timestamptz,
  -- the fence: grows with every claim, cancel and retry; a change that names another one changes nothing
  claim_gen           integer     not null default 0,
  attempt_count       integer     not null default 0,
  -- of the present budget: a manual retry starts a fresh one
  retries_spent       integer     not null default 0,
  lost_count          integer     not null default 0,
  last_status         integer     not null default 0,
  state               smallint    not null,
  priority            smallint    not null,
  payload_format      smallint    not null,
  -- why the next (or present) attempt is made
  trigger             smallint    not null default 1,
  cancel_requested    boolean     not null default false,
  tenant              text        not null,
  event_type          text        not null,
  last_error          text,
  replica             text,
  constraint outstanding_pkey primary key (id),
  constraint outstanding_state_check check (state between 1 and 3),
  constraint outstanding_lease_check check ((state = 2) = (lease_until is not null)),
  constraint outstanding_in_flight_check check (state <> 2 or (attempt_started_at is not null and attempt_count > 0)),
  constraint outstanding_pending_check check (state <> 1 or attempt_count = 0),
  constraint outstanding_retrying_check check (state <> 3 or attempt_count > 0),
  constraint outstanding_cancel_check check (not cancel_requested or state = 2),
  constraint outstanding_priority_check check (priority between 1 and 3),
  constraint outstanding_counts_check
    check (claim_gen >= 0 and retries_spent >= 0 and lost_count >= 0 and attempt_count >= 0)
) with (
  fillfactor = 60,
  autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000,
  autovacuum_vacuum_insert_scale_factor = 0, autovacuum_vacuum_insert_threshold = 50000,
  autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 50000,
  autovacuum_vacuum_cost_delay = 0
);
create index outstanding_due on hooklane.outstanding (endpoint_id, priority, due_at);
create index outstanding_event on hooklane.outstanding (event_id);

-- What is done: appended once, a day a partition by settle time, dropped by the day.
create table hooklane.settled_succeeded (
  id              uuid        not null,
  endpoint_id     uuid        not null,
  event_id        uuid        not null,
  settle_time     timestamptz not null,
  claim_gen       integer     not null,
  attempt_count   integer     not null,
  last_status     integer     not null,
  priority        smallint    not null,
  payload_format  smallint    not null,
  tenant          text        not null,
  event_type      text        not null,
  constraint settled_succeeded_pkey primary key (id, settle_time)
) partition by range (settle_time);
create index settled_succeeded_endpoint on hooklane.settled_succeeded (endpoint_id, id);
create index settled_succeeded_event on hooklane.settled_succeeded (event_id);

-- FAILED, CANCELED, EXPIRED: each with its reason in words.
create table hooklane.settled_failed (
  id              uuid        not null,
  endpoint_id     uuid        not null,
  event_id        uuid        not null,
  settle_time     timestamptz not null,
  claim_gen       integer     not null,
  attempt_count   integer     not null,
  last_status     integer     not null,
  state           smallint    not null,
  priority        smallint    not null,
  payload_format  smallint    not null,
  tenant          text        not null,
  event_type      text        not null,
  reason          text        not null,
  last_error      text,
  constraint settled_failed_pkey primary key (id, settle_time),
  constraint settled_failed_state_check check (state between 5 and 7)
) partition by range (settle_time);
create index settled_failed_endpoint on hooklane.settled_failed (endpoint_id, id);
create index settled_failed_event on hooklane.settled_failed (event_id);

-- For readers: a delivery wherever it is.
create view hooklane.deliveries as
  select id, endpoint_id, event_id, tenant, event_type, state, priority, payload_format, claim_gen, attempt_count,
         last_status, last_error, null::text as reason, due_at, null::timestamptz as settle_time,
         lease_until, attempt_started_at, trigger, cancel_requested, replica
  from hooklane.outstanding
  union all
  select id, endpoint_id, event_id, tenant, event_type, 4::smallint, priority, payload_format, claim_gen, attempt_count,
         last_status, null::text, null::text, null::timestamptz, settle_time,
         null::timestamptz, null::timestamptz, null::smallint, false, null::text
  from hooklane.settled_succeeded
  union all
  select id, endpoint_id, event_id, tenant, event_type, state, priority, payload_format, claim_gen, attempt_count,
         last_status, last_error, reason, null::timestamptz, settle_time,
         null::timestamptz, null::timestamptz, null::smallint, false, null::text
  from hooklane.settled_failed;

-- ── timeline ───────────────────────────────────────────────────────────────────────────────────────────────────────

-- Every transition and every ended or lost attempt, written in the transaction that makes it; history and live stream
-- are both read from it. `xid` is the stream's cursor: which rows a snapshot could not see yet.
-- Attempt columns are null where the transition ended none.
create table hooklane.timeline (
  time                timestamptz not null,
  xid                 xid8        not null default pg_current_xact_id(),
  delivery_id         uuid        not null,
  endpoint_id         uuid        not null,
  event_id            uuid        not null,
  kind                smallint    not null,
  state               smallint    not null,
  priority            smallint    not null,
  attempt_count       integer     not null,
  number              integer,
  started_at          timestamptz,
  duration_us         bigint,
  next_attempt_at     timestamptz,
  status              integer,
  trigger             smallint,
  outcome             smallint,
  response_truncated  boolean,
  tenant              text        not null,
  event_type          text        not null,
  reason              text,
  url                 text,
  error               text,
  -- `name: value` lines
  response_headers    text,
  response_body       bytea,
  replica             text,
  constraint timeline_kind_check check (kind between 1 and 8),
  constraint timeline_state_check check (state between 1 and 7),
  constraint timeline_outcome_check check (outcome between 1 and 9),
  constraint timeline_attempt_check check ((number is null) = (outcome is null))
) partition by range (time);
create index timeline_delivery on hooklane.timeline (delivery_id, time);
create index timeline_xid on hooklane.timeline (xid);
