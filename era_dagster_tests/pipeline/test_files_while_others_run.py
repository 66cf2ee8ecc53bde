"""Minister files are compared with the database while another run ends: only what is really wrong is told."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from era_dagster.pipeline.checks import CHECKS, Verdict
from era_dagster.storage import minister_audit
from era_dagster.storage.database import Database
from era_dagster.storage.minister_audit import FileFault, compare_files
from era_dagster_tests.pipeline.workbench import Workbench, chapter


@pytest.fixture
def filled(bench: Workbench) -> Workbench:
    bench.drop("ferry", chapter(1, domains=["risk"], rules=["A rule."]))
    bench.drop("mole", chapter(1, domains=["timing"], rules=["A rule of the mole."]))
    bench.ingest()
    return bench


@pytest.fixture
def while_comparing(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], None]:
    """Have something done once, when the snapshot of the database is taken and the first file is looked at."""

    def arrange(work: Callable[[], object]) -> None:
        compared = minister_audit._compared
        waiting = [work]

        def meanwhile(path: Path, wanted: bytes, domain: str | None, *, pending: bool) -> Iterator[FileFault]:
            while waiting:
                waiting.pop()()
            return compared(path, wanted, domain, pending=pending)

        monkeypatch.setattr(minister_audit, "_compared", meanwhile)

    return arrange


def another_run(bench: Workbench, domain: str) -> Callable[[], None]:
    """A run of another process that stores a new version of a chapter and renders its files."""

    def run() -> None:
        bench.drop("mole", chapter(1, domains=[domain], rules=["Another rule of the mole."]))
        with Database(bench.settings.database_url or "", pool_size=3) as database:
            other = Workbench(bench.settings, database, server=bench.server)
            other.look()
            other.run(run_id="other")

    return run


def judged(bench: Workbench) -> Verdict:
    (check,) = (check for check in CHECKS if check.name == "files_agree_with_tables")
    return check.judge(bench.settings, bench.database)


@pytest.mark.parametrize("domain", ["timing", "patience"])
def test_files_that_another_run_renders_meanwhile_are_no_fault(
    filled: Workbench, while_comparing: Callable[[Callable[[], object]], None], domain: str
) -> None:
    while_comparing(another_run(filled, domain))
    verdict = judged(filled)
    assert verdict.passed, verdict.said
    assert filled.domain_file(domain, "rules")["entries"][0]["text"] == "Another rule of the mole."


def test_a_file_that_somebody_edited_is_told_though_another_run_ends_meanwhile(
    filled: Workbench, while_comparing: Callable[[Callable[[], object]], None]
) -> None:
    edited = filled.settings.ministers_dir / "risk" / "rules.json"
    edited.write_text("{}", encoding="utf-8")
    while_comparing(another_run(filled, "timing"))
    (fault,) = compare_files(filled.database, filled.settings.data_dir)
    assert (fault.kind, fault.path, fault.domain, fault.pending) == ("different", edited, "risk", False)
