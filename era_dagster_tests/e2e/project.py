"""A user's project folder for end-to-end tests: Dagster's files, a drop folder, and a bare environment."""

import json
import os
import shutil
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from era_dagster_tests.forking import run_forked

REPOSITORY = Path(__file__).parents[2]
SAMPLES = REPOSITORY / "era_dagster" / "samples"
BIN = Path(sys.executable).parent


@dataclass(frozen=True)
class Project:
    """Runs programs as a user would, in `folder`, with only PATH, HOME and the given variables."""

    folder: Path
    variables: dict[str, str]

    @property
    def drop(self) -> Path:
        return self.folder / "data" / "drop"

    @property
    def environment(self) -> dict[str, str]:
        kept = {name: os.environ[name] for name in ("HOME", "SYSTEMROOT", "TEMP") if name in os.environ}
        return kept | {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"} | self.variables

    def run(self, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            words,
            cwd=self.folder,
            env=self.environment | variables,
            capture_output=True,
            encoding="utf-8",
            timeout=240,
            check=False,
        )

    def run_forked(self, work: Callable[..., None], *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """The same for a function, in a process that need not import the large libraries."""
        return run_forked(work, *words, folder=self.folder, environment=self.environment | variables)

    def materialize(self, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """`dagster asset materialize ...` in a shell that knows only the module's name."""
        module = variables | {"DAGSTER_MODULE_NAME": "era_dagster.definitions"}
        return self.run_forked(run_dagster, "asset", "materialize", *words, **module)

    def era(self, *words: str) -> dict:
        """`era ... --json`."""
        done = self.run("era", *words, "--json")
        assert done.stdout, done.stderr
        return json.loads(done.stdout)

    def materialized(self, asset: str) -> set[str]:
        """The partitions Dagster's own instance shows as materialized."""
        done = self.run_forked(print_materialized, asset)
        assert done.returncode == 0, done.stderr
        return set(json.loads(done.stdout.splitlines()[-1]))

    @contextmanager
    def running(self, *words: str) -> Iterator[subprocess.Popen[bytes]]:
        """A long-lived program, started as from a terminal and stopped with Ctrl-C."""
        with (self.folder / "output.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-c", _AS_FROM_A_TERMINAL, *words],
                cwd=self.folder,
                env=self.environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                yield process
            finally:
                process.send_signal(signal.SIGINT)
                try:
                    process.wait(30)
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait(10)


def run_dagster(*words: str) -> None:
    """What the script `dagster` does."""
    from dagster._cli import main

    sys.argv[:] = ["dagster", *words]
    main()


def print_materialized(asset: str) -> None:
    import dagster as dg

    from era_dagster.defs.instance import open_instance
    from era_dagster.settings import load_settings

    warnings.simplefilter("ignore")
    with open_instance(load_settings(os.environ)) as instance:
        print(json.dumps(sorted(instance.get_materialized_partitions(dg.AssetKey(asset)))))  # noqa: T201


# A test runner in the background may have SIGINT ignored; Dagster would then ignore SIGTERM too.
_AS_FROM_A_TERMINAL = (
    "import os, signal, sys\n"
    "signal.signal(signal.SIGINT, signal.SIG_DFL)\n"
    "signal.signal(signal.SIGTERM, signal.SIG_DFL)\n"
    "os.execvp(sys.argv[1], sys.argv[1:])\n"
)


def make_project(folder: Path, variables: dict[str, str]) -> Project:
    """A folder with the repository's `dagster.yaml` and `workspace.yaml` and an empty drop folder."""
    for name in ("dagster.yaml", "workspace.yaml"):
        shutil.copy(REPOSITORY / name, folder / name)
    (folder / "data" / "drop").mkdir(parents=True)
    return Project(folder, variables)


def write_book(drop: Path, name: str, chapters: Sequence[int], *, extra: str = "") -> Path:
    """Drop a small book; `extra` becomes part of every text."""
    book = drop / name
    book.mkdir(parents=True, exist_ok=True)
    sentence = "The keeper wrote the level down every morning before he opened the gate."
    texts = [
        {"chapter_index": i, "chapter_title": None, "raw_text": f"{name} {i}{extra}. {sentence * 3}"} for i in chapters
    ]
    doctrine = [
        {
            "chapter_index": i,
            "domains": ["truth", "risk"],
            "principles": [f"A dated record beats a good memory, {name} {i}{extra}."],
            "rules": [],
            "claims": [],
            "warnings": [f"A number without a date is a rumour, {name} {i}{extra}."],
        }
        for i in chapters
    ]
    for file, content in (("01_chapters.json", texts), ("02_doctrine.json", doctrine)):
        part = book / f"{file}.part"
        part.write_text(json.dumps(content), encoding="utf-8")
        part.replace(book / file)
    return book
