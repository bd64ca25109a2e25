-- How fast an endpoint is sent to, and when sending stops. Only additions: older replicas go on beside it, by none of
-- these rules.
--
-- The circuit stands on the endpoint's own row because every claim reads that row: an open one is refused there, without
-- another look-up, whoever drives the lane and whatever that one remembers. It changes on transitions alone, no index
-- has its columns as keys, and it is no change of what an owner decides, so it moves neither etag nor configuration version.
-- Whether an open circuit may be probed by now follows from `circuit_until`: that needs no write.

alter table hooklane.endpoints
  -- null: unlimited
  add column rate_per_second      double precision,
  -- 0: `rate_per_second` rounded up
  add column rate_burst           bigint           not null default 0,
  -- 0: no circuit breaker
  add column circuit_threshold    bigint           not null default 10,
  add column circuit_open_ms      bigint           not null default 30000,
  add column circuit_open_max_ms  bigint           not null default 3600000,
  -- 0: never disabled for failing
  add column disable_failures     bigint           not null default 10,
  add column disable_failing_ms   bigint           not null default 86400000,
  -- why it is disabled, in words; null in any other state
  add column disabled_reason      text,
  -- null: closed. Nothing is sent before it; after it one probe at a time
  add column circuit_until        timestamptz,
  -- since when it has been open, for the last time
  add column circuit_opened_at    timestamptz,
  -- how often it opened since it was last closed: each time it stays open for twice as long
  add column circuit_openings     integer          not null default 0,
  add constraint endpoints_rate_check check (rate_per_second > 0 and rate_burst >= 0),
  add constraint endpoints_circuit_policy_check
    check (circuit_threshold >= 0 and circuit_open_ms > 0 and circuit_open_max_ms >= circuit_open_ms),
  add constraint endpoints_disable_policy_check check (disable_failures >= 0 and disable_failing_ms >= 0),
  add constraint endpoints_circuit_check
    check ((circuit_until is null) = (circuit_openings = 0) and (circuit_until is null) = (circuit_opened_at is null)),
  add constraint endpoints_disabled_reason_check check (disabled_reason is null or state = 3);

-- The first failure after the last success. An older replica leaves it as it is: it counts only while it is later than
-- the last success.
alter table hooklane.endpoint_health add column failing_since timestamptz;
update hooklane.endpoint_health set failing_since = last_failure_time where consecutive_failures > 0;

-- Like `endpoints_stopped`: endpoints whose circuit is not closed, few, for which no claim comes by soon.
create index endpoints_tripped on hooklane.endpoints (id) where circuit_until is not null and delete_time is null;
