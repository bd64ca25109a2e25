-- Retention. Days that are over leave by partition; this is what has to be remembered of them. Only additions: older
-- replicas go on beside it, and drop nothing.

-- Payloads that are still needed when their day leaves `events`: of deliveries that wait, or that can still be retried or
-- replayed. Copied here before the day goes, and removed when the last of an event's deliveries has gone. Whoever looks for
-- an event looks in `events` first: most never see this table. The columns are those of `events`, which a test holds to it.
create table hooklane.events_kept (like hooklane.events including defaults including constraints);
alter table hooklane.events_kept add constraint events_kept_pkey primary key (id);

-- Partitions that are being detached in order to be dropped. The row is there before the detaching begins and goes with the
-- table, so that whoever comes after a crash goes on: what retention began is told from what somebody detached by hand,
-- which is left alone.
create table hooklane.leaving_partitions (
  partition   text         not null,
  parent      text         not null,
  leave_time  timestamptz  not null,
  constraint leaving_partitions_pkey primary key (partition)
);

-- Keys go by time, oldest first, a few thousand at a look: each look steps over what vacuum has not removed of those that
-- went before, long before they are a fifth of the table. With autovacuum's default share, of a day's millions nothing
-- would be removed for hours.
alter table hooklane.idempotency_keys set (
  autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 50000,
  autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 500000
);
