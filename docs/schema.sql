-- The schema that the migrations make, written by `cargo xtask update`.

CREATE TYPE task_status AS ENUM (
    'pending',
    'executing',
    'paused',
    'error',
    'failed',
    'completed',
    'stopped'
);

CREATE TYPE task_change AS (
    organization_id uuid,
    agent_id text COLLATE "C",
    user_id text COLLATE "C",
    parent_task_id text COLLATE "C",
    triggering_agent_id text COLLATE "C",
    internal_status text COLLATE "C",
    created_at timestamp with time zone,
    status task_status,
    change bigint
);

CREATE TABLE organizations (
    id uuid NOT NULL,
    name text COLLATE "C" NOT NULL,
    created_at timestamp with time zone NOT NULL,
    CONSTRAINT organizations_pkey PRIMARY KEY (id),
    CONSTRAINT organizations_name_key UNIQUE (name)
);

CREATE TABLE task_counts (
    organization_id uuid NOT NULL,
    agent_id text COLLATE "C" NOT NULL,
    facet text COLLATE "C" NOT NULL,
    value text COLLATE "C" NOT NULL,
    grain smallint NOT NULL,
    since timestamp with time zone NOT NULL,
    pending bigint NOT NULL,
    executing bigint NOT NULL,
    paused bigint NOT NULL,
    error bigint NOT NULL,
    failed bigint NOT NULL,
    completed bigint NOT NULL,
    stopped bigint NOT NULL,
    CONSTRAINT task_counts_pkey PRIMARY KEY (organization_id, agent_id, facet, value, grain, since)
)
WITH (
    fillfactor = 80
);

ALTER TABLE task_counts ALTER COLUMN organization_id SET (n_distinct = 2);

CREATE TABLE watch_secret (
    id boolean NOT NULL DEFAULT true,
    secret bytea NOT NULL,
    CONSTRAINT watch_secret_pkey PRIMARY KEY (id),
    CONSTRAINT watch_secret_id_check CHECK (id)
);

CREATE TABLE api_keys (
    organization_id uuid NOT NULL,
    id uuid NOT NULL,
    name text COLLATE "C" NOT NULL,
    prefix text COLLATE "C" NOT NULL,
    digest bytea NOT NULL,
    can_write boolean NOT NULL,
    created_at timestamp with time zone NOT NULL,
    expires_at timestamp with time zone,
    revoked_at timestamp with time zone,
    last_used_at timestamp with time zone,
    CONSTRAINT api_keys_pkey PRIMARY KEY (organization_id, id),
    CONSTRAINT api_keys_digest_key UNIQUE (digest),
    CONSTRAINT api_keys_organization_id_fkey FOREIGN KEY (organization_id) REFERENCES organizations(id)
);

CREATE TABLE tasks (
    organization_id uuid NOT NULL,
    id text COLLATE "C" NOT NULL,
    agent_id text COLLATE "C" NOT NULL,
    user_id text COLLATE "C",
    parent_task_id text COLLATE "C",
    triggering_agent_id text COLLATE "C",
    status task_status NOT NULL,
    internal_status text COLLATE "C",
    source text COLLATE "C" NOT NULL,
    title text COMPRESSION lz4 COLLATE "C",
    result text COMPRESSION lz4 COLLATE "C",
    turns integer NOT NULL,
    events bigint NOT NULL DEFAULT 0,
    created_at timestamp with time zone NOT NULL,
    updated_at timestamp with time zone NOT NULL,
    CONSTRAINT tasks_pkey PRIMARY KEY (organization_id, id),
    CONSTRAINT tasks_organization_id_fkey FOREIGN KEY (organization_id) REFERENCES organizations(id)
)
WITH (
    autovacuum_analyze_scale_factor = 0.05,
    autovacuum_vacuum_insert_scale_factor = 0.02,
    autovacuum_vacuum_scale_factor = 0.02
);

ALTER TABLE tasks ALTER COLUMN organization_id SET (n_distinct = 2);
ALTER TABLE tasks ALTER COLUMN id SET (n_distinct = -1);

CREATE INDEX tasks_by_agent ON public.tasks USING btree (organization_id, agent_id, created_at DESC, id DESC);
CREATE INDEX tasks_by_agent_internal_status ON public.tasks USING btree (organization_id, agent_id, internal_status, created_at DESC, id DESC) INCLUDE (status, user_id, parent_task_id, triggering_agent_id) WHERE (internal_status IS NOT NULL);
CREATE INDEX tasks_by_agent_status ON public.tasks USING btree (organization_id, agent_id, status, created_at DESC, id DESC);
CREATE INDEX tasks_by_agent_triggering_agent ON public.tasks USING btree (organization_id, agent_id, triggering_agent_id, created_at DESC, id DESC) INCLUDE (status, user_id, parent_task_id, internal_status) WHERE (triggering_agent_id IS NOT NULL);
CREATE INDEX tasks_by_agent_user ON public.tasks USING btree (organization_id, agent_id, user_id, created_at DESC, id DESC) INCLUDE (status, parent_task_id, triggering_agent_id, internal_status) WHERE (user_id IS NOT NULL);
CREATE INDEX tasks_by_internal_status ON public.tasks USING btree (organization_id, internal_status, created_at DESC, id DESC) INCLUDE (agent_id, status, user_id, parent_task_id, triggering_agent_id) WHERE (internal_status IS NOT NULL);
CREATE INDEX tasks_by_organization ON public.tasks USING btree (organization_id, created_at DESC, id DESC);
CREATE INDEX tasks_by_parent ON public.tasks USING btree (organization_id, parent_task_id, created_at DESC, id DESC) INCLUDE (agent_id, status, user_id, triggering_agent_id, internal_status) WHERE (parent_task_id IS NOT NULL);
CREATE INDEX tasks_by_status ON public.tasks USING btree (organization_id, status, created_at DESC, id DESC);
CREATE INDEX tasks_by_triggering_agent ON public.tasks USING btree (organization_id, triggering_agent_id, created_at DESC, id DESC) INCLUDE (agent_id, status, user_id, parent_task_id, internal_status) WHERE (triggering_agent_id IS NOT NULL);
CREATE INDEX tasks_by_user ON public.tasks USING btree (organization_id, user_id, created_at DESC, id DESC) INCLUDE (agent_id, status, parent_task_id, triggering_agent_id, internal_status) WHERE (user_id IS NOT NULL);

CREATE TABLE idempotency_keys (
    organization_id uuid NOT NULL,
    agent_id text COLLATE "C" NOT NULL,
    key text COLLATE "C" NOT NULL,
    request bytea NOT NULL,
    task_id text COLLATE "C" NOT NULL,
    answer text COLLATE "C",
    created_at timestamp with time zone NOT NULL,
    turn integer,
    CONSTRAINT idempotency_keys_pkey PRIMARY KEY (organization_id, agent_id, key),
    CONSTRAINT idempotency_keys_organization_id_task_id_fkey FOREIGN KEY (organization_id, task_id) REFERENCES tasks(organization_id, id) ON DELETE CASCADE
);

ALTER TABLE idempotency_keys ALTER COLUMN organization_id SET (n_distinct = 2);

CREATE INDEX idempotency_keys_by_age ON public.idempotency_keys USING btree (organization_id, created_at);
CREATE INDEX idempotency_keys_by_task ON public.idempotency_keys USING btree (organization_id, task_id);

CREATE TABLE task_events (
    organization_id uuid NOT NULL,
    task_id text COLLATE "C" NOT NULL,
    event bigint NOT NULL,
    turn integer NOT NULL,
    type text COLLATE "C" NOT NULL,
    data json NOT NULL,
    created_at timestamp with time zone NOT NULL,
    CONSTRAINT task_events_pkey PRIMARY KEY (organization_id, task_id, event),
    CONSTRAINT task_events_organization_id_task_id_fkey FOREIGN KEY (organization_id, task_id) REFERENCES tasks(organization_id, id) ON DELETE CASCADE
);

ALTER TABLE task_events ALTER COLUMN organization_id SET (n_distinct = 2);

CREATE TABLE task_turns (
    organization_id uuid NOT NULL,
    task_id text COLLATE "C" NOT NULL,
    turn integer NOT NULL,
    input json COMPRESSION lz4 NOT NULL,
    request json COMPRESSION lz4 NOT NULL,
    reported json NOT NULL DEFAULT '{}'::json,
    status task_status NOT NULL,
    internal_status text COLLATE "C",
    result text COMPRESSION lz4 COLLATE "C",
    last_executed_node_id text COLLATE "C",
    is_manually_stopped boolean NOT NULL,
    created_at timestamp with time zone NOT NULL,
    started_at timestamp with time zone,
    paused_at timestamp with time zone,
    finished_at timestamp with time zone,
    CONSTRAINT task_turns_pkey PRIMARY KEY (organization_id, task_id, turn),
    CONSTRAINT task_turns_organization_id_task_id_fkey FOREIGN KEY (organization_id, task_id) REFERENCES tasks(organization_id, id) ON DELETE CASCADE
);

ALTER TABLE task_turns ALTER COLUMN organization_id SET (n_distinct = 2);

CREATE OR REPLACE FUNCTION public.announce_deleted_tasks()
 RETURNS trigger
 LANGUAGE plpgsql
AS $function$
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
$function$;

CREATE OR REPLACE FUNCTION public.count_tasks()
 RETURNS trigger
 LANGUAGE plpgsql
AS $function$
DECLARE
    changes task_change[];
    organization uuid;
BEGIN
    IF TG_OP = 'INSERT' THEN
        changes := ARRAY(
            SELECT (
                organization_id, agent_id, user_id, parent_task_id, triggering_agent_id,
                internal_status, created_at, status, 1
            )::task_change
            FROM new_tasks
        );
    ELSIF TG_OP = 'DELETE' THEN
        changes := ARRAY(
            SELECT (
                organization_id, agent_id, user_id, parent_task_id, triggering_agent_id,
                internal_status, created_at, status, -1
            )::task_change
            FROM old_tasks
        );
    ELSE
        -- Most updates change nothing that is counted, or only the status.
        changes := ARRAY(
            SELECT (
                organization_id, agent_id, user_id, parent_task_id, triggering_agent_id,
                internal_status, created_at, status, sum(change)
            )::task_change
            FROM (
                SELECT organization_id, agent_id, user_id, parent_task_id, triggering_agent_id,
                       internal_status, created_at, status, 1 AS change
                FROM new_tasks
                UNION ALL
                SELECT organization_id, agent_id, user_id, parent_task_id, triggering_agent_id,
                       internal_status, created_at, status, -1
                FROM old_tasks
            ) AS both_sides
            GROUP BY organization_id, agent_id, user_id, parent_task_id, triggering_agent_id,
                     internal_status, created_at, status
            HAVING sum(change) <> 0
        );
    END IF;
    IF cardinality(changes) = 0 THEN
        RETURN NULL;
    END IF;
    FOR organization IN
        SELECT DISTINCT changed.organization_id FROM unnest(changes) AS changed ORDER BY 1
    LOOP
        PERFORM pg_advisory_xact_lock(hashtextextended('task_counts ' || organization, 0));
    END LOOP;
    INSERT INTO task_counts AS counted
    SELECT changed.organization_id, counts.agent_id, counts.facet, counts.value, counts.grain,
           counts.since,
           COALESCE(sum(changed.change) FILTER (WHERE changed.status = 'pending'), 0),
           COALESCE(sum(changed.change) FILTER (WHERE changed.status = 'executing'), 0),
           COALESCE(sum(changed.change) FILTER (WHERE changed.status = 'paused'), 0),
           COALESCE(sum(changed.change) FILTER (WHERE changed.status = 'error'), 0),
           COALESCE(sum(changed.change) FILTER (WHERE changed.status = 'failed'), 0),
           COALESCE(sum(changed.change) FILTER (WHERE changed.status = 'completed'), 0),
           COALESCE(sum(changed.change) FILTER (WHERE changed.status = 'stopped'), 0)
    FROM unnest(changes) AS changed
    CROSS JOIN LATERAL task_count_rows(
        changed.agent_id, changed.user_id, changed.parent_task_id, changed.triggering_agent_id,
        changed.internal_status, changed.created_at
    ) AS counts
    GROUP BY changed.organization_id, counts.agent_id, counts.facet, counts.value, counts.grain,
             counts.since
    ON CONFLICT (organization_id, agent_id, facet, value, grain, since) DO UPDATE
    SET pending = counted.pending + EXCLUDED.pending,
        executing = counted.executing + EXCLUDED.executing,
        paused = counted.paused + EXCLUDED.paused,
        error = counted.error + EXCLUDED.error,
        failed = counted.failed + EXCLUDED.failed,
        completed = counted.completed + EXCLUDED.completed,
        stopped = counted.stopped + EXCLUDED.stopped;
    RETURN NULL;
END
$function$;

CREATE OR REPLACE FUNCTION public.forget_task_counts()
 RETURNS trigger
 LANGUAGE plpgsql
AS $function$
BEGIN
    TRUNCATE task_counts;
    RETURN NULL;
END
$function$;

CREATE OR REPLACE FUNCTION public.task_count_rows(agent_id text, user_id text, parent_task_id text, triggering_agent_id text, internal_status text, created_at timestamp with time zone)
 RETURNS TABLE(agent_id text, facet text, value text, grain smallint, since timestamp with time zone)
 LANGUAGE sql
 STABLE
AS $function$
    SELECT scope.agent_id, row.facet, row.value, row.grain::smallint, row.since
    FROM (VALUES ($1), ('')) AS scope (agent_id)
    CROSS JOIN (
        VALUES
            ('', '', 0, '-infinity'::timestamptz),
            ('', '', 1, date_trunc('month', $6, 'UTC')),
            ('', '', 2, date_trunc('day', $6, 'UTC')),
            ('', '', 3, date_trunc('hour', $6, 'UTC')),
            ('user', $2, 0, '-infinity'),
            ('parent', $3, 0, '-infinity'),
            ('triggering_agent', $4, 0, '-infinity'),
            ('internal_status', $5, 0, '-infinity')
    ) AS row (facet, value, grain, since)
    WHERE row.value IS NOT NULL
$function$;

CREATE OR REPLACE FUNCTION public.watch_key(salt bytea, task text)
 RETURNS integer
 LANGUAGE plpgsql
 IMMUTABLE
AS $function$
DECLARE
    owner bytea := sha256(salt);
    item bytea := sha256(salt || convert_to(task, 'UTF8'));
BEGIN
    RETURN (get_byte(owner, 0) << 23) | (get_byte(owner, 1) << 15)
        | ((get_byte(owner, 2) >> 3) << 10)
        | (get_byte(item, 0) << 2) | (get_byte(item, 1) >> 6);
END
$function$;

CREATE OR REPLACE FUNCTION public.watch_salt(organization uuid)
 RETURNS bytea
 LANGUAGE sql
 STABLE
AS $function$
    SELECT secret || uuid_send(organization) FROM watch_secret
$function$;

CREATE OR REPLACE FUNCTION public.watched_buckets(buckets integer[])
 RETURNS integer[]
 LANGUAGE sql
AS $function$
    SELECT buckets
$function$;

CREATE OR REPLACE FUNCTION public.watched_tasks(organization uuid, tasks text[])
 RETURNS text[]
 LANGUAGE plpgsql
AS $function$
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
$function$;

CREATE TRIGGER announce_deleted_tasks AFTER DELETE ON public.tasks REFERENCING OLD TABLE AS deleted FOR EACH STATEMENT EXECUTE FUNCTION announce_deleted_tasks();
CREATE TRIGGER count_changed_tasks AFTER UPDATE ON public.tasks REFERENCING OLD TABLE AS old_tasks NEW TABLE AS new_tasks FOR EACH STATEMENT EXECUTE FUNCTION count_tasks();
CREATE TRIGGER count_deleted_tasks AFTER DELETE ON public.tasks REFERENCING OLD TABLE AS old_tasks FOR EACH STATEMENT EXECUTE FUNCTION count_tasks();
CREATE TRIGGER count_new_tasks AFTER INSERT ON public.tasks REFERENCING NEW TABLE AS new_tasks FOR EACH STATEMENT EXECUTE FUNCTION count_tasks();
CREATE TRIGGER count_no_tasks AFTER TRUNCATE ON public.tasks FOR EACH STATEMENT EXECUTE FUNCTION forget_task_counts();
