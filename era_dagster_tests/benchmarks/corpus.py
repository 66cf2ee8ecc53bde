"""A deterministic corpus of any size in the two-file format, for benchmarks: the shape of real books, not their meaning."""

import json
import random
from pathlib import Path

_SUBJECTS = [
    "the keeper",
    "a surveyor",
    "the night nurse",
    "an old miller",
    "the clerk",
    "a weaver",
    "the pilot",
    "a gardener",
]
_VERBS = ["counts", "delays", "repairs", "refuses", "measures", "lends", "records", "moves", "trusts", "divides"]
_OBJECTS = [
    "the reserve",
    "a promise",
    "the narrow gate",
    "every debt",
    "the ledger",
    "a second rope",
    "the harvest",
    "the last word",
]
_ENDINGS = [
    "before the flood",
    "when money is short",
    "in a dry year",
    "without being asked",
    "at the first sign of doubt",
]
_DOMAINS = [
    "psychology",
    "risk",
    "strategy",
    "timing",
    "power",
    "discipline",
    "adaptation",
    "constraints",
    "conflict",
    "truth",
    "optionality",
    "data",
]
_CATEGORIES = ("principles", "rules", "claims", "warnings")


def write_corpus(folder: Path, *, chapters: int, chapters_per_book: int = 50, seed: int = 1) -> None:
    """Write `chapters` chapters in books of `chapters_per_book`.

    As in the user's books: text of about 8,000 characters on the mean (median 5,000), 38 % without doctrine, else 8
    items in 3 domains.
    """
    for first in range(0, chapters, chapters_per_book):
        book = folder / f"Book {first // chapters_per_book:04d}"
        book.mkdir(parents=True)
        indexes = range(1, min(chapters_per_book, chapters - first) + 1)
        chance = random.Random(f"{seed}/{first}")
        texts = [
            {"chapter_index": index, "chapter_id": "", "chapter_title": None, "raw_text": _text(chance)}
            for index in indexes
        ]
        doctrine = [_record(chance, index) for index in indexes]
        for name, content in (("01_chapters.json", texts), ("02_doctrine.json", doctrine)):
            (book / name).write_text(json.dumps(content, ensure_ascii=False, indent=2), encoding="utf-8")


def _sentence(chance: random.Random) -> str:
    words = (chance.choice(_SUBJECTS), chance.choice(_VERBS), chance.choice(_OBJECTS), chance.choice(_ENDINGS))
    return f"{' '.join(words).capitalize()}, {chance.randrange(1000)} times over."


def _text(chance: random.Random) -> str:
    wanted = min(60_000, int(chance.lognormvariate(8.5, 1.0)))
    sentences: list[str] = []
    while wanted > 0:
        sentences.append(_sentence(chance))
        wanted -= len(sentences[-1]) + 1
    return "\n".join(" ".join(sentences[at : at + 6]) for at in range(0, len(sentences), 6))


def _record(chance: random.Random, index: int) -> dict[str, object]:
    empty = chance.random() < 0.38
    items = {category: [] if empty else [_sentence(chance) for _ in range(2)] for category in _CATEGORIES}
    return {"chapter_index": index, "chapter_title": None, "domains": chance.sample(_DOMAINS, 3), **items}
