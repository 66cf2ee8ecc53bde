"""The alias table for domains: what would move is told first, then entries, tables and files move, and back again."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from era_dagster.domain.errors import ConfigurationError
from era_dagster.intake.aliases import domain_aliases
from era_dagster.pipeline.moves import DomainMove, domain_moves
from era_dagster_tests.pipeline.workbench import PER_RUN, Workbench, chapter, timeless


def with_table(bench: Workbench, content: str | None) -> None:
    file = bench.settings.data_dir.with_name("aliases.json")
    if content is not None:
        file.write_text(content, encoding="utf-8")
    bench.settings = replace(bench.settings, domain_aliases=None if content is None else file)


def moves(bench: Workbench) -> list[DomainMove]:
    return domain_moves(bench.settings, bench.database)


def filled(bench: Workbench) -> Workbench:
    bench.drop(
        "ferry",
        chapter(1, domains=["Risk Management", "timing"], rules=["Count twice.", "Wait."]),
        chapter(2, domains=["risk", "risk-management"], claims=["A log is a memory."]),
        chapter(3, domains=["truth"], claims=["Nobody moves."]),
    )
    bench.ingest()
    return bench


def test_the_table_is_empty_by_default_and_nothing_moves(bench: Workbench) -> None:
    assert domain_aliases(bench.settings) == {}
    assert moves(filled(bench)) == []


def test_what_would_move_is_told_and_nothing_is_changed(bench: Workbench) -> None:
    filled(bench)
    tables, files = bench.tables(versions=True), bench.files()
    with_table(bench, json.dumps({"Risk Management": "Risk"}))
    assert moves(bench) == [
        DomainMove(domain="risk", leaving=0, arriving=2, chapters=1),
        DomainMove(domain="risk_management", leaving=3, arriving=0, chapters=2),
    ]
    assert (bench.tables(versions=True), bench.files()) == (tables, files)


def test_entries_move_without_a_call_and_move_back_when_the_table_is_taken_away(bench: Workbench) -> None:
    filled(bench)
    before, files = bench.tables(without=PER_RUN), timeless(bench.files())
    with_table(bench, json.dumps({"Risk Management": "Risk"}))
    bench.ingest()
    assert bench.asked == []
    assert sorted(set(bench.rows("SELECT domain FROM doctrine_embeddings"))) == ["risk", "timing", "truth"]
    assert bench.count("doctrine_embeddings", "domain = 'risk'") == 3
    assert not (bench.settings.ministers_dir / "risk_management").exists()
    assert bench.rows("SELECT spellings FROM minister_domains WHERE domain = 'risk'") == [
        ["Risk Management", "risk", "risk-management"]
    ]
    assert (moves(bench), bench.pending()) == ([], [])
    assert "unknown_domain" not in str(bench.rows("SELECT notes::text FROM doctrine_sources"))

    with_table(bench, None)
    assert [(move.domain, move.leaving, move.arriving) for move in moves(bench)] == [
        ("risk", 2, 0),
        ("risk_management", 0, 3),
    ]
    bench.ingest()
    assert bench.asked == []
    after = bench.tables(without=PER_RUN)
    for table in ("minister_domains", "chapter_receipts"):  # spellings once seen, and what was done, are kept
        del before[f"public.{table}"], after[f"public.{table}"]
    assert (after, timeless(bench.files())) == (before, files)


@pytest.mark.parametrize(
    ("content", "word"),
    [
        ("{", "not valid JSON"),
        ("[]", "no object"),
        ('{"a": 5}', "no object"),
        ('{"a": "!!"}', "no usable domain"),
        ('{"a": "b", "A": "c"}', "two aliases"),
        ('{"a": "b", "a": "b"}', "'a' twice"),
        ('{"a": "b", "b": "a"}', "lead to each other"),
    ],
)
def test_a_table_that_cannot_be_used_is_refused_in_one_sentence(bench: Workbench, content: str, word: str) -> None:
    with_table(bench, content)
    with pytest.raises(ConfigurationError, match=word):
        bench.pending()


def test_a_table_that_is_not_there_is_refused(bench: Workbench, tmp_path: Path) -> None:
    bench.settings = replace(bench.settings, domain_aliases=tmp_path / "nowhere.json")
    with pytest.raises(ConfigurationError, match=r"nowhere\.json"):
        bench.pending()


def test_a_chain_of_aliases_ends_at_its_last_name(bench: Workbench) -> None:
    with_table(bench, json.dumps({"Hazard": "Risk Management", "Risk Management": "risk", "same": "Same"}))
    assert domain_aliases(bench.settings) == {"hazard": "risk", "risk_management": "risk"}


def test_a_book_that_cannot_be_read_keeps_its_domains(bench: Workbench) -> None:
    filled(bench)
    with_table(bench, json.dumps({"Risk Management": "Risk"}))
    shutil.move(bench.settings.drop_dir / "ferry" / "02_doctrine.json", bench.settings.data_dir.with_name("aside"))
    bench.look()
    assert moves(bench) == []
