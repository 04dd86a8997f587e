-- Whether somebody watches the tasks of a bucket. A watcher holds the first lock, shared, for as long as it watches; a
-- writer that can have it exclusively, for a moment, knows that there is none. It keeps its share of the second lock
-- until its transaction ends, and a new watcher waits there for those who may not have seen it. So writers, which write
-- many tasks at once, are in nobody's way but that of a watcher who has just come.
--
-- Serves: Store::record_invocation, Store::record_report, Store::record_events.
CREATE FUNCTION is_watched(bucket integer) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock_shared(29801, bucket % 64);
    IF pg_try_advisory_lock(29800, bucket) THEN
        PERFORM pg_advisory_unlock(29800, bucket);
        RETURN false;
    END IF;
    RETURN true;
END
$$;
