-- The answers to invocations with an Idempotency-Key. The same request sent again gets the same
-- answer and records nothing. A row lives as long as its task.
--
-- `request` is the SHA-256 of the request. It tells a repetition from another request that uses the
-- key by mistake.
--
-- Serves: Store::record_invocation_once by the primary key; Store::delete_task by the index.
CREATE TABLE idempotency_keys (
    organization_id uuid NOT NULL,
    agent_id text COLLATE "C" NOT NULL,
    key text COLLATE "C" NOT NULL,
    request bytea NOT NULL,
    task_id text COLLATE "C" NOT NULL,
    answer text COLLATE "C" NOT NULL,
    created_at timestamptz NOT NULL,
    PRIMARY KEY (organization_id, agent_id, key),
    FOREIGN KEY (organization_id, task_id) REFERENCES tasks (organization_id, id) ON DELETE CASCADE
);

-- As in tasks: the planner must not believe that a new organization has few rows.
ALTER TABLE idempotency_keys ALTER COLUMN organization_id SET (n_distinct = 2);

-- The foreign key's cascade when a task is deleted.
CREATE INDEX idempotency_keys_by_task ON idempotency_keys (organization_id, task_id);
