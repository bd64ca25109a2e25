-- An event's deliveries that wait from the same moment on are queued in one row of the timeline.
alter table hooklane.timeline
  -- of a QUEUED row: what else was queued with `delivery_id` at `endpoint_id`, in the same order; null: nothing
  add column more_deliveries  uuid[],
  add column more_endpoints   uuid[];

-- Every transition of every delivery, a row each: what the timeline tells, and what the successes do. Apart, each is read
-- in the order of its transactions.
create view hooklane.timeline_transitions as
  select t.time, t.xid, d.delivery_id, d.endpoint_id, t.event_id, t.kind, t.state, t.priority, t.attempt_count, t.number,
         t.started_at, t.duration_us, t.next_attempt_at, t.status, t.trigger, t.outcome, t.response_truncated, t.tenant,
         t.event_type, t.reason, t.url, t.error, t.response_headers, t.response_body, t.replica
  from hooklane.timeline t
  cross join lateral (
    select t.delivery_id, t.endpoint_id
    union all
    select m.delivery_id, m.endpoint_id from unnest(t.more_deliveries, t.more_endpoints) as m (delivery_id, endpoint_id)
  ) d;

create view hooklane.success_transitions as
  select s.settle_time as time, s.xid, s.id as delivery_id, s.endpoint_id, s.event_id, 4::smallint as kind,
         4::smallint as state, s.priority, s.attempt_count, s.attempt_count as number, s.started_at, s.duration_us,
         null::timestamptz as next_attempt_at, s.last_status as status, s.trigger, 1::smallint as outcome,
         s.response_truncated, s.tenant, s.event_type, null::text as reason, s.url, null::text as error,
         s.response_headers, s.response_body, s.replica
  from hooklane.settled_succeeded s
  where s.xid is not null;

create view hooklane.transitions as
  select * from hooklane.timeline_transitions union all select * from hooklane.success_transitions;
