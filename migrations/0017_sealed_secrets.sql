-- Secrets at rest, and what an endpoint's connections are secured with. Only additions.
--
-- Sealed is what `endpoint_secrets` has a column for (`secret`, by the master key `key_id`) and, of an endpoint's own
-- settings, one value: its whole URL, its headers and the key of its client certificate. Where that is sealed, `url` is
-- empty, `headers` is an empty object and `client_key_pem` is null; `shown_url` goes on telling scheme, host, port and
-- path. An older replica finds no URL in such a row and says that it cannot read it, rather than sending without
-- credentials; so keys are set once every replica knows them.
alter table hooklane.endpoints
  -- null: not sealed
  add column sealed                  bytea,
  -- the master key that sealed it
  add column sealed_key_id           text,
  -- the version of the endpoint at which it was written, to which it is bound: the endpoint's own may have moved since
  add column sealed_version          bigint,
  -- certificates trusted beside the system's, and the certificates that are shown to a receiver which asks; null: none
  add column ca_pem                  text,
  add column client_certificate_pem  text,
  -- null also where it is sealed
  add column client_key_pem          text,
  add constraint endpoints_sealed_check
    check ((sealed is null) = (sealed_key_id is null) and (sealed is null) = (sealed_version is null)
           and (sealed is null or (url = '' and headers = '{}' and client_key_pem is null))),
  add constraint endpoints_client_certificate_check
    check (client_certificate_pem is not null or client_key_pem is null);

-- The master keys under which something may be sealed: a replica adds the one that it seals with before it begins, and
-- starts only with all of them. `sealed_check` is a known value under the key, so that another key of the same id is
-- told. `hooklane keys rotate` removes those under which nothing is left.
create table hooklane.encryption_keys (
  id            text        not null,
  sealed_check  bytea       not null,
  create_time   timestamptz not null,
  constraint encryption_keys_pkey primary key (id)
);
