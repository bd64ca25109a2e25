-- Endpoints to which nothing is sent at present: few, and looked at every few seconds for attempts whose worker died,
-- because no claim comes by that would record them.
create index endpoints_stopped on hooklane.endpoints (id) where state <> 1 and delete_time is null;
