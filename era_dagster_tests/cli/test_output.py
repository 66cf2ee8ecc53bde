"""What `era` prints, whatever the names in it and wherever it goes."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path, PureWindowsPath

import pytest
from rich.console import Console

from era_dagster.cli import output
from era_dagster.cli.output import ask, run_guarded, typed
from era_dagster_tests.cli.shell import Shell, write_book
from era_dagster_tests.fakes.embedding_server import FakeEmbeddingServer, serving


@pytest.mark.parametrize("name", ["Notes [b] on [red]things", "Ends [/b] here"])
def test_brackets_in_a_book_s_name_are_shown_and_no_markup(shell: Shell, name: str) -> None:
    record = {"book": name, "chapter_index": 1, "text": "Wait.", "domains": ["truth"], "rules": ["Wait."]}
    (shell.folder / "data" / "drop" / "one.json").write_text(json.dumps(record), encoding="utf-8")
    assert shell.era("ingest").returncode == 0
    done = shell.era("status")
    assert done.returncode == 0, done.stderr
    assert f" {name} " in done.stdout


def test_a_table_in_a_pipe_is_folded_nowhere(shell: Shell) -> None:
    done = shell.era("doctor", "--settings", COLUMNS="40")
    assert "ERA_METRICS_INTERVAL_SECONDS" in done.stdout
    assert str(shell.folder / "data" / "drop") in done.stdout.split("Settings")[1]


@pytest.mark.parametrize(
    ("width", "book"),
    [
        (40, "Letters of a [b]Go-Between"),
        (80, "Letters of a [b]Go-Between"),
        (120, "Letters of a [b]Go-Between"),
        (90, "孫子兵法孫子兵"),
    ],
)
def test_no_number_and_no_word_is_cut_by_a_narrow_screen(
    width: int, book: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`era status` on 80 columns had "chapte" over "rs", and books in six letters a line; on 40 in one."""
    screen = Console(file=io.StringIO(), force_terminal=True, color_system=None, width=width, soft_wrap=True)
    monkeypatch.setattr(output, "stdout", screen)
    columns = ("book", "chapters", "chunks", "entries", "embedded", "in tables", "in files", "dead", "notes")
    output.print_table("Books", columns, [(book, 1234, 17, 49, 6, 6, 6, 0, 0)])
    said = screen.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    for words in (*columns, "1,234", book.rsplit("]", maxsplit=1)[-1]):
        assert words in said
    assert ("chapters 1,234, chunks 17" in said) == (width < 120)


def test_what_a_row_does_not_have_is_not_named_on_a_narrow_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Console(file=io.StringIO(), force_terminal=True, color_system=None, width=30, soft_wrap=True)
    monkeypatch.setattr(output, "stdout", screen)
    output.print_table("Letters", ("number", "error", "text"), [(7, "", "a text that is longer than the screen")])
    said = screen.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    assert "    text a text that is longer than the screen\n" in said


@pytest.mark.parametrize(
    "words",
    [
        ("search", "wait", "-k", "0"),
        ("verify", "--fix"),
        ("ingest", "nowhere"),
        ("spaces", "promote", "9"),
        ("errors", "--forget"),
    ],
)
def test_wrong_use_is_told_as_json_to_who_asked_for_json(shell: Shell, words: tuple[str, ...]) -> None:
    done = shell.era(*words, "--json")
    assert done.returncode == 2
    said = json.loads(done.stdout)["error"]
    assert said in done.stderr
    assert "Error: " in done.stderr
    assert "Error:  " not in done.stderr


@pytest.mark.skipif(os.name == "nt", reason="asks a POSIX shell")
@pytest.mark.parametrize(
    "name", ["My Books", "Keeper's", "$HOME", "a`b`", 'the "best"', "back\\\\slash", "so!", "Ünï [1]"]
)
def test_a_path_in_a_command_that_is_told_reaches_the_command_as_it_is(name: str) -> None:
    command = f"printf %s {typed(Path('/books', name))}"
    assert subprocess.check_output(["sh", "-c", command], encoding="utf-8") == f"/books/{name}"


def test_a_path_in_a_command_that_is_told_is_in_the_only_quotes_that_cmd_exe_knows() -> None:
    assert typed("C:/My Books/Keeper's") == '"C:/My Books/Keeper\'s"'


def test_the_root_of_a_drive_in_a_command_that_is_told_does_not_swallow_the_quote(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as windows:
        windows.setattr("os.name", "nt")
        told = [typed(path) for path in (PureWindowsPath("D:/"), PureWindowsPath("D:/My Books"))]
    # As Microsoft's C library reads a command line: two backslashes before a quote are one, one makes the quote a letter.
    assert told == [r'"D:\\"', r'"D:\My Books"']


@pytest.mark.parametrize(
    ("answer", "told"),
    [("n\n", "Nothing was changed.\n"), ("", "\nNothing was changed. Nobody can be asked here: add --yes.\n")],
)
def test_what_nobody_agrees_to_is_not_done_and_it_says_so(
    answer: str, told: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It said that what was finished is kept, and to run again to go on; in `docker compose exec -T` for example."""
    monkeypatch.setattr(sys, "stdin", io.StringIO(answer))
    assert run_guarded(lambda: ask("Mend this?"), debug=False) == 130
    assert capsys.readouterr().err == told


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
@pytest.mark.parametrize("words", [("search", "wait", "--json"), ("spaces", "list", "--json"), ("db", "url")])
def test_an_answer_that_cannot_be_written_is_one_sentence_and_exit_code_1(shell: Shell, words: tuple[str, ...]) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "era_dagster.cli", *words],
            cwd=shell.folder,
            # As a user has it: set, nothing is written late.
            env={name: value for name, value in shell.environment.items() if name != "PYTHONUNBUFFERED"},
            stdout=full,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr == "Error: The system refused: No space left on device. Free some space, then run again.\n"


@pytest.mark.skipif(os.name == "nt", reason="asks a POSIX shell")
@pytest.mark.parametrize(
    ("words", "ending", "code"),
    [
        ("status --json", ">&-", 0),
        ("errors --json nothing", ">&-", 2),
        ("dead-letters drop --all", "<&- >&- 2>&-", 0),
        ("status --json", "| sleep 0", 1),
        ("db url", "| sleep 0", 1),
    ],
)
def test_nothing_is_complained_of_where_nobody_reads(shell: Shell, words: str, ending: str, code: int) -> None:
    """A closed standard output was a traceback with --json; a pipe that had ended, a complaint of Python's or success."""
    done = subprocess.run(
        ["bash", "-c", f'"{sys.executable}" -m era_dagster.cli {words} {ending}; exit ${{PIPESTATUS[0]}}'],
        cwd=shell.folder,
        env={name: value for name, value in shell.environment.items() if name != "PYTHONUNBUFFERED"},
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr == "" or code == 2
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for a single process")
def test_a_command_that_is_stopped_says_so_in_json_where_it_was_asked_for() -> None:
    """Nothing was printed, where scripts read an answer: so does wrong use, and an ingest that is stopped."""
    code = """
import signal, sys
from era_dagster.cli import main
signal.signal(signal.SIGINT, signal.default_int_handler)
main.era.main = lambda **_: signal.raise_signal(signal.SIGINT)
main.main()
"""
    done = subprocess.run(
        [sys.executable, "-c", code, "--json"], capture_output=True, encoding="utf-8", timeout=60, check=False
    )
    assert done.returncode == 130
    assert json.loads(done.stdout)["error"] == "Stopped. What was finished is kept; run again to go on."


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for a single process")
def test_ctrl_c_while_the_command_is_loaded_ends_it_without_a_word(tmp_path: Path) -> None:
    """It printed a traceback through our imports, for about a second where they come from a cold disk."""
    (tmp_path / "click.py").write_text(
        "import signal, time\nsignal.raise_signal(signal.SIGINT)\ntime.sleep(20)\n", encoding="utf-8"
    )
    done = subprocess.run(
        [sys.executable, "-m", "era_dagster.cli", "status"],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        encoding="utf-8",
        timeout=60,
        check=False,
    )
    # For a shell, which counts a signal from 128 on, that is 130.
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for a single process")
@pytest.mark.parametrize("place", ["weakref.ref(thing, interrupted)", "weakref.finalize(thing, interrupted)"])
def test_ctrl_c_in_what_lets_no_exception_out_stops_the_command_all_the_same(place: str) -> None:
    """An ingest that was stopped while Dagster was imported went on to its end, with exit code 0."""
    code = f"""
import signal, sys, time, weakref
from era_dagster.cli import main
def interrupted(*_):
    signal.raise_signal(signal.SIGINT)
def command(**_):
    class Thing: pass
    thing = Thing()
    kept = {place}
    del thing
    time.sleep(20)
signal.signal(signal.SIGINT, signal.default_int_handler)
main.era.main = command
main.main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", timeout=60, check=False)
    assert (done.returncode, done.stderr) == (130, "Stopped. What was finished is kept; run again to go on.\n")


def stopped_while_it_embeds(shell: Shell, *words: str) -> tuple[int, str, str]:
    """A command that runs chapters, on a slow server, stopped as Ctrl-C stops it; its exit code and what it printed."""
    server = FakeEmbeddingServer()
    server.seconds_per_text = 0.1
    with serving(server) as url:
        run = subprocess.Popen(
            [sys.executable, "-m", "era_dagster.cli", *words],
            cwd=shell.folder,
            env=shell.environment | {"ERA_EMBEDDING_URLS": url, "ERA_METRICS_INTERVAL_SECONDS": "0.25"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
        )
        until = time.monotonic() + 60
        while not (going := shell.json("status")["totals"]["cached_vectors"]) and time.monotonic() < until:
            time.sleep(0.1)
        assert going
        run.send_signal(signal.SIGINT)
        said, complained = run.communicate(timeout=60)
    return run.returncode, said, complained


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for a single process")
def test_an_ingest_that_is_stopped_says_so_and_its_chapters_add_up(shell: Shell) -> None:
    write_book(shell.folder / "data" / "drop", "Level Book", chapters=20)
    code, said, _ = stopped_while_it_embeds(shell, "ingest", "--json")
    assert code == 130
    receipt = json.loads(said)
    assert receipt["failure"] == "Stopped. What was finished is kept; run again to go on."
    chapters = receipt["chapters"]
    assert chapters["left"] > 0
    assert chapters["seen"] == 20 == chapters["stored"] + chapters["unchanged"] + chapters["left"]
    assert shell.json("ingest")["chapters"]["left"] == 0


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for a single process")
def test_a_verify_that_is_stopped_while_it_mends_compares_nothing_again(shell: Shell) -> None:
    write_book(shell.folder / "data" / "drop", "Level Book", chapters=20)
    code, said, complained = stopped_while_it_embeds(shell, "verify", "--fix", "--yes")
    assert code == 130
    assert " mended.\n" not in said
    assert complained.endswith("Stopped. What was finished is kept; run again to go on.\n")
    assert shell.json("verify", "--fix", "--yes")["clean"] is True
