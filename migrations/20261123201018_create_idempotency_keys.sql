-- The answers to invocations that carried an Idempotency-Key, so that the same request sent again is answered with them
-- and records nothing. They live as long as their task.
--
-- `request` is the SHA-256 of the request, to tell a repetition from another request that uses its key by mistake.
--
-- Serves: Store::record_invocation_once by the primary key; the index serves the deletion of a task.
CREATE TABLE idempotency_keys (
    organization_id uuid NOT NULL,
    agent_id text COLLATE "C" NOT NULL,
    key text COLLATE "C" NOT NULL,
    request bytea NOT NULL,
    task_id text COLLATE "C" NOT NULL,
    answer text NOT NULL,
    created_at timestamptz NOT NULL,
    PRIMARY KEY (organization_id, agent_id, key),
    FOREIGN KEY (organization_id, task_id) REFERENCES tasks (organization_id, id) ON DELETE CASCADE
);

CREATE INDEX idempotency_keys_by_task ON idempotency_keys (organization_id, task_id);
