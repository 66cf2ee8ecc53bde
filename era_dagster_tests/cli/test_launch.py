"""How a run in the process of `era` ends, as its one sentence says."""

import dagster as dg

from era_dagster.cli.launch import run_ingest
from era_dagster.cli.output import STOPPED
from era_dagster.defs.resources import KnowledgeBaseResource
from era_dagster.storage.drops import retired_chapter


class Interrupted(KnowledgeBaseResource):
    """Ctrl-C arrives while the run sets its resources up."""

    def setup_for_execution(self, context: dg.InitResourceContext) -> None:
        raise dg.DagsterExecutionInterruptedError


def test_a_run_that_is_interrupted_before_its_first_step_was_stopped_and_has_not_failed() -> None:
    with dg.instance_for_test() as instance:
        result = run_ingest(instance, [retired_chapter("level/0001")], knowledge_base=Interrupted(), on_progress=None)
    assert result.failure == STOPPED
