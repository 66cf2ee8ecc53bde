-- Each write of a chapter looks for its letters that are open or dropped, and each removal for all of them: the index held the
-- open ones alone, which serves neither, so that all letters there ever were were read for each chapter.

DROP INDEX dead_letters_partition;
CREATE INDEX dead_letters_partition ON dead_letters (partition_key);
