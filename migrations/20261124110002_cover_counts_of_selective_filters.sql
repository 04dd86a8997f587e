-- The indexes of the selective filters take along whatever else can be asked of the same tasks, so that any combination
-- of filters is counted, and the way to a deep page found, from an index alone. Most of what they take along is null.
--
-- The table is vacuumed often enough to let an index alone answer.
--
-- Serves: Store::list_tasks, wherever task_counts does not have the total.
DROP INDEX tasks_by_parent;
CREATE INDEX tasks_by_parent ON tasks (organization_id, parent_task_id, created_at DESC, id DESC)
INCLUDE (agent_id, status, user_id, triggering_agent_id, internal_status)
WHERE parent_task_id IS NOT NULL;

DROP INDEX tasks_by_user;
CREATE INDEX tasks_by_user ON tasks (organization_id, user_id, created_at DESC, id DESC)
INCLUDE (agent_id, status, parent_task_id, triggering_agent_id, internal_status)
WHERE user_id IS NOT NULL;

DROP INDEX tasks_by_agent_user;
CREATE INDEX tasks_by_agent_user ON tasks (organization_id, agent_id, user_id, created_at DESC, id DESC)
INCLUDE (status, parent_task_id, triggering_agent_id, internal_status)
WHERE user_id IS NOT NULL;

DROP INDEX tasks_by_triggering_agent;
CREATE INDEX tasks_by_triggering_agent ON tasks (organization_id, triggering_agent_id, created_at DESC, id DESC)
INCLUDE (agent_id, status, user_id, parent_task_id, internal_status)
WHERE triggering_agent_id IS NOT NULL;

DROP INDEX tasks_by_agent_triggering_agent;
CREATE INDEX tasks_by_agent_triggering_agent
ON tasks (organization_id, agent_id, triggering_agent_id, created_at DESC, id DESC)
INCLUDE (status, user_id, parent_task_id, internal_status)
WHERE triggering_agent_id IS NOT NULL;

DROP INDEX tasks_by_internal_status;
CREATE INDEX tasks_by_internal_status ON tasks (organization_id, internal_status, created_at DESC, id DESC)
INCLUDE (agent_id, status, user_id, parent_task_id, triggering_agent_id)
WHERE internal_status IS NOT NULL;

DROP INDEX tasks_by_agent_internal_status;
CREATE INDEX tasks_by_agent_internal_status
ON tasks (organization_id, agent_id, internal_status, created_at DESC, id DESC)
INCLUDE (status, user_id, parent_task_id, triggering_agent_id)
WHERE internal_status IS NOT NULL;

ALTER TABLE tasks SET (
    autovacuum_vacuum_scale_factor = 0.02,
    autovacuum_vacuum_insert_scale_factor = 0.02,
    autovacuum_analyze_scale_factor = 0.05
);
