-- Serves: an agent's list with `internal_status`, newest first.
CREATE INDEX tasks_by_agent_internal_status
ON tasks (organization_id, agent_id, internal_status, created_at DESC, id DESC)
WHERE internal_status IS NOT NULL;
