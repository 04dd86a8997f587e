-- Who owns the data. Every other table's keys and indexes begin with organization_id: it is the wall between
-- tenants, and the column to distribute by when one server is no longer enough.
--
-- Serves: Store::bootstrap, Store::create_api_key (organisation by name).
CREATE TABLE organizations (
    id uuid PRIMARY KEY,
    name text COLLATE "C" NOT NULL UNIQUE,
    created_at timestamptz NOT NULL
);
