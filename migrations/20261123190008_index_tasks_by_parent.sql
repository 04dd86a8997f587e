-- Serves: an agent's list with `parent_task_id`, newest first, and the sub-tasks of a task in Store::get_task. A
-- parent has few sub-tasks, so the agent is checked on each and needs no place in the key.
CREATE INDEX tasks_by_parent ON tasks (organization_id, parent_task_id, created_at DESC, id DESC)
WHERE parent_task_id IS NOT NULL;
