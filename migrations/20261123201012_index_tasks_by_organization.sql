-- Serves: the organisation's list, newest first, without a filter or in a range of `created_at`.
CREATE INDEX tasks_by_organization ON tasks (organization_id, created_at DESC, id DESC);
