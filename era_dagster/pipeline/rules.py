"""Settings of the pipeline as the pure core wants them."""

from era_dagster.domain.chunking import ChunkRules
from era_dagster.settings import Settings


def chunk_rules(settings: Settings) -> ChunkRules:
    """How chapters are cut, from the settings."""
    return ChunkRules(
        mode=settings.chunk_mode,
        min_chars=settings.chunk_min_chars,
        max_chars=settings.chunk_max_chars,
        overlap_chars=settings.chunk_overlap_chars,
        words=settings.chunk_words,
    )
