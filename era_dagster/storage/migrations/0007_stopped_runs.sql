-- A run that somebody stopped has not failed.

ALTER TABLE telemetry_runs
    DROP CONSTRAINT telemetry_runs_state_check,
    ADD CONSTRAINT telemetry_runs_state_check
        CHECK (state IN ('running', 'succeeded', 'failed', 'stopped', 'killed'));
