-- One row a task, which is a conversation: each invocation with the same id updates it. It holds what a list shows
-- and what lists filter by, nothing else; the rest is in task_turns.
--
-- Ids are the clients' own text, compared byte by byte (COLLATE "C") so that every server orders them alike.
--
-- Serves: Store::record_invocation, Store::record_report, Store::get_task by the primary key.
CREATE TYPE task_status AS ENUM ('pending', 'executing', 'paused', 'error', 'failed', 'completed', 'stopped');

CREATE TABLE tasks (
    organization_id uuid NOT NULL REFERENCES organizations (id),
    id text COLLATE "C" NOT NULL,
    agent_id text COLLATE "C" NOT NULL,
    user_id text COLLATE "C",
    parent_task_id text COLLATE "C",
    triggering_agent_id text COLLATE "C",
    status task_status NOT NULL,
    internal_status text COLLATE "C",
    source text NOT NULL,
    title text,
    result text,
    -- The number of the latest turn; turns are numbered from 1 without gaps.
    turns integer NOT NULL,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    PRIMARY KEY (organization_id, id)
);
