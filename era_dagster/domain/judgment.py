"""What nearby doctrine says for and against something, as a few numbers for a judgment."""

from collections.abc import Iterable

from era_dagster.domain.doctrine import CATEGORIES

HIGHEST_PRIOR = 1.3


def judgment_features(found: Iterable[tuple[str, float]]) -> dict[str, float]:
    """Features of the entries `found`, given as (category, cosine similarity).

    The evidence of an entry is its similarity, cut to 0 ... 1. For each category (principles, rules, claims, warnings):
    `<category>_count`, and `<category>_mean` and `<category>_max` of its evidence, 0 without entries. And

        prior = 1 + 0.3 * m * (1 - 2 * w)

    where m is the largest evidence of all and w the warnings' share of the evidence's sum. It lies in 0.7 ... 1.3: near 1.3
    when close entries are all encouragement, near 0.7 when they are all warnings, 1 when both weigh the same, when nothing
    is close, and when nothing was found. A weight of our own making, for a factor on somebody's probability; not learnt.
    """
    evidence: dict[str, list[float]] = {category: [] for category in CATEGORIES}
    for category, similarity in found:
        evidence[category].append(min(1.0, max(0.0, similarity)))
    features: dict[str, float] = {}
    for category, values in evidence.items():
        features[f"{category}_count"] = float(len(values))
        features[f"{category}_mean"] = sum(values) / len(values) if values else 0.0
        features[f"{category}_max"] = max(values, default=0.0)
    total = sum(sum(values) for values in evidence.values())
    largest = max(max(values, default=0.0) for values in evidence.values())
    balance = 1.0 - 2.0 * sum(evidence["warnings"]) / total if total > 0.0 else 0.0
    features["prior"] = 1.0 + (HIGHEST_PRIOR - 1.0) * largest * balance
    return features
