-- API keys. The key itself is never stored, only its SHA-256. The keys that the service makes are
-- 256 random bits: no dictionary attack is possible, and a slow hash would only delay every
-- request. An operator who chooses the key of the first start should choose a random one. `prefix`
-- is the start of the key, so that a person can recognize it.
--
-- Serves: Store::authenticate (key by digest), Store::list_api_keys, Store::revoke_api_key.
-- Store::authenticate is the one statement that runs before the organization is known, so `digest`
-- is unique by itself.
CREATE TABLE api_keys (
    organization_id uuid NOT NULL REFERENCES organizations (id),
    id uuid NOT NULL,
    name text COLLATE "C" NOT NULL,
    prefix text COLLATE "C" NOT NULL,
    digest bytea NOT NULL UNIQUE,
    can_write boolean NOT NULL,
    created_at timestamptz NOT NULL,
    expires_at timestamptz,
    revoked_at timestamptz,
    last_used_at timestamptz,
    PRIMARY KEY (organization_id, id)
);
