"""Reads a JSON file of the drop, and says exactly where and why when that cannot be done.

Bytes in, parsed JSON out; what the values mean is `intake.reader`.
"""

import json
from collections import Counter
from pathlib import Path
from typing import Any

from era_dagster.domain.errors import CorruptInput

_REPAIR = "Repair it; it is read again when it changes."


class RepeatedKeys(dict[str, Any]):
    """An object in which keys occur twice, so that one of their values is lost; `keys_twice` are those."""

    keys_twice: frozenset[str] = frozenset()


def read_bytes(file: Path) -> bytes:
    """The content of a file; raises `CorruptInput` when the system does not hand it out."""
    try:
        # A pipe would be waited for, and a device read without end.
        if file.exists() and not file.is_file():
            raise CorruptInput(f"{file} is no regular file.", path=file, hint="Put a file in its place.")
        return file.read_bytes()
    except OSError as error:
        raise CorruptInput(
            f"{file} cannot be read: {error.strerror or error}.", path=file, hint="Check that it is there and readable."
        ) from error


def parse_json(data: bytes, file: Path) -> Any:
    """The JSON in `data`, UTF-8 with or without byte order mark; objects with repeated keys are `RepeatedKeys`.

    Raises `CorruptInput` with line and column for bytes that are empty, not UTF-8 or not whole JSON.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        column = error.start - data.rfind(b"\n", 0, error.start)
        raise _corrupt(
            file, f"is not UTF-8: byte 0x{data[error.start]:02x}", f"line {line} column {column}", "Save it as UTF-8."
        ) from error
    if not text.strip():
        raise _corrupt(
            file, "is empty", "line 1 column 1", "It may still be written; it is read again when it changes."
        )
    try:
        return json.loads(text, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        location = f"line {error.lineno} column {error.colno}"
        raise _corrupt(file, f"is not valid JSON: {error.msg}", location, _REPAIR) from error
    except RecursionError as error:
        raise _corrupt(file, "is nested too deeply", "", _REPAIR) from error
    except ValueError as error:
        # The json module refuses integers of more than 4,300 digits this way.
        raise _corrupt(file, "holds a number that is too long", "", _REPAIR) from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) == len(pairs):
        return found
    repeated = RepeatedKeys(found)
    repeated.keys_twice = frozenset(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
    return repeated


def as_list(content: Any, file: Path) -> list[Any]:
    """The list that a file must hold; raises `CorruptInput` naming what it holds instead."""
    if isinstance(content, list):
        return content
    raise _corrupt(file, f"holds {kind_of(content)}, not a list of chapters", "line 1 column 1", _REPAIR)


def kind_of(value: Any) -> str:
    """What a JSON value is, in words: "an object", "a list", "null", ..."""
    names = {dict: "an object", list: "a list", str: "a string", type(None): "null", bool: "true or false"}
    return next((name for kind, name in names.items() if isinstance(value, kind)), "a number")


def _corrupt(file: Path, what: str, location: str, hint: str) -> CorruptInput:
    where = f" at {location}" if location else ""
    return CorruptInput(f"{file} {what}{where}.", path=file, location=location, hint=hint)
