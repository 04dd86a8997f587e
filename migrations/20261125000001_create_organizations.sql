-- The owners of the data. In every other table each key and each index begins with organization_id:
-- it separates the organizations, and it is the column to distribute by when one server is no
-- longer enough.
--
-- Every text column of the schema has COLLATE "C", so that every server compares and orders bytes
-- alike.
--
-- Serves: Store::bootstrap, Store::ensure_organization and Store::create_api_key (organization by
-- name).
CREATE TABLE organizations (
    id uuid PRIMARY KEY,
    name text COLLATE "C" NOT NULL UNIQUE,
    created_at timestamptz NOT NULL
);
