"""Cleans text that came out of PDFs and language models, so that PostgreSQL takes it and search finds its words.

Works on whole chapters with regular expressions and `translate`; what is repaired is counted by kind. Layout rule: a
PDF breaks the line where the page is full, so a single line break is a space; a blank line is a paragraph border and
stays as one empty line; a page break is a paragraph border only after a finished sentence.
"""

import html
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from html.entities import html5

_LIGATURES = {"ﬀ": "ff", "ﬁ": "fi", "ﬂ": "fl", "ﬃ": "ffi", "ﬄ": "ffl", "ﬅ": "st", "ﬆ": "st"}
# The typographic part of Windows-1252, as old converters leave it; other C1 codes are leftovers of font ciphers.
_WINDOWS_PUNCTUATION = {
    "\x85": "…",
    "\x91": "‘",
    "\x92": "’",
    "\x93": "“",
    "\x94": "”",
    "\x95": "•",
    "\x96": "–",
    "\x97": "—",
}
_ZERO_WIDTH = frozenset("\u200b\u2060\ufeff")
_ENTITY = re.compile(r"&(#[0-9]{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});")
_SOFT_HYPHEN_BREAK = re.compile("\u00ad[ \t]*\r?\n[ \t]*")
_HYPHEN_BREAK = re.compile(r"-(?<=[^\W\d_]-) *\n *(?=[^\W\d_])")
_BLANK_LINES = re.compile(r"\n *(?:\n *)+")
_SINGLE = r"""(?:[^\W\d_]|[.,;:!?'"’“”‘()\-–—])"""
_LEAST_SPACED_LETTERS = 8
_SPACED_LETTERS = re.compile(rf"(?<!\S)[^\W\d_](?:(?: {{1,4}}| ?\n ?){_SINGLE}(?!\S)){{{_LEAST_SPACED_LETTERS - 1},}}")
_SPACED_WORD_BORDER = re.compile(r" {2,}| ?\n ?")
_SENTENCE_END = frozenset(".!?:…\"'”’)]")
_LONGEST_WORD = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class CleanText:
    """Cleaned text and how often each kind of damage was repaired (kinds that did not occur are absent)."""

    text: str
    repairs: Mapping[str, int]


def clean_text(raw: str) -> CleanText:
    """Clean a chapter's text. Total and idempotent; the result holds no control character except `\\n`.

    Removed: NUL, control characters, lone surrogates, private use, U+FFFD, soft hyphens, zero-width spaces. Replaced:
    ligatures, Windows-1252 punctuation, no-break and other spaces, HTML entities, hyphens at line ends (joined unless
    the chapter writes the word with its hyphen elsewhere), runs of 8 or more spaced letters (joined; wider gaps in them
    are kept as word borders).
    """
    repairs: Counter[str] = Counter()
    text = raw
    # One repair can lay bare the next (an entity that decodes to a ligature); each pass leaves less to repair.
    while (cleaned := _clean_once(text, repairs)) != text:
        text = cleaned
    return CleanText(text=text, repairs=dict(sorted(repairs.items())))


def clean_line(raw: str) -> str:
    """Clean a sentence, a title or a name: as `clean_text`, on one line."""
    return " ".join(clean_text(raw).text.split())


def is_visible(text: str) -> bool:
    """Whether anything can be seen of a text: letters, digits or signs, not only blanks, joiners and marks of direction."""
    return any(unicodedata.category(character)[0] in "LNPS" for character in text)


def _clean_once(text: str, repairs: Counter[str]) -> str:
    if "\u00ad" in text:
        text, count = _SOFT_HYPHEN_BREAK.subn("", text)
        _note(repairs, "soft_hyphens", count)
    text = text.replace("\r\n", "\n")
    text = _repair_characters(text, repairs)
    if "&" in text:
        text = _ENTITY.sub(lambda match: _decode_entity(match, repairs), text)
    if "\f" in text:
        _note(repairs, "page_breaks", text.count("\f"))
        text = _join_pages(text)
    text = _join_hyphens(text, repairs)
    text = _SPACED_LETTERS.sub(lambda match: _join_letters(match, repairs), text)
    paragraphs = (" ".join(paragraph.split()) for paragraph in _BLANK_LINES.split(text))
    return "\n\n".join(paragraph for paragraph in paragraphs if paragraph)


def _note(repairs: Counter[str], kind: str, count: int) -> None:
    if count:
        repairs[kind] += count


def _repair_characters(text: str, repairs: Counter[str]) -> str:
    table: dict[int, str] = {}
    for character in set(text):
        fate = _fate(character)
        if fate is not None:
            replacement, kind = fate
            table[ord(character)] = replacement
            _note(repairs, kind, text.count(character))
    return text.translate(table) if table else text


@lru_cache(maxsize=4096)
def _fate(character: str) -> tuple[str, str] | None:
    """What becomes of a character, and the kind of repair; None when it stays."""
    code = ord(character)
    if character in " \n\f" or 0x20 < code < 0x7F:
        return None
    if code == 0:
        return "", "nul"
    if character in "\t\v":
        return " ", "tabs"
    if character in "\r\u2028\u2029":
        return "\n", "line_separators"
    if code < 0x20 or code == 0x7F:
        return "", "control_characters"
    if 0x80 <= code <= 0x9F:
        return _WINDOWS_PUNCTUATION.get(character, ""), "c1_controls"
    if code == 0xAD:
        return "", "soft_hyphens"
    if character in _LIGATURES:
        return _LIGATURES[character], "ligatures"
    if character in "\u2010\u2011":
        return "-", "hyphens"
    if character in _ZERO_WIDTH:
        return "", "zero_width"
    if character.isspace():
        return " ", "no_break_spaces"
    if 0xD800 <= code <= 0xDFFF:
        return "", "surrogates"
    if 0xE000 <= code <= 0xF8FF or code >= 0xF0000:
        return "", "private_use"
    if code == 0xFFFD or code & 0xFFFE == 0xFFFE:
        return "", "replacement_characters"
    return None


def _decode_entity(match: re.Match[str], repairs: Counter[str]) -> str:
    name = match[1]
    decoded = html.unescape(match[0]) if name.startswith("#") else html5.get(f"{name};", match[0])
    if decoded != match[0]:
        repairs["entities"] += 1
    return decoded


def _join_pages(text: str) -> str:
    pages = [page for page in (page.strip(" \n") for page in text.split("\f")) if page]
    joined: list[str] = []
    for page in pages:
        if joined:
            joined.append("\n\n" if joined[-1][-1] in _SENTENCE_END else "\n")
        joined.append(page)
    return "".join(joined)


def _join_hyphens(text: str, repairs: Counter[str]) -> str:
    pieces: list[str] = []
    start = 0
    for match in _HYPHEN_BREAK.finditer(text):
        left, right = match.span()
        before = re.search(r"[^\W\d_]+\Z", text[max(start, left - _LONGEST_WORD) : left])
        after = re.match(r"[^\W\d_]+", text[right : right + _LONGEST_WORD])
        compound = f"{before[0] if before else ''}-{after[0] if after else ''}"
        pieces.append(text[start:left])
        if not text[right].islower() or compound in text:
            pieces.append("-")
        repairs["hyphen_breaks"] += 1
        start = right
    return "".join((*pieces, text[start:])) if pieces else text


def _join_letters(match: re.Match[str], repairs: Counter[str]) -> str:
    run = match[0]
    if sum(character.isalpha() for character in run) < _LEAST_SPACED_LETTERS:
        return run
    repairs["spaced_letters"] += 1
    return " ".join(word.replace(" ", "") for word in _SPACED_WORD_BORDER.split(run))
