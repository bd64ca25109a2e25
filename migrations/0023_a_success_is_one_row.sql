-- A success is one row: what its attempt came to stands with the settled delivery, whose transition it is, and the timeline
-- has no row of it. What a row costs is its own writing and that of each of its index entries; a delivery had four of
-- those after its last attempt, and has three.
--
-- What is there stays as it is, and so does what an older replica writes while replicas are replaced. Those columns are
-- null then. The next two migrations belong to it, each in a transaction of its own: this one and the last hold locks that
-- nothing can wait for long.
alter table hooklane.settled_succeeded
  -- of the attempt that succeeded; null: its row of the timeline has all of this
  add column xid                 xid8,
  add column started_at          timestamptz,
  add column duration_us         bigint,
  add column trigger             smallint,
  add column response_truncated  boolean,
  add column url                 text,
  -- `name: value` lines
  add column response_headers    text,
  add column response_body       bytea,
  add column replica             text;
