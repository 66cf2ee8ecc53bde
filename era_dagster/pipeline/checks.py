"""The claims about the knowledge base that are checked after every run, each with the offenders by name.

A claim is a sentence that is true or not; a blocking one that fails means lost or wrong data, the others mean that somebody
should look. What is asked of the database is `storage.quality`; Dagster shows the answers as asset checks.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from era_dagster.domain.errors import StorageError
from era_dagster.settings import Settings
from era_dagster.storage import quality
from era_dagster.storage.database import Database
from era_dagster.storage.dead_letters import find_letters, grouped
from era_dagster.storage.minister_audit import compare_files

# What is named in an answer; the counts always cover all.
MOST_NAMED = 100
FIRST_PASS_SHARE = 0.995
# One request of the extractor held a chapter in a context of 4,096 tokens, the usual default of a local model, at about
# four characters a token: what stands behind was cut off before the model saw it.
EXTRACTOR_READS_CHARS = 16_384
# Above this share of a book the user should hear of it.
_UNREAD_SHARE = 0.10


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The answer to one check: whether the claim holds, one sentence, how many offend, and the first of them by name.

    `waits`: nothing is wrong that the next run, or one that goes, would not see to.
    """

    passed: bool
    said: str
    offenders: int = 0
    named: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    numbers: Mapping[str, int | float] = field(default_factory=dict[str, int | float])
    waits: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One claim: its name (a sentence with underscores), the asset it is about, and whether its failure is an error."""

    name: str
    asset: str
    description: str
    blocking: bool
    judge: Callable[[Settings, Database], Verdict]

    def is_error(self, verdict: Verdict) -> bool:
        """Whether this answer, if the claim does not hold, means lost or wrong data; else somebody should look."""
        return self.blocking and not verdict.waits


def _none_of(rows: list[dict[str, Any]], well: str, ill: str, **numbers: int | float) -> Verdict:
    """The claim holds when there is no offender."""
    said = ill.format(n=f"{len(rows):,}") if rows else well
    return Verdict(passed=not rows, said=said, offenders=len(rows), named=rows[:MOST_NAMED], numbers=numbers)


def _vectors(settings: Settings, database: Database) -> Verdict:
    rows = quality.texts_without_vector(database)
    return _none_of(
        rows,
        "Every text has its vector, or a dead letter that says why not.",
        "{n} chapters hold texts without a vector and without a dead letter; `era verify --fix` mends them.",
        texts=sum(row["texts"] for row in rows),
    )


def _files(settings: Settings, database: Database) -> Verdict:
    try:
        faults = sorted(compare_files(database, settings.data_dir), key=lambda fault: fault.pending)
    except StorageError as error:
        # One file that cannot be read keeps nobody from the rest: neither `era status` nor a run that is done.
        return Verdict(passed=False, said=str(error), offenders=1)
    rows = [
        {
            "file": str(fault.path),
            "fault": f"{fault.kind} (pending)" if fault.pending else fault.kind,
            "domain": fault.domain or "",
        }
        for fault in faults
    ]
    pending = sum(fault.pending for fault in faults)
    foreign = sum(fault.kind == "foreign" for fault in faults)
    said: list[str] = []
    if wrong := len(faults) - pending - foreign:
        said.append(f"{wrong:,} files differ from the database; `era verify --fix` mends them.")
    if foreign:
        said.append(f"{foreign:,} files are not ours, and readers may take them for ours; move them out of there.")
    if pending:
        said.append(f"{pending:,} files are pending: their domains changed since; `era ingest` renders them.")
    verdict = _none_of(rows, "Every minister file is what the database would render.", " ".join(said))
    return replace(verdict, waits=pending == len(faults))


def _dead_letters(settings: Settings, database: Database) -> Verdict:
    letters = find_letters(database)
    rows = [
        {
            "fingerprint": group.fingerprint,
            "error": group.error_class,
            "message": group.message,
            "count": group.letters,
            "chapters": ", ".join(group.chapters[:5]),
        }
        for group in grouped(letters)
    ]
    return _none_of(
        rows,
        "No text waits in the dead letters.",
        f"{len(letters):,} texts could not be embedded, different reasons: {{n}};"
        " `era dead-letters redrive` tries them again.",
        letters=len(letters),
    )


def _first_pass(settings: Settings, database: Database) -> Verdict:
    run, chapters = quality.last_run(database)
    if run is None:
        return Verdict(passed=True, said="No run has stored a text yet.")
    stored, dead = int(run["stored"]), int(run["dead"])
    share = stored / (stored + dead)
    return Verdict(
        passed=share >= FIRST_PASS_SHARE,
        said=f"{share:.1%} of the {stored + dead:,} texts of the last run were embedded at the first pass.",
        offenders=dead,
        named=chapters[:MOST_NAMED],
        numbers={"share": share, "stored": stored, "dead": dead},
    )


def _receipts(settings: Settings, database: Database) -> Verdict:
    return _none_of(
        quality.unbalanced_receipts(database),
        "In every chapter's latest receipt, items seen = stored + unchanged + dead + unusable.",
        "{n} receipts do not add up: items were lost on the way; `era verify --fix` ingests these chapters again.",
    )


def _unusable(settings: Settings, database: Database) -> Verdict:
    return _none_of(
        quality.unusable_items(database),
        "Every doctrine item holds a sentence.",
        "{n} doctrine items hold no sentence and are not stored; each is named with its place and the reason.",
    )


def _quarantine(settings: Settings, database: Database) -> Verdict:
    return _none_of(
        quality.quarantined(database),
        "Every file and record of the drop could be read.",
        "{n} files or records cannot be read; each is read again when its file changes.",
    )


def _empty_doctrine(settings: Settings, database: Database) -> Verdict:
    chapters = quality.noted_chapters(database, ["empty_doctrine"])
    books = quality.books_without_doctrine(database)
    shares = [
        {
            "book": book["book"],
            "chapters": book["chapters"],
            "suspicious": book["suspicious"],
            "share": round(book["suspicious"] / book["chapters"], 3),
            "named": ", ".join(row["chapter"] for row in chapters if row["book"] == book["book"])[:400],
        }
        for book in books
    ]
    return Verdict(
        passed=not books,
        said=(
            f"{len(books):,} books have no doctrine at all, or none for a long chapter ({len(chapters):,} of these):"
            " the extractor probably failed there."
            if books
            else "No long chapter is without doctrine."
        ),
        offenders=len(chapters),
        named=shares[:MOST_NAMED],
        numbers={"books": len(books), "chapters": len(chapters)},
    )


def _noted(codes: list[str], well: str, ill: str) -> Callable[[Settings, Database], Verdict]:
    def judge(settings: Settings, database: Database) -> Verdict:
        return _none_of(quality.noted_chapters(database, codes), well, ill)

    return judge


def _domains(settings: Settings, database: Database) -> Verdict:
    rows = [{**row, "spellings": ", ".join(row["spellings"])} for row in quality.unknown_domains(database)]
    return _none_of(
        rows,
        "Every domain is one of the minister domains.",
        "{n} domains are none of the minister domains; an alias table (ERA_DOMAIN_ALIASES) can fold them.",
        entries=sum(row["entries"] for row in rows),
    )


def _read_share(settings: Settings, database: Database) -> Verdict:
    books: dict[str, list[tuple[str, int]]] = {}
    for row in quality.text_lengths(database):
        books.setdefault(row["book"], []).append((row["chapter"], row["characters"]))
    rows: list[dict[str, Any]] = []
    for book, chapters in sorted(books.items()):
        total = sum(characters for _, characters in chapters)
        long = [(key, characters) for key, characters in chapters if characters > EXTRACTOR_READS_CHARS]
        unread = sum(characters - EXTRACTOR_READS_CHARS for _, characters in long)
        if unread > total * _UNREAD_SHARE:
            named = ", ".join(key for key, _ in sorted(long, key=lambda pair: -pair[1]))
            rows.append({"book": book, "share": round(unread / total, 3), "characters": unread, "named": named[:400]})
    return _none_of(
        rows,
        "The extractor can have read nearly all of every book.",
        f"Of {{n}} books more than {_UNREAD_SHARE:.0%} of the text lies beyond the {EXTRACTOR_READS_CHARS:,} characters"
        " that an extractor's context usually holds: their doctrine is of the beginnings of their chapters.",
    )


CHECKS = (
    Check(
        name="input_is_readable",
        asset="chapters",
        description="Nothing of the drop is in quarantine.",
        blocking=False,
        judge=_quarantine,
    ),
    Check(
        name="doctrine_is_not_suspiciously_empty",
        asset="chapters",
        description="No chapter of 1,500 characters or more has empty doctrine, and no book has none at all.",
        blocking=False,
        judge=_empty_doctrine,
    ),
    Check(
        name="doctrine_has_its_text",
        asset="chapters",
        description="No entry claims to come from a chapter that is blank or has no text record.",
        blocking=False,
        judge=_noted(
            ["doctrine_without_text"],
            "Every chapter with doctrine has text.",
            "{n} chapters have doctrine but no text it could come from; the entries are kept, unproven.",
        ),
    ),
    Check(
        name="items_hold_a_sentence",
        asset="chapters",
        description="No doctrine item is empty, a placeholder, or an object of an unknown shape.",
        blocking=False,
        judge=_unusable,
    ),
    Check(
        name="items_are_no_prompt_echoes",
        asset="chapters",
        description="No entry reads like the extractor's own instructions.",
        blocking=False,
        judge=_noted(
            ["prompt_echo"],
            "No entry reads like an echo of a prompt.",
            "In {n} chapters entries read like an echo of the extraction prompt.",
        ),
    ),
    Check(
        name="texts_are_readable",
        asset="chapters",
        description="No chapter's text comes from a broken font or encoding.",
        blocking=False,
        judge=_noted(
            ["unreadable_text"],
            "Every text is readable.",
            "{n} chapters come from a broken font or encoding; scan or convert them anew.",
        ),
    ),
    Check(
        name="domains_are_known",
        asset="chapters",
        description="Every domain is one of the minister domains, as it is or by the alias table.",
        blocking=False,
        judge=_domains,
    ),
    Check(
        name="extractor_can_have_read_the_text",
        asset="chapters",
        description="The chapters are short enough for the extractor to have read them whole.",
        blocking=False,
        judge=_read_share,
    ),
    Check(
        name="dead_letters_are_empty",
        asset="embeddings",
        description="No text waits in the dead letters.",
        blocking=False,
        judge=_dead_letters,
    ),
    Check(
        name="first_pass_success_is_99_5_percent",
        asset="embeddings",
        description="Of the texts of the last run, 99.5 % were embedded without a dead letter.",
        blocking=False,
        judge=_first_pass,
    ),
    Check(
        name="every_text_has_a_vector",
        asset="vector_tables",
        description="Each chunk and entry of a finished chapter has its row, or a dead letter.",
        blocking=True,
        judge=_vectors,
    ),
    Check(
        name="receipts_add_up",
        asset="vector_tables",
        description="In each chapter's latest receipt, items seen = stored + unchanged + dead + unusable.",
        blocking=True,
        judge=_receipts,
    ),
    Check(
        name="files_agree_with_tables",
        asset="minister_files",
        description="Each minister file has the bytes the database would render, and no file is there beside them.",
        blocking=True,
        judge=_files,
    ),
)


def run_checks(settings: Settings, database: Database) -> list[tuple[Check, Verdict]]:
    """Judge every claim, in a fixed order."""
    return [(check, check.judge(settings, database)) for check in CHECKS]
