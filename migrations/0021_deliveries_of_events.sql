-- Two indexes a delivery less. Each entry of one is written to the log as well, and they were a fifth of what a delivery
-- cost.
--
-- The deliveries of an event are a range of ids now: a delivery's id begins with the first 64 bits of its event's. Those
-- that are made later (by a replay, or by a repeat that finds new endpoints) have ids of their own time, because an id
-- tells when a delivery was made, and stand here with their event. So do those that are there already. What an older
-- replica publishes while replicas are replaced is found by everything but its event.
create table hooklane.deliveries_apart (
  delivery_id  uuid  not null,
  event_id     uuid  not null,
  tenant       text  not null,
  constraint deliveries_apart_pkey primary key (delivery_id)
);
create index deliveries_apart_event on hooklane.deliveries_apart (event_id);

-- Ten million take half a minute; nobody waits for it but this replica.
set local statement_timeout = 0;
insert into hooklane.deliveries_apart (delivery_id, event_id, tenant)
select d.id, d.event_id, d.tenant from hooklane.deliveries d
where substring(uuid_send(d.id) for 8) <> substring(uuid_send(d.event_id) for 8)
on conflict do nothing;

-- The first and the last id that a delivery made with an event may have.
create function hooklane.deliveries_from(event_id uuid) returns uuid
  language sql immutable strict parallel safe
  return encode(overlay(uuid_send(event_id) placing '\x8000000000000000'::bytea from 9), 'hex')::uuid;
create function hooklane.deliveries_to(event_id uuid) returns uuid
  language sql immutable strict parallel safe
  return encode(overlay(uuid_send(event_id) placing '\xbfffffffffffffff'::bytea from 9), 'hex')::uuid;
revoke all on function hooklane.deliveries_from(uuid), hooklane.deliveries_to(uuid) from public;

drop index hooklane.outstanding_event;
drop index hooklane.settled_succeeded_event;
drop index hooklane.settled_failed_event;

-- Whoever names no tenants has one, and its deliveries by age are all deliveries by age: `settled_succeeded_pkey` has
-- them. Other tenants' are found whoever else has how many.
drop index hooklane.settled_succeeded_tenant;
create index settled_succeeded_tenant on hooklane.settled_succeeded (tenant, id) where tenant <> 'default';
