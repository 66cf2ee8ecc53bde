"""The asset checks: Dagster's view of `pipeline.checks`, evaluated at the end of every run and on demand.

A run records them itself, because a step of checks would be skipped when a chapter failed, which is when they matter. They
are unpartitioned: an answer names its chapters. No claim is judged here.
"""

from collections.abc import Iterator
from typing import Any

import dagster as dg

from era_dagster.defs.failures import as_dagster_failures
from era_dagster.defs.resources import KnowledgeBaseResource
from era_dagster.pipeline.checks import CHECKS, Check, Verdict, run_checks
from era_dagster.settings import Settings
from era_dagster.storage.database import Database

_BY_NAME = {check.name: check for check in CHECKS}


@dg.multi_asset_check(
    name="knowledge_base_checks",
    specs=[
        dg.AssetCheckSpec(name=check.name, asset=check.asset, description=check.description, blocking=False)
        for check in CHECKS
    ],
    can_subset=True,
)
def knowledge_base_checks(
    context: dg.AssetCheckExecutionContext, knowledge_base: KnowledgeBaseResource
) -> Iterator[dg.AssetCheckResult]:
    """Judge the selected claims about what the knowledge base holds now."""
    with as_dagster_failures():
        settings = knowledge_base.settings()
        with knowledge_base.database(settings) as database:
            for key in sorted(context.selected_asset_check_keys):
                check = _BY_NAME[key.name]
                verdict = check.judge(settings, database)
                yield dg.AssetCheckResult(
                    passed=verdict.passed,
                    check_name=check.name,
                    asset_key=check.asset,
                    severity=_severity(check, verdict),
                    description=verdict.said,
                    metadata=_metadata(verdict),
                )


checks_job = dg.define_asset_job(
    "check_knowledge_base",
    selection=dg.AssetSelection.checks(knowledge_base_checks),
    description="Judge every claim about the knowledge base: vectors, files, receipts, dead letters, quality of the input.",
)


def record_checks(
    context: dg.OpExecutionContext | dg.AssetExecutionContext, settings: Settings, database: Database
) -> None:
    """Judge every claim and record the answers with the current run."""
    for check, verdict in run_checks(settings, database):
        evaluation = dg.AssetCheckEvaluation(
            asset_key=dg.AssetKey(check.asset),
            check_name=check.name,
            passed=verdict.passed,
            severity=_severity(check, verdict),
            description=verdict.said,
            metadata=_metadata(verdict),
        )
        # Dagster takes it here; only the type that it declares leaves it out.
        context.log_event(evaluation)  # pyright: ignore[reportArgumentType]


def _severity(check: Check, verdict: Verdict) -> dg.AssetCheckSeverity:
    return dg.AssetCheckSeverity.ERROR if check.is_error(verdict) else dg.AssetCheckSeverity.WARN


def _metadata(verdict: Verdict) -> dict[str, Any]:
    found: dict[str, Any] = {"offenders": verdict.offenders, **verdict.numbers}
    if verdict.named:
        found["named"] = dg.TableMetadataValue(
            records=[dg.TableRecord({name: _cell(value) for name, value in row.items()}) for row in verdict.named],
            schema=dg.TableSchema(columns=[dg.TableColumn(name) for name in verdict.named[0]]),
        )
    return found


def _cell(value: Any) -> str | int | float | bool | None:
    return value if isinstance(value, str | int | float | bool | None) else str(value)
