-- Which of some buckets have tasks that somebody watches: what `is_watched` asks about one, in one call for a batch.
--
-- `is_watched` stays for instances of the version before, until a later migration.
--
-- Serves: Store::record_invocation, Store::record_report.
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
