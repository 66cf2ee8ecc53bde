"""The numbers for a judgment: bounds, and what pulls the prior which way."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from era_dagster.domain.doctrine import CATEGORIES
from era_dagster.domain.judgment import judgment_features

FOUND = st.lists(st.tuples(st.sampled_from(CATEGORIES), st.floats(-1.0, 1.0)), max_size=30)


@given(FOUND)
def test_the_prior_stays_between_its_bounds_and_the_counts_add_up(found: list) -> None:
    features = judgment_features(found)
    assert 0.7 - 1e-9 <= features["prior"] <= 1.3 + 1e-9
    assert sum(features[f"{category}_count"] for category in CATEGORIES) == len(found)


def test_the_formula_by_hand() -> None:
    features = judgment_features([("warnings", 0.8), ("rules", 0.6), ("rules", 0.2), ("claims", -0.5)])
    assert features["prior"] == pytest.approx(1 + 0.3 * 0.8 * (1 - 2 * 0.8 / 1.6))
    assert (features["rules_mean"], features["rules_max"]) == (pytest.approx(0.4), 0.6)
    assert (features["claims_count"], features["claims_max"]) == (1.0, 0.0)
    assert judgment_features([("warnings", 1.0)])["prior"] == pytest.approx(0.7)
    assert judgment_features([("rules", 1.0)])["prior"] == pytest.approx(1.3)
    assert judgment_features([])["prior"] == 1.0
