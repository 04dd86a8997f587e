-- Serves: the organisation's list with `internal_status`, newest first.
CREATE INDEX tasks_by_internal_status
ON tasks (organization_id, internal_status, created_at DESC, id DESC)
WHERE internal_status IS NOT NULL;
