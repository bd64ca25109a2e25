-- Who runs on this database. A row is one stay of one process: whoever lost its connection or was silent for too long
-- comes back with another id. So what another replica says of an id is never about a later stay, and a row that is gone
-- is gone for good.
--
-- Rows are removed by their owner when it ends, and by any other replica once the owner is dead: its session, which
-- holds the advisory lock `session_key`, has ended, or it has been silent for 10 s.
create table hooklane.replicas (
  id           uuid        not null,
  -- of the process: what attempts show, and what lanes are dealt by
  name         text        not null,
  -- of the program
  version      text        not null,
  api          boolean     not null,
  worker       boolean     not null,
  -- it drives lanes, or is about to: the others leave those to it that fall to it
  drives       boolean     not null,
  -- the drivers it reckons with, itself included: it claims for no lane that falls to one of the others
  sees         uuid[]      not null,
  session_key  bigint      not null,
  join_time    timestamptz not null,
  beat_time    timestamptz not null,
  constraint replicas_pkey primary key (id),
  constraint replicas_drives_check check (worker or not drives)
) with (fillfactor = 50);
