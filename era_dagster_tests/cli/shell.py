"""A user's shell: runs `era` in processes, in a folder of its own, and drops small books there."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

from era_dagster_tests.forking import run_forked

TEXT = "The keeper wrote the level down every morning. He said that a number without a date is a rumour. " * 3
DOCTRINE = {
    "principles": ["A dated record beats a good memory."],
    "rules": ["Write the level down before breakfast."],
    "claims": ["Records shorten the next crisis."],
    "warnings": ["A number without a date is a rumour."],
}


def write_book(folder: Path, name: str, chapters: int = 2, domains: tuple[str, ...] = ("truth", "risk")) -> Path:
    book = folder / name
    book.mkdir(parents=True)
    texts = [
        {"chapter_index": i, "chapter_title": None, "raw_text": f"{name} {i}. {TEXT}"} for i in range(1, chapters + 1)
    ]
    doctrine = [
        {
            "chapter_index": i,
            "domains": list(domains),
            **{category: [f"{text} {name} {i}." for text in items] for category, items in DOCTRINE.items()},
        }
        for i in range(1, chapters + 1)
    ]
    (book / "01_chapters.json").write_text(json.dumps(texts), encoding="utf-8")
    (book / "02_doctrine.json").write_text(json.dumps(doctrine), encoding="utf-8")
    return book


def run_era(*words: str) -> None:
    """`python -m era_dagster.cli` in this process."""
    sys.argv[1:] = words
    runpy.run_module("era_dagster.cli", run_name="__main__", alter_sys=True)


class Shell:
    """Runs `era` in a process with the given variables and nothing else of ours."""

    def __init__(self, folder: Path, variables: dict[str, str]) -> None:
        self.folder = folder
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("ERA_", "DAGSTER_"))}
        self.environment = inherited | {"COLUMNS": "200"} | variables

    def era(self, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return run_forked(run_era, *words, folder=self.folder, environment=self.environment | variables)

    def start(self, *words: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-m", "era_dagster.cli", *words],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def json(self, *words: str, **variables: str) -> dict:
        done = self.era(*words, "--json", **variables)
        assert done.stdout, done.stderr
        return json.loads(done.stdout)
