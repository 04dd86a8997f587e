-- What happened to tasks, for those who watch: what runners push (tool calls, thoughts, fragments of the result), which
-- is also part of the activity log, and turns and reports while somebody listens. `data` is the event's own; for a
-- report it is how far the turn had come.
--
-- Serves: Store::read_events (those after a number, in order) and Store::get_activity by the primary key.
CREATE TABLE task_events (
    organization_id uuid NOT NULL,
    task_id text COLLATE "C" NOT NULL,
    event bigint NOT NULL,
    turn integer NOT NULL,
    type text NOT NULL,
    data json NOT NULL,
    created_at timestamptz NOT NULL,
    PRIMARY KEY (organization_id, task_id, event),
    FOREIGN KEY (organization_id, task_id) REFERENCES tasks (organization_id, id) ON DELETE CASCADE
);
