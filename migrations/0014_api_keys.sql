-- API keys. Of the secret part there is a SHA-256 alone: 256 random bits need nothing slower, and nobody who reads this
-- table can call. Replicas read every live key each few seconds, so the table is small and stays so: a key that has been
-- over for 90 days is removed when the next one is made.
create table hooklane.api_keys (
  id              uuid        not null,
  -- who holds it, for people
  name            text        not null,
  -- 1 admin, 2 publisher, 3 operator, 4 viewer
  role            smallint    not null,
  -- null: every tenant
  tenant          text,
  secret_sha256   bytea       not null,
  create_time     timestamptz not null,
  -- null: never
  expire_time     timestamptz,
  -- null: not revoked
  revoke_time     timestamptz,
  -- to the minute, about
  last_used_time  timestamptz,
  constraint api_keys_pkey primary key (id),
  constraint api_keys_name_check check (length(name) between 1 and 128),
  constraint api_keys_role_check check (role between 1 and 4),
  constraint api_keys_secret_check check (octet_length(secret_sha256) = 32)
) with (fillfactor = 50);
