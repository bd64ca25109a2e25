-- Successes in the order of their transactions, as streams read them. What settled before has none, so ten million rows are
-- read through to find nothing. Publishes and readers go on meanwhile; what settles waits, and is written then.
set local statement_timeout = 0;
create index settled_succeeded_xid on hooklane.settled_succeeded (xid) where xid is not null;
