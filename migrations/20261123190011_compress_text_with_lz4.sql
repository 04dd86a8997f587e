-- Long text is compressed with lz4, which costs a fraction of the default's time at nearly its size. A server
-- built without lz4 keeps the default.
--
-- Serves: every read and write of long titles, results, inputs and requests.
DO $$
BEGIN
    ALTER TABLE tasks
        ALTER COLUMN title SET COMPRESSION lz4,
        ALTER COLUMN result SET COMPRESSION lz4;
    ALTER TABLE task_turns
        ALTER COLUMN input SET COMPRESSION lz4,
        ALTER COLUMN request SET COMPRESSION lz4,
        ALTER COLUMN result SET COMPRESSION lz4;
EXCEPTION
    WHEN feature_not_supported THEN
        RAISE NOTICE 'this server has no lz4, long text keeps the default compression';
END
$$;
