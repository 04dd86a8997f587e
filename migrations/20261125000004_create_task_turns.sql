-- One row per turn: what was asked (without its secrets), what came of it, and when.
--
-- `input` and `request` are json, not jsonb: they are returned as received and never searched, so
-- neither the order of keys nor the digits of a number may change.
--
-- Serves: Store::get_task (the latest turn), Store::get_thread (all turns in order) and
-- Store::record_report by the primary key.
CREATE TABLE task_turns (
    organization_id uuid NOT NULL,
    task_id text COLLATE "C" NOT NULL,
    turn integer NOT NULL,
    input json NOT NULL,
    request json NOT NULL,
    -- What runners report about a turn beside its status and result: tokens, duration, tools, and
    -- what it waits for. Kept as received, in one column: no query searches in it.
    reported json NOT NULL DEFAULT '{}',
    status task_status NOT NULL,
    internal_status text COLLATE "C",
    result text COLLATE "C",
    last_executed_node_id text COLLATE "C",
    is_manually_stopped boolean NOT NULL,
    created_at timestamptz NOT NULL,
    started_at timestamptz,
    paused_at timestamptz,
    finished_at timestamptz,
    PRIMARY KEY (organization_id, task_id, turn),
    FOREIGN KEY (organization_id, task_id) REFERENCES tasks (organization_id, id) ON DELETE CASCADE
);

-- As in tasks: the planner must not believe that a new organization has few rows.
ALTER TABLE task_turns ALTER COLUMN organization_id SET (n_distinct = 2);

-- As in tasks.
DO $$
BEGIN
    ALTER TABLE task_turns
        ALTER COLUMN input SET COMPRESSION lz4,
        ALTER COLUMN request SET COMPRESSION lz4,
        ALTER COLUMN result SET COMPRESSION lz4;
EXCEPTION
    WHEN feature_not_supported THEN
        RAISE NOTICE 'this server has no lz4, long text keeps the default compression';
END
$$;
