"""The receipt: its sums, and what it says of a real run."""

from era_dagster.pipeline.receipt import ItemCounts, Receipt
from era_dagster_tests.pipeline.workbench import Workbench, chapter


def test_items_add_up_only_when_each_is_accounted_for() -> None:
    assert ItemCounts(seen=10, stored=4, unchanged=3, dead=2, unusable=1).adds_up
    assert not ItemCounts(seen=10, stored=4, unchanged=3, dead=2).adds_up


def test_counts_of_an_asset_are_summed() -> None:
    receipt = Receipt()
    receipt.count("chunks", stored=2, removed=1)
    receipt.count("chunks", stored=3, unchanged=4)
    receipt.add_items(seen=2, stored=2)
    assert receipt.as_json()["assets"] == {"chunks": {"stored": 5, "unchanged": 4, "removed": 1, "dead": 0}}
    assert receipt.as_json()["items"]["adds_up"]


def test_the_receipt_of_a_first_run_counts_every_row(bench: Workbench) -> None:
    bench.drop(
        "ferry", chapter(1, rules=["Count twice.", "", "Cast off late."]), chapter(2, domains=["risk", "timing"])
    )
    told = bench.ingest().as_json()
    assert told["chapters"] == {"seen": 2, "stored": 2, "unchanged": 0, "retired": 0, "failed": {}, "left": 0}
    assert told["items"] == {"seen": 5, "stored": 4, "unchanged": 0, "dead": 0, "unusable": 1, "adds_up": True}
    assert told["assets"] == {
        "chapters": {"stored": 2, "unchanged": 0, "removed": 0, "dead": 1},
        "chunks": {"stored": 2, "unchanged": 0, "removed": 0, "dead": 0},
        "embeddings": {"stored": 4, "unchanged": 0, "removed": 0, "dead": 0},
        "vector_tables": {"stored": 6, "unchanged": 0, "removed": 0, "dead": 0},
        "minister_files": {"stored": 5, "unchanged": 0, "removed": 0, "dead": 0},
    }
    assert told["embedding"]["texts_embedded"] == 4


def test_the_receipt_of_a_changed_chapter_tells_new_from_old(bench: Workbench) -> None:
    bench.drop("ferry", chapter(1, rules=["Count twice.", "Cast off late."]))
    bench.ingest()
    bench.drop("ferry", chapter(1, rules=["Count twice.", "Ask the pilot.", "Wait."]))
    told = bench.ingest().as_json()
    assert told["items"] == {"seen": 4, "stored": 2, "unchanged": 2, "dead": 0, "unusable": 0, "adds_up": True}
    assert told["assets"]["chapters"] == {"stored": 2, "unchanged": 1, "removed": 1, "dead": 0}
    assert told["assets"]["embeddings"] == {"stored": 2, "unchanged": 2, "removed": 0, "dead": 0}
    assert (told["embedding"]["texts_embedded"], told["embedding"]["texts_from_cache"]) == (2, 2)


def test_the_receipt_of_a_run_that_stops_at_the_vectors_accounts_for_every_item(bench: Workbench) -> None:
    """`--select embeddings` counted none, so that nobody could see that they add up."""
    bench.server.poison = {"Cast off"}
    bench.drop("ferry", chapter(1, rules=["Count twice.", "", "Cast off late."]))
    bench.look()
    first = bench.run(["embeddings"], run_id="first").as_json()
    assert first["items"] == {"seen": 4, "stored": 2, "unchanged": 0, "dead": 1, "unusable": 1, "adds_up": True}
    bench.drop("ferry", chapter(1, rules=["Count twice.", "", "Cast off late.", "Wait."]))
    bench.look()
    second = bench.run(["embeddings"], run_id="second").as_json()
    assert second["items"] == {"seen": 5, "stored": 1, "unchanged": 2, "dead": 1, "unusable": 1, "adds_up": True}
    kept = bench.rows("SELECT run_id, seen, stored, unchanged, dead, unusable FROM chapter_receipts ORDER BY 1")
    assert kept == [("first", 4, 2, 0, 1, 1), ("second", 5, 1, 2, 1, 1)]
    # None of it was in the tables yet.
    assert bench.run(run_id="third").items.stored == 3


def test_the_receipt_of_a_removed_book_counts_its_chapters_and_domains(bench: Workbench) -> None:
    bench.drop("ferry", chapter(1, rules=["Count twice."]))
    bench.ingest()
    for file in (bench.settings.drop_dir / "ferry").iterdir():
        file.unlink()
    (bench.settings.drop_dir / "ferry").rmdir()
    told = bench.ingest().as_json()
    assert (told["chapters"]["seen"], told["chapters"]["retired"]) == (1, 1)
    assert told["assets"]["minister_files"]["removed"] == 1
