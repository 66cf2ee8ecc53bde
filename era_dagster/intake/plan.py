"""Decides what a look at the drop folder means: what to read, what to wait for, what is new, changed or gone.

Pure: a snapshot and what is known go in, a plan comes out; the caller reads files, asks the clock and keeps the register.
Two steps, for files are read only when their stat changed: `plan_drop`, then (after reading) `plan_chapters`.
"""

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from era_dagster.domain.doctrine import SourceChapter
from era_dagster.domain.identity import READER_VERSION, content_hash, partition_key
from era_dagster.intake.reader import BookRead
from era_dagster.intake.snapshot import SourceStat


class KnownSource(Protocol):
    """What the register holds of a source: `signature` of its files and the `state` ("read", "waiting", "unreadable")
    at the last look, `reason` for that state, content hashes of its `chapters` by partition key."""

    @property
    def signature(self) -> str: ...
    @property
    def state(self) -> str: ...
    @property
    def reason(self) -> str: ...
    @property
    def chapters(self) -> Mapping[str, bytes]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """How an unsettled source looked, and since when (nanoseconds since 1970); handed to the next `plan_drop`."""

    signature: str
    since_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DropPlan:
    """`read`: sources to read now; `waiting`: source and reason, not ready; `unsettled`: still being written, by path;
    `gone`: paths of known sources that are no longer there; `unchanged`: how many need nothing."""

    read: tuple[SourceStat, ...]
    waiting: tuple[tuple[SourceStat, str], ...]
    unsettled: Mapping[str, Look]
    gone: tuple[str, ...]
    unchanged: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedChapter:
    """A chapter that was read, with the source it belongs to."""

    partition_key: str
    source_path: str
    content_hash: bytes
    chapter: SourceChapter


@dataclass(frozen=True, slots=True, kw_only=True)
class ChapterPlan:
    """`new`, `changed`, `unchanged`: the chapters read, sorted by key; `gone`: keys to retire, sorted.

    `owned`: for each source read, the content hashes by key that the register shall hold for it from now on.
    `shadowed`: for each source whose chapters a newer source holds too, the reason to record with it; `plan_drop` reads
    such a source again when anything else changes.
    """

    new: tuple[PlannedChapter, ...]
    changed: tuple[PlannedChapter, ...]
    unchanged: tuple[PlannedChapter, ...]
    gone: tuple[str, ...]
    owned: Mapping[str, Mapping[str, bytes]]
    shadowed: Mapping[str, str]


def signature(source: SourceStat) -> str:
    """Equal as long as the source need not be read again: reader version, and name, size and time of each file."""
    looked_at = source.files if source.priority is None else (*source.files, source.priority)
    files = (f"{file.name}:{file.size}:{file.mtime_ns}" for file in looked_at)
    return ";".join((f"v{READER_VERSION}", *files))


def plan_drop(
    snapshot: Sequence[SourceStat],
    known: Mapping[str, KnownSource],
    *,
    now_ns: int,
    settle_seconds: float,
    unsettled: Mapping[str, Look],
) -> DropPlan:
    """What to do about each source; `known` (by path) holds the sources of the same root, `unsettled` is of the last look.

    A source is settled when its youngest file is `settle_seconds` old, or has looked the same for so long (which helps
    when its clock runs ahead). An unreadable source is read again only when its files change.
    """
    settle_ns = int(settle_seconds * 1e9)
    read: list[SourceStat] = []
    waiting: list[tuple[SourceStat, str]] = []
    looks: dict[str, Look] = {}
    shadowed: list[SourceStat] = []
    unchanged = 0
    for source in snapshot:
        if source.obstacle:
            waiting.append((source, source.obstacle))
            continue
        seen = signature(source)
        before = known.get(source.path)
        if before is not None and before.signature == seen and before.state in ("read", "unreadable"):
            if before.state == "read" and before.reason:
                shadowed.append(source)
            else:
                unchanged += 1
            continue
        look = unsettled.get(source.path)
        if look is None or look.signature != seen:
            look = Look(signature=seen, since_ns=now_ns)
        if now_ns - youngest_ns(source) >= settle_ns or now_ns - look.since_ns >= settle_ns:
            read.append(source)
        else:
            looks[source.path] = look
    present = {source.path for source in snapshot}
    gone = tuple(sorted(path for path in known if path not in present))
    if read or gone:
        read += shadowed
    else:
        unchanged += len(shadowed)
    return DropPlan(read=tuple(read), waiting=tuple(waiting), unsettled=looks, gone=gone, unchanged=unchanged)


def youngest_ns(source: SourceStat) -> int:
    """When the source last changed, in nanoseconds since 1970."""
    return max((file.mtime_ns for file in source.files), default=0)


def plan_chapters(
    snapshot: Sequence[SourceStat], books: Iterable[BookRead], known: Mapping[str, KnownSource]
) -> ChapterPlan:
    """What reading told: `books` are those of every source read after this `snapshot`, `known` as in `plan_drop`.

    A chapter that two sources hold (the same book dropped in both forms, say) belongs to the source changed last, chapter
    by chapter. A chapter is gone when its source is gone, or was read and holds it no more, and no source read now holds
    it. A source that is there but was not read keeps what it had, and so does one that left a chapter out as a `Problem`.
    """
    # What cannot be looked at is as new as can be: it keeps what it had until it is there again, or its name is gone.
    changed_at = {source.path: youngest_ns(source) if source.files else sys.maxsize for source in snapshot}
    owners = {key: (path, digest) for path, source in known.items() for key, digest in source.chapters.items()}
    candidates: dict[str, PlannedChapter] = {}
    left_out: set[tuple[str, str]] = set()
    sources_read: dict[str, dict[str, bytes]] = {}
    rivals: dict[str, set[str]] = {}

    def is_newer(path: str, other: str) -> bool:
        return (changed_at.get(path, -1), path) > (changed_at.get(other, -1), other)

    for book in books:
        path = str(book.path)
        sources_read.setdefault(path, {})
        left_out.update((path, problem.partition_key) for problem in book.problems if problem.partition_key)
        for chapter in book.chapters:
            key = partition_key(chapter.book_slug, chapter.chapter)
            planned = PlannedChapter(
                partition_key=key, source_path=path, content_hash=content_hash(chapter), chapter=chapter
            )
            rival = candidates.get(key)
            if rival is None:
                candidates[key] = planned
                continue
            winner, loser = (planned, rival) if is_newer(path, rival.source_path) else (rival, planned)
            candidates[key] = winner
            rivals.setdefault(loser.source_path, set()).add(winner.source_path)
    new: list[PlannedChapter] = []
    changed: list[PlannedChapter] = []
    unchanged: list[PlannedChapter] = []
    for key in sorted(candidates):
        planned = candidates[key]
        owner, digest = owners.get(key, (None, b""))
        if owner in changed_at and (owner not in sources_read or (owner, key) in left_out):
            if is_newer(owner, planned.source_path):
                if owner in sources_read:
                    sources_read[owner][key] = digest
                rivals.setdefault(planned.source_path, set()).add(owner)
                continue
            rivals.setdefault(owner, set()).add(planned.source_path)
        sources_read[planned.source_path][key] = planned.content_hash
        (new if owner is None else unchanged if digest == planned.content_hash else changed).append(planned)
    gone: list[str] = []
    for key, (owner, digest) in owners.items():
        if key in candidates:
            continue
        if (owner, key) in left_out:
            sources_read[owner][key] = digest
        elif owner not in changed_at or owner in sources_read:
            gone.append(key)
    return ChapterPlan(
        new=tuple(new),
        changed=tuple(changed),
        unchanged=tuple(unchanged),
        gone=tuple(sorted(gone)),
        owned=sources_read,
        shadowed={
            path: f"newer drops hold chapters of it: {', '.join(sorted(found))}" for path, found in rivals.items()
        },
    )
