-- Attempts are looked up by their delivery; rows that end no attempt, such as the QUEUED one of every delivery, never
-- are. Left out of the index, they cost a publish one index entry a delivery less.
drop index hooklane.timeline_delivery;
create index timeline_attempts on hooklane.timeline (delivery_id, time) where number is not null;
