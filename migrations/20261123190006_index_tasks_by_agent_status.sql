-- Serves: an agent's list with `status`, newest first.
CREATE INDEX tasks_by_agent_status ON tasks (organization_id, agent_id, status, created_at DESC, id DESC);
