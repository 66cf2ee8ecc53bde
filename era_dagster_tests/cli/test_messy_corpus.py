"""A small generated corpus of messy books through `era ingest`, killed by -9 again and again, against its golden totals.

The whole corpus with twenty kills is `era_dagster_tests.benchmarks.messy_corpus`. The generator lies beside the checkout as
`../shared/tools/gen_corpus.py`; without it this test is skipped.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from era_dagster_tests.benchmarks.messy_corpus import (
    KnowledgeBase,
    embedding_server,
    generate,
    killed_and_finished,
    read_independently,
)

GENERATOR = Path(__file__).resolve().parents[3] / "shared" / "tools" / "gen_corpus.py"


@pytest.mark.slow
@pytest.mark.skipif(not GENERATOR.is_file(), reason="the generator is not beside the checkout")
@pytest.mark.skipif(sys.platform == "win32", reason="kill -9")
def test_a_messy_corpus_killed_at_random_moments_ends_with_the_totals_of_its_golden_file(
    tmp_path: Path, new_database_url: Callable[[], str]
) -> None:
    golden = generate(GENERATOR, tmp_path, books=8, chapters=12, messy=0.3)
    expected = read_independently(tmp_path / "books", golden)
    with embedding_server() as (_, url):
        base = KnowledgeBase(tmp_path / "base", tmp_path / "books", url, url=new_database_url())
        figures = killed_and_finished(base, kills=5, longest=5.0)
        assert base.totals() == expected, figures
    assert figures["killed"] > 0
