-- What happened to tasks. Events that runners push (tool calls, thoughts, fragments of the result)
-- are always stored; they are part of the activity log too. Turns and reports are stored while a
-- client watches the task. `data` is the event's own; for a report it is the state of the turn.
--
-- Serves: Store::read_events (those after a number, in order) and Store::get_activity by the
-- primary key.
CREATE TABLE task_events (
    organization_id uuid NOT NULL,
    task_id text COLLATE "C" NOT NULL,
    event bigint NOT NULL,
    turn integer NOT NULL,
    type text COLLATE "C" NOT NULL,
    data json NOT NULL,
    created_at timestamptz NOT NULL,
    PRIMARY KEY (organization_id, task_id, event),
    FOREIGN KEY (organization_id, task_id) REFERENCES tasks (organization_id, id) ON DELETE CASCADE
);

-- As in tasks: the planner must not believe that a new organization has few rows.
ALTER TABLE task_events ALTER COLUMN organization_id SET (n_distinct = 2);
