-- API keys. The key itself is never stored, only its SHA-256: the service's own keys are 256 random bits, so
-- there is no dictionary to defend against and a slow hash would only slow each request down. Who chooses a key for the
-- first start should choose one as random. `prefix` is the start of the
-- key, kept so that a person can recognise it.
--
-- Serves: Store::authenticate, which is the one statement that runs before an organisation is known. That is
-- why `digest` is unique by itself.
CREATE TABLE api_keys (
    organization_id uuid NOT NULL REFERENCES organizations (id),
    id uuid NOT NULL,
    name text NOT NULL,
    prefix text NOT NULL,
    digest bytea NOT NULL UNIQUE,
    can_write boolean NOT NULL,
    created_at timestamptz NOT NULL,
    expires_at timestamptz,
    revoked_at timestamptz,
    last_used_at timestamptz,
    PRIMARY KEY (organization_id, id)
);
