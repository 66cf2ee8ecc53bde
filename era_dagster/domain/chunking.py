"""Cuts a chapter's cleaned text into chunks for embedding: whole sentences where they fit, never more than the cap.

Pure positions into one string; no library, because none of those measured holds the minimum size: a semantic splitter
left 2 % of the chunks below it. Nothing but white space lies between chunks, so no text is lost.
"""

import re
from bisect import bisect_right
from dataclasses import dataclass
from typing import Literal

from era_dagster.domain.doctrine import Chunk
from era_dagster.domain.errors import ConfigurationError

# English words have 5 letters on average; 8 lets 512 ordinary words through and caps text without blanks at 4,096.
_LETTERS_PER_WORD = 8
# A sentence ends at a mark before a blank and a new beginning, but not after an initial or a title; or at a blank line.
_SENTENCE_END = re.compile(
    # One leading set, and the look-behinds after it: so the engine scans for marks 5 times faster.
    r"[.!?…。！？\n](?:"
    r"(?<=[.!?…])(?<!\b[A-Z]\.)(?<!\b(?:Mr|Dr|St)\.)(?<!\bMrs\.)(?<!\bvol\.)(?<!\be\.g\.)(?<!\bi\.e\.)"
    r"[.!?…\"'”’»)\]]*(?=\s+[^\sa-z])"
    r"|(?<=[!?…])[!?…\"'”’»)\]]*(?=\s)"
    r"|(?<=[。！？])[。！？」』”’]*"
    r"|(?<=\n)(?=\n))"
)
_CLAUSE_MARKS = (";", ":", "—", ",")


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkRules:
    """How to cut. Sizes in characters; `words` counts blank-separated words and matters only in mode "words".

    Mode "sentences": `min_chars` to `max_chars` a chunk. Mode "words": `words` words a chunk, but at most 8 characters a
    word in all, blanks not counted (`max_chars`, if that is more). `overlap_chars`: at most so much of a chunk's end
    opens the next one.
    Raises `ConfigurationError` for sizes that contradict each other.
    """

    mode: Literal["sentences", "words"]
    min_chars: int
    max_chars: int
    overlap_chars: int
    words: int

    def __post_init__(self) -> None:
        if not 1 <= self.min_chars <= self.max_chars or not 0 <= self.overlap_chars <= self.max_chars // 2:
            raise ConfigurationError(
                f"Chunks of {self.min_chars} to {self.max_chars} characters with an overlap of {self.overlap_chars}"
                " cannot be cut.",
                hint="Choose 1 <= minimum <= maximum, and an overlap of at most half the maximum.",
            )
        if self.words < 1:
            raise ConfigurationError(f"Chunks of {self.words} words cannot be cut.", hint="Choose at least 1.")


def cut_chunks(text: str, rules: ChunkRules) -> tuple[Chunk, ...]:
    """The chunks of a cleaned text, in order; blank text gives none.

    `chunk.text == text[chunk.start:chunk.end]`, stripped; no chunk is over the cap. In mode "sentences" only the last
    chunk is below `min_chars`: where the next sentence would not fit, it is cut at a clause, a word, or (in a word
    longer than a chunk) at the cap.
    """
    cutter = _WordCutter(text, rules) if rules.mode == "words" else _SentenceCutter(text, rules)
    chunks: list[Chunk] = []
    start, covered, length = _skip_blanks(text, 0), 0, len(text.rstrip())
    while start < length:
        end = cutter.end(start, covered, length)
        while text[end - 1].isspace():
            end -= 1
        chunks.append(Chunk(position=len(chunks), start=start, end=end, text=text[start:end]))
        if end >= length:
            break
        covered = end
        start = _skip_blanks(text, cutter.overlap_start(start, end))
    return tuple(chunks)


def _skip_blanks(text: str, position: int) -> int:
    while position < len(text) and text[position].isspace():
        position += 1
    return position


class _SentenceCutter:
    """Ends a chunk at the last sentence end between the minimum and the maximum, else at the best lesser border."""

    def __init__(self, text: str, rules: ChunkRules) -> None:
        self._text = text
        self._rules = rules
        self._cap = rules.max_chars
        self._ends = [match.end() for match in _SENTENCE_END.finditer(text)]

    def end(self, start: int, covered: int, length: int) -> int:
        """Where the chunk that begins at `start` ends; always beyond `covered`."""
        latest = start + self._cap
        if length <= latest:
            return length
        # A blank at the end is cut off afterwards, so the character at `earliest` must be a letter.
        earliest = max(start + self._rules.min_chars, covered + 1)
        earliest = _skip_blanks(self._text, earliest - 1) + 1
        index = bisect_right(self._ends, latest) - 1
        if index >= 0 and self._ends[index] >= earliest:
            return self._ends[index]
        return _lesser_border(self._text, earliest, latest)

    def overlap_start(self, start: int, end: int) -> int:
        """Where the next chunk begins so that it repeats at most `overlap_chars` of this one."""
        earliest = max(end - self._rules.overlap_chars, start + 1)
        if earliest >= end:
            return end
        index = bisect_right(self._ends, earliest - 1)
        if index < len(self._ends) and self._ends[index] < end:
            return self._ends[index]
        blank = self._text.find(" ", earliest - 1, end)
        return blank if blank >= 0 else end


class _WordCutter(_SentenceCutter):
    """Ends a chunk after a number of words, or at the last word that fits under the cap."""

    def __init__(self, text: str, rules: ChunkRules) -> None:
        super().__init__(text, rules)
        self._cap = max(rules.max_chars, rules.words * _LETTERS_PER_WORD)
        self._word_ends = [match.end() for match in re.finditer(r"\S+", text)]
        self._without_blanks = [end - number for number, end in enumerate(self._word_ends)]

    def end(self, start: int, covered: int, length: int) -> int:
        """Where the chunk that begins at `start` ends; always beyond `covered`."""
        first = bisect_right(self._word_ends, start)
        fitting = bisect_right(self._without_blanks, start + self._cap - first) - 1
        last = min(first + self._rules.words - 1, fitting)
        end = self._word_ends[last] if last >= first else start + self._cap
        if end <= covered:
            end = min(self._word_ends[bisect_right(self._word_ends, covered)], start + self._cap)
        return min(end, length)


def _lesser_border(text: str, earliest: int, latest: int) -> int:
    for mark in _CLAUSE_MARKS:
        found = text.rfind(mark + " " if mark != "—" else mark, earliest - 1, latest)
        if found >= 0 and found + 1 >= earliest:
            return found + 1
    blank = text.rfind(" ", earliest, latest + 1)
    return blank if blank >= 0 else latest
