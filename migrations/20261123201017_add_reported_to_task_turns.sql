-- What runners report about a turn beside its status and result: tokens, duration, tools, and what it waits for. Kept as
-- it came, in one column: nothing searches in it.
--
-- Serves: Store::record_report writes it, Store::get_task reads it.
ALTER TABLE task_turns ADD COLUMN reported json NOT NULL DEFAULT '{}';
