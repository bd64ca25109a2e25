-- What resume tokens of the live stream rest on.

-- Authenticates them: drawn once for a database, by whichever replica looks first, so that a token outlives restarts and
-- is good on every replica. It signs nothing else; whoever can read it can read the timeline itself.
create table hooklane.stream_key (
  id   smallint not null default 1,
  key  bytea    not null,
  constraint stream_key_pkey primary key (id),
  constraint stream_key_one_check check (id = 1),
  constraint stream_key_length_check check (length(key) = 32)
);

-- The clusters this database has lived on, and since when it has lived on each. A restored dump brings transaction ids
-- along that mean nothing where they are restored, and would be met again there: what is older than the arrival is no
-- part of the stream. '-infinity' is the cluster of the beginning.
create table hooklane.stream_clusters (
  system_identifier  bigint      not null,
  since              timestamptz not null,
  constraint stream_clusters_pkey primary key (system_identifier)
);
