"""Counting: what is taken adds up to what was counted, whoever takes it and whenever."""

from hypothesis import given
from hypothesis import strategies as st

from era_dagster.telemetry.catalogue import CHAPTER_SECONDS, CHAPTERS, REQUEST_TEXTS
from era_dagster.telemetry.tally import OVER, SUM, Part, Tally


def test_a_taken_count_is_not_taken_again() -> None:
    tally = Tally()
    tally.add(CHAPTERS, "stored", by=2)
    assert tally.take() == {Part("era_chapters_total", ("stored",)): 2.0}
    assert tally.take() == {}
    tally.add(CHAPTERS, "stored", by=0)
    assert tally.take() == {}


def test_a_value_on_a_bound_belongs_below_it_and_one_over_the_last_has_a_place_too() -> None:
    tally = Tally()
    for texts in (1, 2, 3, 4, 1000):
        tally.observe(REQUEST_TEXTS, "u", value=texts)
    found = {part.part: value for part, value in tally.take().items()}
    assert found == {"1": 1.0, "2": 1.0, "4": 2.0, OVER: 1.0, SUM: 1010.0}


@given(st.lists(st.lists(st.floats(0, 1000), max_size=20), max_size=5))
def test_takes_of_several_tallies_add_up_to_one_tally_of_everything(runs: list[list[float]]) -> None:
    whole, added = Tally(), dict[Part, float]()
    for seconds in runs:
        one = Tally()
        for value in seconds:
            one.observe(CHAPTER_SECONDS, value=value)
            whole.observe(CHAPTER_SECONDS, value=value)
            for part, by in one.take().items():
                added[part] = added.get(part, 0.0) + by
    together = whole.take()
    assert added.keys() == together.keys()
    assert all(abs(added[part] - together[part]) < 1e-6 for part in added)
