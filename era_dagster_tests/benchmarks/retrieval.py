"""Thirty questions with known answers, asked plainly and hybrid: is the right entry or chapter among the first five?

    era ingest BOOKS...                                    # with the model to judge
    python -m era_dagster_tests.benchmarks.retrieval       # asks the knowledge base that the environment names

The questions (questions.json) were written by hand before any search was run: ten about the sample books' entries, in other
words than theirs, and twenty about chapters of three real books. After the first answers were seen, one question got a second
right entry (it says the same). Questions about a book that is not there are left out.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from era_dagster.knowledge import KnowledgeBase
from era_dagster.storage.search import SearchHit

_QUESTIONS = Path(__file__).with_name("questions.json")
_LOOKED_AT = 50


@dataclass(frozen=True, slots=True)
class Question:
    """`chapters` are right; where `entries` are named, only those entries are."""

    question: str
    within: str
    book: str
    chapters: tuple[int, ...]
    entries: tuple[str, ...] = ()

    def answered_by(self, hit: SearchHit) -> bool:
        right_place = hit.book == self.book and hit.chapter in self.chapters
        return right_place and (not self.entries or hit.text in self.entries)


@dataclass(frozen=True, slots=True)
class Asked:
    """The rank of the first right answer of each question, in order; None beyond fifty."""

    ranks: list[int | None]

    def among_first(self, count: int) -> int:
        return sum(rank is not None and rank <= count for rank in self.ranks)

    @property
    def mean_reciprocal_rank(self) -> float:
        return sum(1 / rank for rank in self.ranks if rank is not None) / max(1, len(self.ranks))


def questions() -> list[Question]:
    fields = json.loads(_QUESTIONS.read_text(encoding="utf-8"))
    return [
        Question(f["question"], f["within"], f["book"], tuple(f["chapters"]), tuple(f.get("entries", ())))
        for f in fields
    ]


def ask(base: KnowledgeBase, asked: list[Question], *, hybrid: bool) -> Asked:
    ranks: list[int | None] = []
    for question in asked:
        hits = base.search(question.question, within=question.within, top_k=_LOOKED_AT, hybrid=hybrid)
        ranks.append(next((rank for rank, hit in enumerate(hits, 1) if question.answered_by(hit)), None))
    return Asked(ranks)


def main() -> None:
    with KnowledgeBase.open() as base:
        asked = [q for q in questions() if base.search(q.question, book=q.book, within=q.within, top_k=1)]
        answers = {"plain": ask(base, asked, hybrid=False), "hybrid": ask(base, asked, hybrid=True)}
    print(f"{'':10}{'first':>7}{'in 5':>7}{'in 10':>7}{'MRR':>8}   of {len(asked)} questions")
    for name, given in answers.items():
        figures = [given.among_first(count) for count in (1, 5, 10)]
        print(f"{name:10}{figures[0]:7}{figures[1]:7}{figures[2]:7}{given.mean_reciprocal_rank:8.3f}")
    print()
    for number, question in enumerate(asked):
        ranks = " / ".join(str(given.ranks[number] or "-") for given in answers.values())
        print(f"{ranks:10} {question.question}")


if __name__ == "__main__":
    main()
