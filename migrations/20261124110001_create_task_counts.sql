-- How many tasks there are, in each status: of an organisation and of each of its agents (`agent_id` is '' for all of
-- them); for all time (`grain` 0, `since` -infinity) and for each UTC month (1), day (2) and hour (3) of `created_at`; for
-- all time also by user, triggering agent and internal status: `facet` says which of them, `value` whom.
--
-- Triggers keep it, statement by statement, in the transaction that changes the rows, whoever changes them: so it can't
-- drift, and `task-history verify` proves it. Rows that have come to zero stay, as those of the present will be needed
-- again.
--
-- A transaction that changes counts holds its organisation's advisory lock until it ends. Counts of all time are
-- rows that every one of them changes, so they would wait for each other anyway; the lock makes them wait in one place,
-- where they can't wait for each other in a circle.
--
-- Serves: Store::list_tasks (totals, and the way to a deep page), Store::verify.
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
-- A row's next versions shall find room on its page: then the index need not change.
WITH (fillfactor = 80);

-- The rows that count one task.
CREATE FUNCTION task_count_rows(
    agent_id text, user_id text, triggering_agent_id text, internal_status text, created_at timestamptz
)
RETURNS TABLE (agent_id text, facet text, value text, grain smallint, since timestamptz)
LANGUAGE sql STABLE AS $$
    SELECT scope.agent_id, row.facet, row.value, row.grain::smallint, row.since
    FROM (VALUES ($1), ('')) AS scope (agent_id)
    CROSS JOIN (
        VALUES
            ('', '', 0, '-infinity'::timestamptz),
            ('', '', 1, date_trunc('month', $5, 'UTC')),
            ('', '', 2, date_trunc('day', $5, 'UTC')),
            ('', '', 3, date_trunc('hour', $5, 'UTC')),
            ('user', $2, 0, '-infinity'),
            ('triggering_agent', $3, 0, '-infinity'),
            ('internal_status', $4, 0, '-infinity')
    ) AS row (facet, value, grain, since)
    WHERE row.value IS NOT NULL
$$;

-- What a statement did to tasks: rows that are gone (-1) and rows that are new (+1).
CREATE TYPE task_change AS (
    organization_id uuid,
    agent_id text,
    user_id text,
    triggering_agent_id text,
    internal_status text,
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
                organization_id, agent_id, user_id, triggering_agent_id, internal_status, created_at, status, 1
            )::task_change
            FROM new_tasks
        );
    ELSIF TG_OP = 'DELETE' THEN
        changes := ARRAY(
            SELECT (
                organization_id, agent_id, user_id, triggering_agent_id, internal_status, created_at, status, -1
            )::task_change
            FROM old_tasks
        );
    ELSE
        -- Most updates change nothing that is counted, or only the status.
        changes := ARRAY(
            SELECT (
                organization_id, agent_id, user_id, triggering_agent_id, internal_status, created_at, status,
                sum(change)
            )::task_change
            FROM (
                SELECT organization_id, agent_id, user_id, triggering_agent_id, internal_status, created_at,
                       status, 1 AS change
                FROM new_tasks
                UNION ALL
                SELECT organization_id, agent_id, user_id, triggering_agent_id, internal_status, created_at,
                       status, -1
                FROM old_tasks
            ) AS both_sides
            GROUP BY organization_id, agent_id, user_id, triggering_agent_id, internal_status, created_at, status
            HAVING sum(change) <> 0
        );
    END IF;
    IF cardinality(changes) = 0 THEN
        RETURN NULL;
    END IF;
    FOR organization IN SELECT DISTINCT c.organization_id FROM unnest(changes) AS c ORDER BY 1 LOOP
        PERFORM pg_advisory_xact_lock(hashtextextended('task_counts ' || organization, 0));
    END LOOP;
    INSERT INTO task_counts AS counted
    SELECT c.organization_id, r.agent_id, r.facet, r.value, r.grain, r.since,
           COALESCE(sum(c.change) FILTER (WHERE c.status = 'pending'), 0),
           COALESCE(sum(c.change) FILTER (WHERE c.status = 'executing'), 0),
           COALESCE(sum(c.change) FILTER (WHERE c.status = 'paused'), 0),
           COALESCE(sum(c.change) FILTER (WHERE c.status = 'error'), 0),
           COALESCE(sum(c.change) FILTER (WHERE c.status = 'failed'), 0),
           COALESCE(sum(c.change) FILTER (WHERE c.status = 'completed'), 0),
           COALESCE(sum(c.change) FILTER (WHERE c.status = 'stopped'), 0)
    FROM unnest(changes) AS c
    CROSS JOIN LATERAL task_count_rows(
        c.agent_id, c.user_id, c.triggering_agent_id, c.internal_status, c.created_at
    ) AS r
    GROUP BY c.organization_id, r.agent_id, r.facet, r.value, r.grain, r.since
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
REFERENCING NEW TABLE AS new_tasks FOR EACH STATEMENT EXECUTE FUNCTION count_tasks();

CREATE TRIGGER count_changed_tasks AFTER UPDATE ON tasks
REFERENCING OLD TABLE AS old_tasks NEW TABLE AS new_tasks FOR EACH STATEMENT EXECUTE FUNCTION count_tasks();

CREATE TRIGGER count_deleted_tasks AFTER DELETE ON tasks
REFERENCING OLD TABLE AS old_tasks FOR EACH STATEMENT EXECUTE FUNCTION count_tasks();

CREATE TRIGGER count_no_tasks AFTER TRUNCATE ON tasks
FOR EACH STATEMENT EXECUTE FUNCTION forget_task_counts();

-- The tasks that are there already. The triggers' creation has locked the table, so none comes in between.
INSERT INTO task_counts
SELECT t.organization_id, r.agent_id, r.facet, r.value, r.grain, r.since,
       count(*) FILTER (WHERE t.status = 'pending'),
       count(*) FILTER (WHERE t.status = 'executing'),
       count(*) FILTER (WHERE t.status = 'paused'),
       count(*) FILTER (WHERE t.status = 'error'),
       count(*) FILTER (WHERE t.status = 'failed'),
       count(*) FILTER (WHERE t.status = 'completed'),
       count(*) FILTER (WHERE t.status = 'stopped')
FROM tasks AS t
CROSS JOIN LATERAL task_count_rows(
    t.agent_id, t.user_id, t.triggering_agent_id, t.internal_status, t.created_at
) AS r
GROUP BY t.organization_id, r.agent_id, r.facet, r.value, r.grain, r.since;
