-- Which tasks a client watches, told by advisory locks whose keys nobody outside the database can
-- compute. A client that could choose the key of its task could make the writes of other tasks pay
-- for NOTIFY. A key has 21 bits of the organization and 10 bits of the task, so an organization
-- shares its keys with no other.
--
-- A watcher holds 29810 of its task's key, shared, or 29812 of its organization, shared, if it has
-- many. A writer that can take these exclusively, for a moment, knows that there is no watcher. The
-- writer keeps 29811 of the key, shared, until its transaction ends. Nobody takes 29811
-- exclusively: a new watcher reads in pg_locks which transactions hold it, and waits until they
-- have ended.
--
-- Serves: Store::watch_task, Store::record_invocation, Store::record_report, Store::record_events,
-- Store::delete_task.
CREATE TABLE watch_secret (
    id boolean PRIMARY KEY DEFAULT true CHECK (id),
    secret bytea NOT NULL
);

INSERT INTO watch_secret (secret)
VALUES (uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid()));

-- What the keys of an organization are hashed with.
CREATE FUNCTION watch_salt(organization uuid) RETURNS bytea LANGUAGE sql STABLE AS $$
    SELECT secret || uuid_send(organization) FROM watch_secret
$$;

-- The key of a task. Shifted right by ten it is the key of its organization.
CREATE FUNCTION watch_key(salt bytea, task text) RETURNS integer LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
    owner bytea := sha256(salt);
    item bytea := sha256(salt || convert_to(task, 'UTF8'));
BEGIN
    RETURN (get_byte(owner, 0) << 23) | (get_byte(owner, 1) << 15)
        | ((get_byte(owner, 2) >> 3) << 10)
        | (get_byte(item, 0) << 2) | (get_byte(item, 1) >> 6);
END
$$;

-- Those of some tasks of an organization that are watched. A few more may be named: a writer that
-- tests at the same moment looks like a watcher.
CREATE FUNCTION watched_tasks(organization uuid, tasks text[]) RETURNS text[] LANGUAGE plpgsql
AS $$
DECLARE
    salt bytea := watch_salt(organization);
    task text;
    key integer;
    watched text[] := '{}';
BEGIN
    FOREACH task IN ARRAY tasks LOOP
        key := watch_key(salt, task);
        PERFORM pg_advisory_xact_lock_shared(29811, key);
        IF pg_try_advisory_lock(29810, key) THEN
            PERFORM pg_advisory_unlock(29810, key);
        ELSE
            watched := watched || task;
        END IF;
    END LOOP;
    IF pg_try_advisory_lock(29812, key >> 10) THEN
        PERFORM pg_advisory_unlock(29812, key >> 10);
    ELSIF key IS NOT NULL THEN
        watched := tasks;
    END IF;
    RETURN watched;
END
$$;

-- Writers of the version before this one do not know the keys above: they announce every write.
CREATE OR REPLACE FUNCTION watched_buckets(buckets integer[]) RETURNS integer[] LANGUAGE sql
AS $$
    SELECT buckets
$$;

-- A deletion ends the streams of its tasks. A trigger announces it, so that no caller can forget.
CREATE FUNCTION announce_deleted_tasks() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('task_history', organization || ' ' || task)
    FROM (
        SELECT organization_id AS organization, array_agg(id) AS tasks
        FROM deleted
        GROUP BY organization_id
    ) AS deleted,
    unnest(watched_tasks(organization, tasks)) AS task;
    RETURN NULL;
END
$$;

CREATE TRIGGER announce_deleted_tasks
AFTER DELETE ON tasks
REFERENCING OLD TABLE AS deleted
FOR EACH STATEMENT EXECUTE FUNCTION announce_deleted_tasks();
