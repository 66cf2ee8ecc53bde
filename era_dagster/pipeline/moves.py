"""Tells which entries would change their domain under the alias table that is set now, before anything is changed.

Reads the sources again and holds the domains they would get against those that are stored.
"""

from collections import Counter
from dataclasses import dataclass

from era_dagster.domain.cleaning import clean_chapter
from era_dagster.domain.errors import CorruptInput
from era_dagster.intake.books import BookShelf
from era_dagster.pipeline.ingest import stamp_rules
from era_dagster.settings import Settings
from era_dagster.storage.database import Database
from era_dagster.storage.drops import pending_chapters
from era_dagster.storage.stored import stored_chapters


@dataclass(frozen=True, slots=True, kw_only=True)
class DomainMove:
    """So many entries of `chapters` chapters leave a domain (a slug), so many arrive there."""

    domain: str
    leaving: int
    arriving: int
    chapters: int


def domain_moves(settings: Settings, database: Database) -> list[DomainMove]:
    """The domains that would lose or gain entries of stored, unchanged chapters; empty when the table is as it was.

    Chapters whose source cannot be read now keep their domains and are left out.
    """
    rules = stamp_rules(settings, database)
    pending = pending_chapters(database, stages=["chapters"], suffixes=rules.suffixes, root=None)
    pending.sort(key=lambda chapter: (chapter.source_path, chapter.partition_key))
    stored = stored_chapters(database, [chapter.partition_key for chapter in pending if not chapter.gone])
    leaving: Counter[str] = Counter()
    arriving: Counter[str] = Counter()
    chapters: Counter[str] = Counter()
    shelf = BookShelf()
    for known in pending:
        found = stored.get(known.partition_key)
        if known.gone or found is None:
            continue
        try:
            source, _ = shelf.chapter(known.source_path, known.partition_key)
        except CorruptInput:
            continue
        chapter = clean_chapter(source, rules.aliases)
        before = {(identifier, domain) for identifier, domain, _, _ in found.entries}
        after = {(str(entry.doctrine_id), domain) for entry in chapter.entries for domain in entry.domains}
        kept = {identifier for identifier, _ in before} & {identifier for identifier, _ in after}
        gone = [domain for identifier, domain in before - after if identifier in kept]
        come = [domain for identifier, domain in after - before if identifier in kept]
        leaving.update(gone)
        arriving.update(come)
        chapters.update({*gone, *come})
    return [
        DomainMove(domain=domain, leaving=leaving[domain], arriving=arriving[domain], chapters=chapters[domain])
        for domain in sorted(chapters)
    ]
