"""Writes book folders and files the way the extractor does."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def drop(tmp_path: Path) -> Path:
    """An empty drop folder."""
    folder = tmp_path / "drop"
    folder.mkdir()
    return folder


@pytest.fixture
def write_book(drop: Path) -> Callable[..., Path]:
    """Writes `<drop>/<name>` from lists of chapter and doctrine records (bytes are written as they are, None: no file)."""

    def write(name: str = "Ferry Notes", chapters: Any = None, doctrine: Any = None) -> Path:
        folder = drop / name
        folder.mkdir(exist_ok=True)
        for file, content in (("01_chapters.json", chapters), ("02_doctrine.json", doctrine)):
            if content is not None:
                data = content if isinstance(content, bytes) else json.dumps(content).encode()
                (folder / file).write_bytes(data)
        return folder

    return write
