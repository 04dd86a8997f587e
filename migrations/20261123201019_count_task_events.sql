-- How many things have happened to a task: turns, reports, pushed events. Changed with each write under the lock on the
-- task's row, so it numbers the rows of task_events, and a stream that has seen number n knows whether it has missed any.
--
-- Serves: Store::read_events.
ALTER TABLE tasks ADD COLUMN events bigint NOT NULL DEFAULT 0;
