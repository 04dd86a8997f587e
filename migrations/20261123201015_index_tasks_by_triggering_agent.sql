-- Serves: the organisation's list with `triggering_agent_id`, newest first.
CREATE INDEX tasks_by_triggering_agent
ON tasks (organization_id, triggering_agent_id, created_at DESC, id DESC)
WHERE triggering_agent_id IS NOT NULL;
