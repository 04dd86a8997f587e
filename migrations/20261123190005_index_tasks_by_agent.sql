-- Serves: an agent's list, newest first, without a filter.
CREATE INDEX tasks_by_agent ON tasks (organization_id, agent_id, created_at DESC, id DESC);
