-- Publishing from SQL, in the caller's own transaction: `hooklane.publish` puts the event into `inbox`, and a worker moves
-- what was committed there through the same way as any publish. Only additions: an older replica leaves the inbox to the
-- newer ones.

-- What waits to be taken up. Rows go in the order of `seq`, the order of the calls; each is deleted by the transaction that
-- publishes its event, so that it is published once, whoever moves it. No NOTIFY: at each commit it would take a lock of
-- the whole cluster (16 connections fell from 13,400 to 4,700 transactions a second).
create table hooklane.inbox (
  seq              bigint    not null generated always as identity,
  -- the event's, as the caller was told; of a repeat, the first event's
  id               uuid      not null,
  tenant           text      not null,
  event_type       text      not null,
  payload          bytea     not null,
  idempotency_key  text,
  -- whether an event with this key was known already
  is_repeat        boolean   not null,
  -- null: none
  metadata         jsonb,
  priority         smallint  not null,
  ordering_key     text,
  deliver_time     timestamptz,
  expire_time      timestamptz,
  constraint inbox_pkey primary key (seq),
  constraint inbox_priority_check check (priority between 1 and 3)
) with (
  -- a queue: what vacuum has not removed yet, every look steps over
  autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000,
  autovacuum_vacuum_insert_scale_factor = 0, autovacuum_vacuum_insert_threshold = 50000,
  autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 50000,
  autovacuum_vacuum_cost_delay = 0
);
create index inbox_id on hooklane.inbox (id);
create index inbox_key on hooklane.inbox (tenant, idempotency_key) where idempotency_key is not null;

-- What became of an event that has no deliveries of its own because of its idempotency key: found when it was taken up,
-- after its caller had been answered. Null for all others.
alter table hooklane.events add column routing_note text;
alter table hooklane.events_kept add column routing_note text;

-- What replicas are set to, as far as `publish` has to know. Each writes it at its start.
create table hooklane.publish_limits (
  is_only            boolean  not null default true,
  payload_bytes_max  bigint   not null,
  constraint publish_limits_pkey primary key (is_only),
  constraint publish_limits_only_check check (is_only)
) with (fillfactor = 10);
insert into hooklane.publish_limits (payload_bytes_max) values (262144);

-- A UUIDv7 (RFC 9562, section 5.7): the time to the millisecond, and 74 random bits. Its body is bound to what it calls
-- when it is made, whatever a caller's search path says.
create function hooklane.new_uuid() returns uuid
  language sql volatile parallel safe
  return (
    select encode(set_byte(
      overlay(r.bytes placing substring(int8send(floor(extract(epoch from clock_timestamp()) * 1000)::bigint) from 3 for 6)
              from 1 for 6),
      6, (get_byte(r.bytes, 6) & 15) | 112), 'hex')::uuid
    from (select uuid_send(gen_random_uuid()) as bytes) r);

-- An id as callers see it: a prefix and 26 digits of Crockford's base32 (https://github.com/jetify-com/typeid).
create function hooklane.typeid(prefix text, id uuid) returns text
  language plpgsql immutable strict parallel safe
  set search_path = pg_catalog, pg_temp
as $$
declare
  bits    bit(130) := b'00' || ('x' || replace(id::text, '-', ''))::bit(128);
  answer  text := prefix || '_';
begin
  for place in 0..25 loop
    answer := answer || substr('0123456789abcdefghjkmnpqrstvwxyz', substring(bits from place * 5 + 1 for 5)::int + 1, 1);
  end loop;
  return answer;
end
$$;

-- How deep JSON is nested. Strings are taken out first, then everything that is no bracket.
create function hooklane.json_depth(payload text) returns bigint
  language sql immutable strict parallel safe
  return (
    select coalesce(max(depth), 0) from (
      select sum(case when bracket in ('[', '{') then 1 else -1 end) over (order by place) as depth
      from regexp_split_to_table(
             regexp_replace(regexp_replace(payload, '"(?:[^"\\]|\\.)*"', '', 'g'), '[^][{}]', '', 'g'), '')
           with ordinality as b (bracket, place)
      where bracket <> ''
    ) d);

-- Publishes an event to every endpoint that wants it, when and if the caller's transaction commits; answers the event's
-- id. A repeat of an idempotency key answers the first event's id. What an argument may hold is as for the call Publish:
-- anything else is refused here, with the argument as the error's COLUMN and what is allowed as its HINT.
create function hooklane.publish(
  event_type       text,
  payload          json,
  tenant           text        default 'default',
  idempotency_key  text        default null,
  ordering_key     text        default null,
  priority         text        default 'NORMAL',
  deliver_time     timestamptz default null,
  expire_time      timestamptz default null,
  metadata         jsonb       default null
) returns text
  language plpgsql volatile security definer
  set search_path = pg_catalog, pg_temp
as $$
declare
  body       bytea;
  bytes_max  bigint;
  rank       smallint;
  known      record;
  event_id   uuid;
  repeats    boolean := false;
begin
  if event_type is null then
    raise exception using errcode = 'null_value_not_allowed', column = 'event_type', message = 'event_type is null',
      hint = 'name the type of the event: 1 to 128 characters of [a-zA-Z0-9._-]';
  end if;
  if event_type collate "C" !~ '^[a-zA-Z0-9._-]{1,128}$' then
    raise exception using errcode = 'invalid_parameter_value', column = 'event_type',
      message = format('event_type %L is not an event type', left(event_type, 200)),
      hint = 'allowed are 1 to 128 characters of [a-zA-Z0-9._-]';
  end if;
  if starts_with(event_type, 'hooklane.') then
    raise exception using errcode = 'invalid_parameter_value', column = 'event_type',
      message = format('event_type %L is reserved for operational events', event_type),
      hint = 'allowed is a type that does not begin with hooklane.';
  end if;

  tenant := coalesce(nullif(tenant, ''), 'default');
  if tenant collate "C" !~ '^[a-zA-Z0-9._-]{1,64}$' then
    raise exception using errcode = 'invalid_parameter_value', column = 'tenant',
      message = format('tenant %L is not a tenant', left(tenant, 200)),
      hint = 'allowed are 1 to 64 characters of [a-zA-Z0-9._-]';
  end if;
  idempotency_key := nullif(idempotency_key, '');
  if idempotency_key collate "C" !~ '^[!-~]{1,255}$' then
    raise exception using errcode = 'invalid_parameter_value', column = 'idempotency_key',
      message = format('idempotency_key %L is not a key', left(idempotency_key, 200)),
      hint = 'allowed are 1 to 255 visible ASCII characters';
  end if;
  ordering_key := nullif(ordering_key, '');
  if ordering_key collate "C" !~ '^[!-~]{1,255}$' then
    raise exception using errcode = 'invalid_parameter_value', column = 'ordering_key',
      message = format('ordering_key %L is not a key', left(ordering_key, 200)),
      hint = 'allowed are 1 to 255 visible ASCII characters';
  end if;
  rank := array_position(array['HIGH', 'NORMAL', 'LOW'], coalesce(priority, 'NORMAL'));
  if rank is null then
    raise exception using errcode = 'invalid_parameter_value', column = 'priority',
      message = format('priority %L is not a priority', left(priority, 200)), hint = 'allowed are HIGH, NORMAL and LOW';
  end if;

  if deliver_time > clock_timestamp() + interval '366 days' then
    raise exception using errcode = 'invalid_parameter_value', column = 'deliver_time',
      message = format('deliver_time is %s, which is too far ahead', deliver_time),
      hint = 'allowed are 366 days from now';
  end if;
  -- One that has passed means at once.
  deliver_time := nullif(deliver_time, '-infinity');
  if not isfinite(expire_time) or expire_time <= greatest(clock_timestamp(), deliver_time) then
    raise exception using errcode = 'invalid_parameter_value', column = 'expire_time',
      message = format('expire_time is %s, which no delivery could meet', expire_time),
      hint = 'allowed is a time to come, after deliver_time';
  end if;

  if payload is null then
    raise exception using errcode = 'null_value_not_allowed', column = 'payload', message = 'payload is null',
      hint = 'give JSON; the JSON value null is written ''null''::json';
  end if;
  -- The text as it was given: `json` keeps it.
  body := convert_to(payload::text, 'UTF8');
  select l.payload_bytes_max into bytes_max from hooklane.publish_limits l;
  if octet_length(body) > bytes_max then
    raise exception using errcode = 'program_limit_exceeded', column = 'payload',
      message = format('payload has %s bytes', octet_length(body)),
      hint = format('allowed are %s (the setting limits.payload_bytes)', bytes_max);
  end if;
  -- Few payloads have so many brackets that counting how deep they go is worth it.
  if length(payload::text) - length(translate(payload::text, '[{', '')) > 128
     and hooklane.json_depth(payload::text) > 128 then
    raise exception using errcode = 'invalid_parameter_value', column = 'payload',
      message = 'payload is nested deeper than receivers can read', hint = 'allowed are 128 levels';
  end if;

  if metadata is not null then
    if jsonb_typeof(metadata) <> 'object' then
      raise exception using errcode = 'invalid_parameter_value', column = 'metadata',
        message = format('metadata is a JSON %s', jsonb_typeof(metadata)),
        hint = 'allowed is an object of strings, such as {"source": "shop"}';
    end if;
    if exists (select from jsonb_each(metadata) m where jsonb_typeof(m.value) <> 'string' or m.key = '') then
      raise exception using errcode = 'invalid_parameter_value', column = 'metadata',
        message = 'metadata has an entry that is no string, or has no name',
        hint = 'allowed is an object of strings, such as {"source": "shop"}';
    end if;
    if (select count(*) > 32 or sum(octet_length(m.key) + octet_length(m.value)) > 4096
        from jsonb_each_text(metadata) m) then
      raise exception using errcode = 'program_limit_exceeded', column = 'metadata',
        message = 'metadata is too large', hint = 'allowed are 32 entries and 4096 bytes of names and values together';
    end if;
    metadata := nullif(metadata, '{}');
  end if;

  if idempotency_key is not null then
    -- Waiting ones first: what is moved between the two looks is found by the second.
    select i.id, i.event_type = publish.event_type and i.payload = body as is_same, true as waits into known
    from hooklane.inbox i
    where i.tenant = publish.tenant and i.idempotency_key = publish.idempotency_key
    order by i.seq limit 1;
    if not found then
      select k.event_id as id, false as waits,
             k.fingerprint = sha256(convert_to(publish.event_type, 'UTF8') || '\x00'
                                    || convert_to('application/json', 'UTF8') || '\x00' || body) as is_same
        into known
      from hooklane.idempotency_keys k
      where k.tenant = publish.tenant and k.key = publish.idempotency_key
        and k.endpoint_id = '00000000-0000-0000-0000-000000000000' and k.expire_time > clock_timestamp();
    end if;
    if found then
      if not known.is_same then
        raise exception using errcode = 'unique_violation', column = 'idempotency_key',
          message = format('idempotency_key %L was used for another event', idempotency_key),
          hint = format('a repeat has the event_type and payload of %s, another event another key',
                        hooklane.typeid('evt', known.id));
      end if;
      if known.waits then
        return hooklane.typeid('evt', known.id);
      end if;
      -- Endpoints that have come since get the first event's deliveries.
      event_id := known.id;
      repeats := true;
    end if;
  end if;

  event_id := coalesce(event_id, hooklane.new_uuid());
  insert into hooklane.inbox (id, tenant, event_type, payload, idempotency_key, is_repeat, metadata, priority, ordering_key,
                              deliver_time, expire_time)
  values (event_id, publish.tenant, publish.event_type, body, publish.idempotency_key, repeats, publish.metadata, rank,
          publish.ordering_key, publish.deliver_time, publish.expire_time);
  return hooklane.typeid('evt', event_id);
end
$$;

-- The role that may publish and do nothing else; give it to those who do: `grant hooklane_publisher to shop`. Roles are the
-- cluster's, so it may be there already; a user who may make none is told by the README what to grant.
do $$
begin
  if not exists (select from pg_roles where rolname = 'hooklane_publisher') then
    create role hooklane_publisher nologin;
  end if;
exception
  -- another database of this cluster was migrated at the same moment, or this user may not
  when duplicate_object or unique_violation then null;
  when insufficient_privilege then
    raise notice 'the role hooklane_publisher was not created: this user may create none';
end
$$;

revoke all on function hooklane.publish(text, json, text, text, text, text, timestamptz, timestamptz, jsonb) from public;
revoke all on function hooklane.new_uuid(), hooklane.typeid(text, uuid), hooklane.json_depth(text) from public;
do $$
begin
  if exists (select from pg_roles where rolname = 'hooklane_publisher') then
    grant usage on schema hooklane to hooklane_publisher;
    grant execute on function hooklane.publish(text, json, text, text, text, text, timestamptz, timestamptz, jsonb)
      to hooklane_publisher;
  end if;
end
$$;
