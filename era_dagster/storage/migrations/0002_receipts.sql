-- What each run did with each chapter's items, in counts that add up; and what else an account of every item needs.

CREATE TABLE chapter_receipts (
    partition_key text NOT NULL REFERENCES doctrine_sources ON DELETE CASCADE,
    run_id text NOT NULL,
    seen integer NOT NULL,                   -- items the chapter has: chunks, entries and what is unusable
    stored integer NOT NULL,                 -- new or changed rows
    unchanged integer NOT NULL,
    dead integer NOT NULL,                   -- named in dead_letters
    unusable integer NOT NULL,               -- named in doctrine_sources.unusable
    written_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (partition_key, run_id)
);

-- "dropped": given up by a person; the text stays without a vector and is no longer counted as open.
ALTER TABLE dead_letters DROP CONSTRAINT dead_letters_state_check;
ALTER TABLE dead_letters ADD CONSTRAINT dead_letters_state_check CHECK (state IN ('open', 'resolved', 'dropped'));

-- Whether the run that stored the chapter lived to record it in Dagster.
ALTER TABLE doctrine_sources ADD COLUMN recorded boolean NOT NULL DEFAULT true;

-- What a look noted about the source as a whole (no chapters, no doctrine, a priority that is none): shown, never a stop.
ALTER TABLE drop_sources ADD COLUMN notes text[] NOT NULL DEFAULT '{}';
