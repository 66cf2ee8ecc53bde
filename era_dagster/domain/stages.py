"""The stages a chapter goes through, their order, and the stamps that tell whether a stage is done.

A stamp names everything a stage's result depends on: the chapter's content, the chunk rules, the model. A stage whose
stored stamp equals the one computed here is up to date; nothing else decides that. Pure.
"""

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Literal

from era_dagster.domain.chunking import ChunkRules

Stage = Literal["chapters", "chunks", "embeddings", "vector_tables", "minister_files"]
STAGES: tuple[Stage, ...] = ("chapters", "chunks", "embeddings", "vector_tables", "minister_files")
UPSTREAM: Mapping[Stage, tuple[Stage, ...]] = {
    "chapters": (),
    "chunks": ("chapters",),
    "embeddings": ("chunks",),
    "vector_tables": ("embeddings",),
    "minister_files": ("chapters",),
}
# Raise when the way chunks are cut changes, so that stored chunks are cut anew.
CHUNKER_VERSION = 1
# A stamp begins with the content's SHA-256 in hex.
_HASH_DIGITS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class StampRules:
    """What stamps depend on besides the chapter: the chunk rules, the model (None where no stage needs one), the aliases.

    `aliases` maps domain slugs to the slugs to use instead. Only stages that store domains depend on them.
    """

    chunk_rules: ChunkRules
    model_stamp: str | None
    aliases: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def suffixes(self) -> dict[Stage, str]:
        """What follows the content's hash in the stamp of each stage; stages that need an unknown model are absent."""
        rules = self.chunk_rules
        chunks = (
            f":{CHUNKER_VERSION}/{rules.mode}/{rules.min_chars}/{rules.max_chars}/{rules.overlap_chars}/{rules.words}"
        )
        aliases = f":aliases {_digest(self.aliases)}" if self.aliases else ""
        suffixes: dict[Stage, str] = {"chapters": aliases, "chunks": chunks, "minister_files": aliases}
        if self.model_stamp is not None:
            suffixes["embeddings"] = f"{chunks}:{self.model_stamp}"
            suffixes["vector_tables"] = suffixes["embeddings"] + aliases
        return suffixes

    def stamps(self, content_hash: bytes) -> dict[Stage, str]:
        """The stamp each stage has when it is up to date for this content."""
        return {stage: content_hash.hex() + suffix for stage, suffix in self.suffixes.items()}


def vector_stamps(*, chapters: str | None, chunks: str | None, model_stamp: str) -> dict[Stage, str | None]:
    """The stamps of the vector stages for vectors of another model, made from texts that carry these two stamps.

    None where a stage below is not done: then the vectors are not up to date either, whatever they were made from.
    """
    if chapters is None or chunks is None or chapters[:_HASH_DIGITS] != chunks[:_HASH_DIGITS]:
        return {"embeddings": None, "vector_tables": None}
    aliases = chapters[_HASH_DIGITS:]
    return {"embeddings": f"{chunks}:{model_stamp}", "vector_tables": f"{chunks}:{model_stamp}{aliases}"}


def _digest(aliases: Mapping[str, str]) -> str:
    pairs = "\n".join(f"{slug}={target}" for slug, target in sorted(aliases.items()))
    return hashlib.sha256(pairs.encode("utf-8")).hexdigest()[:12]


def with_upstream(selected: Collection[str]) -> frozenset[Stage]:
    """The selected stages and all they are made from: a stage is never done on top of stale ones."""
    needed: set[Stage] = set()
    chosen = frozenset(selected)
    waiting: list[Stage] = [stage for stage in STAGES if stage in chosen]
    while waiting:
        stage = waiting.pop()
        if stage not in needed:
            needed.add(stage)
            waiting.extend(UPSTREAM[stage])
    return frozenset(needed)


def stale_stages(
    stages: Collection[Stage], expected: Mapping[Stage, str], stored: Mapping[str, str | None] | None
) -> frozenset[Stage]:
    """Those of `stages` whose stored stamp is not the expected one; all of them for a chapter that is not stored.

    A stage without an expected stamp (its model is not known yet) is stale.
    """
    if stored is None:
        return frozenset(stages)
    return frozenset(stage for stage in stages if stage not in expected or stored.get(stage) != expected[stage])
