-- Which of some buckets have tasks that a client watches, in one call for a batch.
--
-- A watcher holds the bucket's first lock, shared, as long as it watches. A writer that can take
-- that lock exclusively, for a moment, knows that there is no watcher. The writer keeps the second
-- lock, shared, until its transaction ends. A new watcher waits there for the writers that may not
-- have seen it. So writers, which write many tasks at once, delay only a watcher that has just
-- started.
--
-- Serves: Store::record_invocation, Store::record_report, Store::record_events.
CREATE FUNCTION watched_buckets(buckets integer[]) RETURNS integer[] LANGUAGE plpgsql AS $$
DECLARE
    bucket integer;
    watched integer[] := '{}';
BEGIN
    FOREACH bucket IN ARRAY buckets LOOP
        PERFORM pg_advisory_xact_lock_shared(29801, bucket % 64);
        IF pg_try_advisory_lock(29800, bucket) THEN
            PERFORM pg_advisory_unlock(29800, bucket);
        ELSE
            watched := watched || bucket;
        END IF;
    END LOOP;
    RETURN watched;
END
$$;
