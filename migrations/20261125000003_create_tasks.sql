-- One row per task. A task is a conversation: each invocation with the same id updates the row. The
-- row holds what a list shows and what lists filter by, nothing else; the rest is in task_turns.
--
-- Ids are the clients' own text.
--
-- Serves: Store::record_invocation, Store::record_report, Store::get_task and Store::delete_task by
-- the primary key; Store::list_tasks by the indexes below, each of which names its filter.
CREATE TYPE task_status AS ENUM (
    'pending', 'executing', 'paused', 'error', 'failed', 'completed', 'stopped'
);

CREATE TABLE tasks (
    organization_id uuid NOT NULL REFERENCES organizations (id),
    id text COLLATE "C" NOT NULL,
    agent_id text COLLATE "C" NOT NULL,
    user_id text COLLATE "C",
    parent_task_id text COLLATE "C",
    triggering_agent_id text COLLATE "C",
    status task_status NOT NULL,
    internal_status text COLLATE "C",
    source text COLLATE "C" NOT NULL,
    title text COLLATE "C",
    result text COLLATE "C",
    -- The number of the latest turn. Turns are numbered from 1 without gaps.
    turns integer NOT NULL,
    -- The number of the latest event: a turn, a report, a pushed event. Each write changes it under
    -- the lock on the row, so it numbers the rows of task_events, and a stream that has seen event
    -- n knows if it missed any.
    events bigint NOT NULL DEFAULT 0,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    PRIMARY KEY (organization_id, id)
)
-- The table is vacuumed often enough for index-only scans, and analyzed as its data changes.
WITH (
    autovacuum_vacuum_scale_factor = 0.02,
    autovacuum_vacuum_insert_scale_factor = 0.02,
    autovacuum_analyze_scale_factor = 0.05
);

-- Statistics do not know an organization that is newer than they are. The planner then believes
-- that it has few rows, and reads all of them instead of looking up an id. With two distinct values
-- it expects half of the table. Organizations may use the same ids (`task-1` in each); as statistics
-- then have few different ids, an id looks cheap to skip, so ids are declared distinct. Takes effect
-- at the next ANALYZE.
ALTER TABLE tasks ALTER COLUMN organization_id SET (n_distinct = 2);
ALTER TABLE tasks ALTER COLUMN id SET (n_distinct = -1);

-- lz4 takes a fraction of the default's time at nearly its size. A server that is built without lz4
-- keeps the default.
DO $$
BEGIN
    ALTER TABLE tasks
        ALTER COLUMN title SET COMPRESSION lz4,
        ALTER COLUMN result SET COMPRESSION lz4;
EXCEPTION
    WHEN feature_not_supported THEN
        RAISE NOTICE 'this server has no lz4, long text keeps the default compression';
END
$$;

-- The indexes of selective filters include every other column that a list can filter by. So an
-- index-only scan counts any combination of filters that task_counts has no total for, and finds
-- the way to a deep page. Most of the included values are null.

-- The organization's list, newest first, without a filter or in a range of `created_at`.
CREATE INDEX tasks_by_organization ON tasks (organization_id, created_at DESC, id DESC);

-- The organization's list with `status`, newest first.
CREATE INDEX tasks_by_status ON tasks (organization_id, status, created_at DESC, id DESC);

-- The organization's list with `user_id`, newest first.
CREATE INDEX tasks_by_user ON tasks (organization_id, user_id, created_at DESC, id DESC)
INCLUDE (agent_id, status, parent_task_id, triggering_agent_id, internal_status)
WHERE user_id IS NOT NULL;

-- The organization's list with `triggering_agent_id`, newest first.
CREATE INDEX tasks_by_triggering_agent
ON tasks (organization_id, triggering_agent_id, created_at DESC, id DESC)
INCLUDE (agent_id, status, user_id, parent_task_id, internal_status)
WHERE triggering_agent_id IS NOT NULL;

-- The organization's list with `internal_status`, newest first.
CREATE INDEX tasks_by_internal_status
ON tasks (organization_id, internal_status, created_at DESC, id DESC)
INCLUDE (agent_id, status, user_id, parent_task_id, triggering_agent_id)
WHERE internal_status IS NOT NULL;

-- Every list with `parent_task_id`, newest first, and the sub-tasks of a task in Store::get_task. A
-- parent has few sub-tasks: the agent is checked on each of them and needs no place in the key.
CREATE INDEX tasks_by_parent ON tasks (organization_id, parent_task_id, created_at DESC, id DESC)
INCLUDE (agent_id, status, user_id, triggering_agent_id, internal_status)
WHERE parent_task_id IS NOT NULL;

-- An agent's list, newest first, without a filter or in a range of `created_at`.
CREATE INDEX tasks_by_agent ON tasks (organization_id, agent_id, created_at DESC, id DESC);

-- An agent's list with `status`, newest first.
CREATE INDEX tasks_by_agent_status
ON tasks (organization_id, agent_id, status, created_at DESC, id DESC);

-- An agent's list with `user_id`, newest first.
CREATE INDEX tasks_by_agent_user
ON tasks (organization_id, agent_id, user_id, created_at DESC, id DESC)
INCLUDE (status, parent_task_id, triggering_agent_id, internal_status)
WHERE user_id IS NOT NULL;

-- An agent's list with `triggering_agent_id`, newest first.
CREATE INDEX tasks_by_agent_triggering_agent
ON tasks (organization_id, agent_id, triggering_agent_id, created_at DESC, id DESC)
INCLUDE (status, user_id, parent_task_id, internal_status)
WHERE triggering_agent_id IS NOT NULL;

-- An agent's list with `internal_status`, newest first.
CREATE INDEX tasks_by_agent_internal_status
ON tasks (organization_id, agent_id, internal_status, created_at DESC, id DESC)
INCLUDE (status, user_id, parent_task_id, triggering_agent_id)
WHERE internal_status IS NOT NULL;
