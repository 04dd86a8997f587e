-- Serves: an agent's list with `user_id`, newest first.
CREATE INDEX tasks_by_agent_user ON tasks (organization_id, agent_id, user_id, created_at DESC, id DESC)
WHERE user_id IS NOT NULL;
