-- Which of some buckets have tasks that somebody watches (`is_watched` asked about one). Most often nobody watches
-- anything, and that is found out once for all: who watches holds, beside its bucket's lock, that of the bucket that no
-- task falls into, 1,024. A writer keeps its share of the second lock (64 there, of one more group) until its transaction
-- ends, and the first watch of a connection waits there for those who may not have seen it.
--
-- `is_watched` stays for instances of the version before, until a later migration. Their streams miss what new instances
-- write, so all are to be replaced.
--
-- Serves: Store::record_invocation, Store::record_report.
CREATE FUNCTION watched_buckets(buckets integer[]) RETURNS integer[] LANGUAGE plpgsql AS $$
DECLARE
    bucket integer;
    watched integer[] := '{}';
BEGIN
    PERFORM pg_advisory_xact_lock_shared(29801, 64);
    IF pg_try_advisory_lock(29800, 1024) THEN
        PERFORM pg_advisory_unlock(29800, 1024);
        RETURN watched;
    END IF;
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
