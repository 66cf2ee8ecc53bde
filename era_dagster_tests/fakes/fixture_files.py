"""Unpacks the shared fixtures of messy input: JSON files whose `steps` describe the files of a drop folder."""

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def expanded(value: Any) -> Any:
    if isinstance(value, dict):
        if value.keys() == {"__repeat__"}:
            text, times = value["__repeat__"]
            return text * times
        return {key: expanded(member) for key, member in value.items()}
    return [expanded(member) for member in value] if isinstance(value, list) else value


def content_of(value: Any) -> bytes:
    if isinstance(value, dict) and value.keys() == {"__raw_text__"}:
        return value["__raw_text__"].encode("utf-8")
    if isinstance(value, dict) and value.keys() == {"__raw_base64__"}:
        return base64.b64decode(value["__raw_base64__"])
    return json.dumps(expanded(value)).encode("ascii")


def write_step(step: Mapping[str, Mapping[str, Any]], drop: Path) -> None:
    for book, files in step.items():
        for name, content in files.items():
            path = drop / book / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content_of(content))
