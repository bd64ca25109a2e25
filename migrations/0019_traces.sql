-- The trace that an event belongs to: 16 bytes of trace id, 8 of the span that published it, 1 of flags, as in the binary
-- form of W3C's trace context. Null where the publisher named none and no trace is recorded. Whoever delivers it, on any
-- replica and at any attempt, goes on with that trace.
--
-- A new column without a default: the tables are locked for a moment, nothing is rewritten or read. Its length is not
-- checked here, because a check would read every event that is kept; what has another length reads as no trace.

alter table hooklane.events add column trace bytea;
-- Of events that outlast their day as well, where there is a table of them.
alter table if exists hooklane.events_kept add column if not exists trace bytea;
