"""Records as the extractor writes them, for the tests of the intake."""

from typing import Any

TEXT = "The ferry captain counted the sacks twice before he let a rope go."


def text_record(index: Any, text: Any = TEXT, **more: Any) -> dict[str, Any]:
    return {"chapter_index": index, "chapter_id": "x", "chapter_title": None, "raw_text": text, **more}


def doctrine_record(index: Any, *rules: Any, **more: Any) -> dict[str, Any]:
    return {
        "chapter_index": index,
        "chapter_title": None,
        "domains": ["risk"],
        "rules": list(rules),
        "_meta": {},
        **more,
    }
