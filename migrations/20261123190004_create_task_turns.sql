-- One row a turn: what was asked (less its secrets), how it went, and when.
--
-- `input` and `request` are json, not jsonb: they are returned as received and never searched, so neither the order
-- of keys nor the digits of a number may change.
--
-- Serves: Store::get_task (the latest turn) and threads (all turns in order) by the primary key.
CREATE TABLE task_turns (
    organization_id uuid NOT NULL,
    task_id text COLLATE "C" NOT NULL,
    turn integer NOT NULL,
    input json NOT NULL,
    request json NOT NULL,
    status task_status NOT NULL,
    internal_status text,
    result text,
    last_executed_node_id text,
    is_manually_stopped boolean NOT NULL,
    created_at timestamptz NOT NULL,
    started_at timestamptz,
    paused_at timestamptz,
    finished_at timestamptz,
    PRIMARY KEY (organization_id, task_id, turn),
    FOREIGN KEY (organization_id, task_id) REFERENCES tasks (organization_id, id) ON DELETE CASCADE
);
