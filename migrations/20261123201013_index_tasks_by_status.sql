-- Serves: the organisation's list with `status`, newest first.
CREATE INDEX tasks_by_status ON tasks (organization_id, status, created_at DESC, id DESC);
