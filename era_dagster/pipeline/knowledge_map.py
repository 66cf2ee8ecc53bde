"""A map of the knowledge base: its entries as points, near where their vectors are near, in the colours of their domains.

The projection is scikit-learn's t-SNE, an optional extra (`era-dagster[map]`): nothing else of the project needs it.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from era_dagster.domain.errors import ConfigurationError
from era_dagster.pipeline.map_svg import COLOURS, domains_svg, map_svg
from era_dagster.storage.database import Database
from era_dagster.storage.map_rows import domain_counts, sample_entries

# t-SNE of so many takes seconds; more dots than this hide each other.
MOST_ENTRIES = 2000
_LEAST_ENTRIES = 5
_FIRST_AXES = 50
_PERPLEXITY = 30.0


def draw_map(database: Database) -> str:
    """The map as an SVG document. The same entries and vectors give the same picture.

    Of more than 2,000 entries a sample is drawn, and the title says so. Raises `ConfigurationError` when scikit-learn is
    not installed and when there are too few entries to draw.
    """
    sample = sample_entries(database, MOST_ENTRIES)
    if len(sample.domains) < _LEAST_ENTRIES:
        raise ConfigurationError(
            f"There are {len(sample.domains)} entries with vectors; a map needs {_LEAST_ENTRIES}.",
            hint="Bring books in with `era ingest`.",
        )
    counts = domain_counts(database)
    largest = [count.domain for count in counts[: len(COLOURS)]]
    groups = domain_of_each(sample.domains, largest)
    names = [name for name in largest if name in groups]
    shown = len(sample.domains)
    title = f"{shown:,} of {sample.entries:,} entries" if shown < sample.entries else f"{shown:,} entries"
    title += f" of {len(counts):,} domains, each in the colour of its smallest domain shown"
    points = [(float(x), float(y)) for x, y in _projected(sample.vectors)]
    return map_svg(points, groups, names, title)


def draw_domains(database: Database) -> str:
    """The domains as stacked bars, as an SVG document; needs nothing but the project."""
    return domains_svg(domain_counts(database))


def domain_of_each(domains: Sequence[Sequence[str]], names: Sequence[str]) -> list[str | None]:
    """Which one of its domains each entry is coloured by: the one of `names` with the fewest entries, which says most
    about it; None when it has none of them."""
    sizes = Counter(domain for each in domains for domain in each)
    return [
        min((domain for domain in each if domain in names), key=lambda name: (sizes[name], name), default=None)
        for each in domains
    ]


def _projected(vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Two coordinates from 0 to 1 for each row."""
    try:
        from sklearn.decomposition import PCA
        from sklearn.manifold import TSNE
    except ImportError as error:
        raise ConfigurationError(
            "A map needs scikit-learn, which is not installed.", hint='Run `pip install "era-dagster[map]"`.'
        ) from error
    # The usual two steps: fifty principal axes first, which keep the neighbours and make t-SNE several times faster.
    axes = min(_FIRST_AXES, *vectors.shape)
    reduced = PCA(n_components=axes, random_state=0).fit_transform(vectors)
    perplexity = min(_PERPLEXITY, (len(vectors) - 1) / 3)
    points = TSNE(n_components=2, perplexity=perplexity, init="pca", random_state=0).fit_transform(reduced)
    low, high = points.min(axis=0), points.max(axis=0)
    return (points - low) / np.maximum(high - low, 1e-9)
