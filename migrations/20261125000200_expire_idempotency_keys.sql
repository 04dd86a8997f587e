-- Idempotency keys expire, and name the turn that was recorded first instead of keeping its whole
-- answer: the answer is made again. `turn` is NULL and `answer` is not in rows of the version
-- before, which get that answer until they expire. That version writes both columns as it did.
--
-- The index is built while idempotent invocations wait, about a second for a million keys. Built
-- CONCURRENTLY, it would wait for an instance that waits for this migration.
--
-- Serves: Store::record_invocation (the oldest keys of an organization, which it removes).
ALTER TABLE idempotency_keys ADD COLUMN turn integer;
ALTER TABLE idempotency_keys ALTER COLUMN answer DROP NOT NULL;
CREATE INDEX idempotency_keys_by_age ON idempotency_keys (organization_id, created_at);
