-- In what order deliveries go: priorities, times before and after which nothing is sent, and endpoints that want one
-- after the other. Only additions: older replicas go on beside it. They publish without order, and do not let the next
-- of a key go on; a chore of the newer ones does that in their place.

-- As published. An event that said nothing is NORMAL, has no key and no times.
alter table hooklane.events
  add column priority      smallint not null default 2,
  add column ordering_key  text,
  add column deliver_time  timestamptz,
  add column expire_time   timestamptz;

alter table hooklane.endpoints
  -- UNORDERED 1, BY_KEY 2, FIFO 3
  add column ordering             smallint not null default 1,
  -- when the head of a key has no retry left: BLOCK 1, SKIP 2
  add column ordering_on_failure  smallint not null default 1,
  add constraint endpoints_ordering_check check (ordering between 1 and 3),
  add constraint endpoints_ordering_on_failure_check check (ordering_on_failure between 1 and 2);

-- A delivery of an ordered endpoint has the key it is ordered by and its place behind that key. Of each key the first
-- one is due like any other delivery; those behind it are parked: due at infinity, where neither claim nor sweep reads
-- them. When the first has come to its end, the transaction that ends it makes the next one due.
-- Checked for new rows alone: the others have none of these values, and looking at each of them would hold up claims.
alter table hooklane.outstanding
  -- null: not ordered. Empty: the one key of a FIFO endpoint
  add column order_key  text,
  add column seq        bigint,
  -- not sent after this; null: no such time
  add column expire_at  timestamptz,
  add constraint outstanding_order_check check ((order_key is null) = (seq is null)) not valid,
  add constraint outstanding_parked_check
    check (due_at < 'infinity' or (order_key is not null and state <> 2)) not valid;
create index outstanding_order on hooklane.outstanding (endpoint_id, order_key, seq) where order_key is not null;
create index outstanding_expire on hooklane.outstanding (expire_at) where expire_at is not null;

-- What a retry by hand needs to put a delivery back in its place.
alter table hooklane.settled_failed
  add column order_key  text,
  add column seq        bigint,
  add column expire_at  timestamptz;

-- Drawn under the lock of the key's row, so that places behind a key are in the order of commits.
create sequence hooklane.order_seq as bigint;

-- A row for each key with something outstanding, or with a failed head that blocks it: its lock is what publishing to
-- the key and ending its head take turns by. It is made by the first publish and removed with the last delivery.
create table hooklane.order_keys (
  endpoint_id   uuid        not null,
  key           text        not null,
  -- whether it was there when somebody published to it: tells an insert from a conflict, nothing else
  is_shared     boolean     not null default false,
  -- the failed delivery that everything behind it waits for, and when that was settled
  blocked_by    uuid,
  blocked_time  timestamptz,
  constraint order_keys_pkey primary key (endpoint_id, key),
  constraint order_keys_blocked_check check ((blocked_by is null) = (blocked_time is null))
) with (
  fillfactor = 50,
  autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000,
  autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 50000,
  autovacuum_vacuum_cost_delay = 0
);
create index order_keys_blocked on hooklane.order_keys (endpoint_id, key) where blocked_by is not null;
