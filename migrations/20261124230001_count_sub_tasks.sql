-- Sub-tasks are counted by their parent too, so that every filter alone has its total in one row, however many tasks it
-- shows. A sub-task costs two more rows of counts, its first sibling's included.
--
-- Serves: Store::list_tasks (the total of a parent's sub-tasks, and which end of them a deep page is nearer to),
-- Store::verify.

-- Nothing is written between the last count by the old function and the first by the new one.
LOCK TABLE tasks IN SHARE ROW EXCLUSIVE MODE;

-- The rows that count one task.
CREATE FUNCTION task_count_rows(
    agent_id text, user_id text, parent_task_id text, triggering_agent_id text, internal_status text,
    created_at timestamptz
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

ALTER TYPE task_change ADD ATTRIBUTE parent_task_id text;

CREATE OR REPLACE FUNCTION count_tasks() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    changes task_change[];
    organization uuid;
BEGIN
    IF TG_OP = 'INSERT' THEN
        changes := ARRAY(
            SELECT (
                organization_id, agent_id, user_id, triggering_agent_id, internal_status, created_at, status, 1,
                parent_task_id
            )::task_change
            FROM new_tasks
        );
    ELSIF TG_OP = 'DELETE' THEN
        changes := ARRAY(
            SELECT (
                organization_id, agent_id, user_id, triggering_agent_id, internal_status, created_at, status, -1,
                parent_task_id
            )::task_change
            FROM old_tasks
        );
    ELSE
        -- Most updates change nothing that is counted, or only the status.
        changes := ARRAY(
            SELECT (
                organization_id, agent_id, user_id, triggering_agent_id, internal_status, created_at, status,
                sum(change), parent_task_id
            )::task_change
            FROM (
                SELECT organization_id, agent_id, user_id, parent_task_id, triggering_agent_id, internal_status,
                       created_at, status, 1 AS change
                FROM new_tasks
                UNION ALL
                SELECT organization_id, agent_id, user_id, parent_task_id, triggering_agent_id, internal_status,
                       created_at, status, -1
                FROM old_tasks
            ) AS both_sides
            GROUP BY organization_id, agent_id, user_id, parent_task_id, triggering_agent_id, internal_status,
                     created_at, status
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
        c.agent_id, c.user_id, c.parent_task_id, c.triggering_agent_id, c.internal_status, c.created_at
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

DROP FUNCTION task_count_rows(text, text, text, text, timestamptz);

-- The sub-tasks that are there already.
INSERT INTO task_counts
SELECT t.organization_id, scope.agent_id, 'parent', t.parent_task_id, 0, '-infinity',
       count(*) FILTER (WHERE t.status = 'pending'),
       count(*) FILTER (WHERE t.status = 'executing'),
       count(*) FILTER (WHERE t.status = 'paused'),
       count(*) FILTER (WHERE t.status = 'error'),
       count(*) FILTER (WHERE t.status = 'failed'),
       count(*) FILTER (WHERE t.status = 'completed'),
       count(*) FILTER (WHERE t.status = 'stopped')
FROM tasks AS t
CROSS JOIN LATERAL (VALUES (t.agent_id), ('')) AS scope (agent_id)
WHERE t.parent_task_id IS NOT NULL
GROUP BY t.organization_id, scope.agent_id, t.parent_task_id;
