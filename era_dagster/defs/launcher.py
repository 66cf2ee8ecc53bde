"""Sends runs to Celery workers; named in `docker/dagster-celery.yaml`, and imported by nothing else.

It is `CeleryRunLauncher` of dagster-celery, but for what that takes for granted: that Redis forgets nothing, and that every
run of the instance went through it. What a killed worker leaves is settled by `runs`, which asks PostgreSQL and not Redis.
The decision is in docs/adr/0026-runs-on-celery-workers.md.
"""

import dagster as dg
from dagster._core.launcher import CheckRunHealthResult, WorkerStatus
from dagster_celery.launcher import CeleryRunLauncher
from dagster_celery.tags import DAGSTER_CELERY_TASK_ID_TAG


class WorkerRunLauncher(CeleryRunLauncher):
    """A run is a task; only a task that Redis knows to have failed says anything of its run."""

    def check_run_worker_health(self, run: dg.DagsterRun) -> CheckRunHealthResult:
        """A task that Redis does not know is no sign of trouble: it was emptied, or keeps results for a day only.

        Nor is a run without a task: `era ingest` started it, or an instance of before. Raises what the Redis client raises.
        """
        if DAGSTER_CELERY_TASK_ID_TAG in run.tags:
            health = super().check_run_worker_health(run)
            if health.status is not WorkerStatus.UNKNOWN:
                return health
        return CheckRunHealthResult(WorkerStatus.RUNNING)

    def terminate(self, run_id: str) -> bool:
        """Ask the worker to stop the run; marked as such, it ends as canceled after a while also where the worker is gone.

        False where there is nobody to ask. Raises what the Redis client raises.
        """
        run = self._instance.get_run_by_id(run_id)
        if run is None or run.is_finished or DAGSTER_CELERY_TASK_ID_TAG not in run.tags:
            return False
        self._instance.report_run_canceling(run)
        return super().terminate(run_id)
