-- What an endpoint's owner decides about its requests: headers of their own, which events, when to retry, and secrets
-- that overlap while they are rotated. Only additions: older replicas go on beside it.

-- Where a CloudEvents body says the event comes from; null: `/hooklane/<tenant>`. Kept with the event, because the body
-- must stay the same on every attempt, whatever the setting of the replica that makes it.
alter table hooklane.events add column cloudevents_source text;

alter table hooklane.endpoints
  -- name: value, sent with every request
  add column headers               jsonb not null default '{}',
  -- [{event_types, retry_policy}], the first that matches counts
  add column event_retry_policies  jsonb not null default '[]',
  -- a CEL expression that an event must satisfy; null: none
  add column filter                text,
  -- set: unlisted, never matched by fan-out; tells what tenant, url and secret it was published to with
  add column inline_digest         bytea,
  add constraint endpoints_inline_digest_check check (length(inline_digest) = 32);
create unique index endpoints_inline_digest on hooklane.endpoints (inline_digest)
  where inline_digest is not null and delete_time is null;

alter table hooklane.endpoint_secrets
  -- null: the secret signs by the endpoint's scheme. Set when a rotation changed between HMAC and Ed25519: until it
  -- expires, the former secret goes on signing by the scheme it was made for
  add column signature_scheme  smallint,
  -- what verifies an Ed25519 key's signatures, as it is shown
  add column public_key        text,
  add constraint endpoint_secrets_signature_scheme_check check (signature_scheme between 1 and 5);

-- Events on which the filter failed.
alter table hooklane.endpoint_health
  add column filter_error_count  bigint not null default 0,
  add constraint endpoint_health_filter_errors_check check (filter_error_count >= 0);
