-- What runs tell of themselves: figures that add up over all runs, the state of each, and errors by fingerprint.

CREATE TABLE telemetry_runs (                -- one row per run of the pipeline, also those that are long over
    session_id uuid PRIMARY KEY,             -- a run that is tried again in the same Dagster run is another session
    run_id text NOT NULL,
    state text NOT NULL DEFAULT 'running' CHECK (state IN ('running', 'succeeded', 'failed', 'killed')),
    writes bigint NOT NULL DEFAULT 0,        -- the last write that was counted: the same one sent again changes nothing
    interval_seconds double precision NOT NULL,
    started_at timestamptz NOT NULL DEFAULT now(),
    beat_at timestamptz NOT NULL DEFAULT now(),
    ended_at timestamptz,
    figures jsonb NOT NULL DEFAULT '{}'      -- progress and controllers as of the last write
);
CREATE INDEX telemetry_runs_running ON telemetry_runs (started_at) WHERE state = 'running';
CREATE INDEX telemetry_runs_ended ON telemetry_runs (state, ended_at);
ALTER TABLE telemetry_runs SET (fillfactor = 50);

CREATE TABLE metric_totals (                 -- counters and histograms, added up over all runs
    metric text NOT NULL,
    labels text NOT NULL,                    -- a JSON list of values, in the order of the metric's label names
    part text NOT NULL,                      -- '' of a counter; of a histogram one bucket's upper bound, or 'sum'
    value double precision NOT NULL,
    PRIMARY KEY (metric, labels, part)
);
ALTER TABLE metric_totals SET (fillfactor = 50);

CREATE TABLE error_groups (                  -- equal errors are one row
    fingerprint text PRIMARY KEY,
    stage text NOT NULL,
    error_class text NOT NULL,
    message text NOT NULL,                   -- of the first one, as an example
    run_id text NOT NULL,                    -- where it was first met
    partition_key text,
    occurrences bigint NOT NULL,
    first_at timestamptz NOT NULL DEFAULT now(),
    last_at timestamptz NOT NULL DEFAULT now(),
    last_run_id text NOT NULL,
    told_at timestamptz,                     -- when the webhook took it
    tell_after timestamptz NOT NULL DEFAULT now() -- not before: somebody is telling it, or the last try failed
);
CREATE INDEX error_groups_untold ON error_groups (tell_after) WHERE told_at IS NULL;
