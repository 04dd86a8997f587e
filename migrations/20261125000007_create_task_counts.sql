-- How many tasks there are in each status: of an organization, and of each of its agents
-- (`agent_id` is '' for all of them). `grain` 0 counts all time (`since` is -infinity); 1, 2 and 3
-- count each UTC month, day and hour of `created_at`. All time is also counted by user, parent
-- task, triggering agent and internal status: `facet` says which of them, `value` is its value. So
-- every filter alone has its total in one row.
--
-- Triggers keep the counts, statement by statement, in the transaction that changes tasks, whatever
-- program runs it. So they cannot drift, and `task-history verify` proves it. Rows that reach zero
-- stay: the current ones are needed again.
--
-- A transaction that changes counts holds its organization's advisory lock until it ends. Each such
-- transaction changes the all-time rows, so they would wait for each other anyway. The lock makes
-- them wait in one place, where they cannot deadlock.
--
-- Serves: Store::list_tasks (totals, and the shorter way to a deep page), Store::verify.
CREATE TABLE task_counts (
    organization_id uuid NOT NULL,
    agent_id text COLLATE "C" NOT NULL,
    facet text COLLATE "C" NOT NULL,
    value text COLLATE "C" NOT NULL,
    grain smallint NOT NULL,
    since timestamptz NOT NULL,
    pending bigint NOT NULL,
    executing bigint NOT NULL,
    paused bigint NOT NULL,
    error bigint NOT NULL,
    failed bigint NOT NULL,
    completed bigint NOT NULL,
    stopped bigint NOT NULL,
    PRIMARY KEY (organization_id, agent_id, facet, value, grain, since)
)
-- Leaves room on each page for the next versions of its rows: then the index need not change.
WITH (fillfactor = 80);

-- As in tasks: the planner must not believe that a new organization has few rows.
ALTER TABLE task_counts ALTER COLUMN organization_id SET (n_distinct = 2);

-- The keys of the rows that count one task. A sub-task has two more rows than another task, for its
-- parent.
CREATE FUNCTION task_count_rows(
    agent_id text, user_id text, parent_task_id text, triggering_agent_id text,
    internal_status text, created_at timestamptz
)
RETURNS TABLE (agent_id text, facet text, value text, grain smallint, since timestamptz)
LANGUAGE sql STABLE AS $$
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
$$;

-- What a statement did to tasks: `change` is -1 for a row that is gone and +1 for a new one.
CREATE TYPE task_change AS (
    organization_id uuid,
    agent_id text COLLATE "C",
    user_id text COLLATE "C",
    parent_task_id text COLLATE "C",
    triggering_agent_id text COLLATE "C",
    internal_status text COLLATE "C",
    created_at timestamptz,
    status task_status,
    change bigint
);

CREATE FUNCTION count_tasks() RETURNS trigger LANGUAGE plpgsql AS $$
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
$$;

CREATE FUNCTION forget_task_counts() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    TRUNCATE task_counts;
    RETURN NULL;
END
$$;

CREATE TRIGGER count_new_tasks AFTER INSERT ON tasks
REFERENCING NEW TABLE AS new_tasks
FOR EACH STATEMENT EXECUTE FUNCTION count_tasks();

CREATE TRIGGER count_changed_tasks AFTER UPDATE ON tasks
REFERENCING OLD TABLE AS old_tasks NEW TABLE AS new_tasks
FOR EACH STATEMENT EXECUTE FUNCTION count_tasks();

CREATE TRIGGER count_deleted_tasks AFTER DELETE ON tasks
REFERENCING OLD TABLE AS old_tasks
FOR EACH STATEMENT EXECUTE FUNCTION count_tasks();

CREATE TRIGGER count_no_tasks AFTER TRUNCATE ON tasks
FOR EACH STATEMENT EXECUTE FUNCTION forget_task_counts();
