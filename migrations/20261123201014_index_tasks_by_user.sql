-- Serves: the organisation's list with `user_id`, newest first.
CREATE INDEX tasks_by_user ON tasks (organization_id, user_id, created_at DESC, id DESC)
WHERE user_id IS NOT NULL;
