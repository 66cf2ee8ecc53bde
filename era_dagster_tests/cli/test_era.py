"""The `era` command as a user types it: real processes, a real database, a real loopback embedding server."""

import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest

from era_dagster.storage.database import Database
from era_dagster_tests.cli.shell import Shell, write_book
from era_dagster_tests.fakes.embedding_server import FakeEmbeddingServer, Fault
from era_dagster_tests.pipeline.workbench import PER_RUN, dump_tables


def test_a_dropped_book_is_ingested_found_and_counted_and_a_second_run_does_nothing(
    shell: Shell, embedding_server: tuple[FakeEmbeddingServer, str]
) -> None:
    write_book(shell.folder / "data" / "drop", "Level Book")
    receipt = shell.json("ingest")
    assert receipt["ok"] is True
    assert receipt["chapters"]["stored"] == 2
    # Two chunks (one a chapter) and eight entries, each in two domains.
    assert receipt["items"] == {"seen": 10, "stored": 10, "unchanged": 0, "dead": 0, "unusable": 0, "adds_up": True}
    assert receipt["assets"]["minister_files"]["stored"] == 10

    question = "A number without a date is a rumour. Level Book 2."
    (best, *_) = shell.json("search", question, "-k", "1")["results"]
    assert best["text"] == question
    assert best["score"] > 0.99
    assert (best["book"], best["chapter"], best["domains"]) == ("Level Book", 2, ["risk", "truth"])

    before = embedding_server[0].requests
    files = {path: path.stat().st_mtime_ns for path in (shell.folder / "data").rglob("*") if path.is_file()}
    again = shell.json("ingest")
    assert again["embedding"]["requests"] == 0
    assert embedding_server[0].requests == before
    assert again["chapters"] == {"seen": 2, "stored": 0, "unchanged": 2, "retired": 0, "failed": {}, "left": 0}
    assert files == {path: path.stat().st_mtime_ns for path in (shell.folder / "data").rglob("*") if path.is_file()}

    status = shell.json("status")
    assert status["totals"]["entries"] == 8
    assert status["totals"]["entry_domain_rows"] == 16
    assert status["model"]["model"] == "test-model"


def test_ingest_prints_a_receipt_for_people(shell: Shell) -> None:
    write_book(shell.folder / "data" / "drop", "Level Book")
    done = shell.era("ingest")
    assert done.returncode == 0, done.stderr
    assert "Items: 10 seen = 10 stored + 0 unchanged + 0 dead + 0 unusable" in done.stdout
    assert "vector_tables" in done.stdout


def test_a_folder_named_by_way_of_its_parent_is_the_folder_it_is(shell: Shell) -> None:
    """The books were recorded under another name than they were asked for by: all counted as unchanged, none was stored."""
    book = write_book(shell.folder / "shelf", "Level Book")
    assert shell.json("ingest", "data/../shelf")["chapters"]["stored"] == 2
    assert shell.json("ingest", "shelf")["chapters"]["unchanged"] == 2
    shutil.rmtree(book)
    assert shell.json("ingest", ERA_DROP_DIR="data/../shelf")["chapters"]["retired"] == 2


def test_chapters_that_are_named_by_several_paths_are_counted_once(shell: Shell) -> None:
    book = write_book(shell.folder / "shelf", "Level Book")
    for stored, unchanged in ((2, 0), (0, 2)):
        chapters = shell.json("ingest", "shelf", str(book), str(book))["chapters"]
        assert (chapters["seen"], chapters["stored"], chapters["unchanged"]) == (2, stored, unchanged)


def test_a_dry_run_tells_what_would_happen_and_changes_nothing(shell: Shell) -> None:
    write_book(shell.folder / "data" / "drop", "Level Book")
    plan = shell.json("ingest", "--dry-run")
    assert len(plan["new"]) == 2
    assert shell.json("ingest", "--dry-run", "data/drop", "data/drop/Level Book")["new"] == plan["new"]
    assert f"new: 2 chapters ({', '.join(plan['new'])})\n" in shell.era("ingest", "--dry-run").stdout
    with psycopg.connect(shell.environment["ERA_DATABASE_URL"]) as connection:
        assert connection.execute("SELECT count(*) FROM drop_sources").fetchone() == (0,)
        assert connection.execute("SELECT count(*) FROM doctrine_sources").fetchone() == (0,)


def test_a_broken_file_is_named_and_the_other_book_goes_through(shell: Shell) -> None:
    drop = shell.folder / "data" / "drop"
    write_book(drop, "Level Book")
    broken = write_book(drop, "Torn Book")
    (broken / "02_doctrine.json").write_text('[{"chapter_index": 1,', encoding="utf-8")
    done = shell.era("ingest")
    assert done.returncode == 1
    assert "02_doctrine.json" in done.stderr
    assert "line 1" in done.stderr
    assert "Traceback" not in done.stderr
    assert "2 stored" in done.stdout
    # It was told twice, each time with the name of the file and the place in it twice.
    told = [line for line in shell.era("status").stdout.splitlines() if line.startswith(("unreadable", "quarantined"))]
    file = broken / "02_doctrine.json"
    assert len(told) == 1
    assert told[0].startswith(f"quarantined: {file} line 1 column 22: it is not valid JSON: ")
    assert told[0].count("column") == 1


def test_a_path_that_does_not_exist_is_named_with_exit_code_2(shell: Shell) -> None:
    done = shell.era("ingest", "no/such/book")
    assert done.returncode == 2
    assert "no/such/book" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="there a name is Unicode")
def test_a_path_whose_name_is_no_unicode_is_named_with_exit_code_2(shell: Shell) -> None:
    (shell.folder / "caf\udce9.json").write_text("[]", encoding="utf-8")
    done = shell.era("ingest", "caf\udce9.json")
    assert done.returncode == 2
    assert "caf\\udce9.json is not valid Unicode" in done.stderr


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="there names are UTF-8 in any locale")
def test_a_locale_that_spells_names_otherwise_is_refused_and_removes_nothing(shell: Shell) -> None:
    """In LC_ALL=C the same book had another name: it counted as gone, and its chapters were removed."""
    write_book(shell.folder / "data" / "drop", "Café")
    shell.json("ingest")
    done = shell.era("ingest", LC_ALL="C", PYTHONUTF8="0")
    assert done.returncode == 2
    assert "PYTHONUTF8=1" in done.stderr
    assert shell.json("ingest")["chapters"]["unchanged"] == 2


def test_a_wrong_setting_is_named_with_exit_code_2(shell: Shell) -> None:
    done = shell.era("status", ERA_CHUNK_MAX_CHARS="many")
    assert done.returncode == 2
    assert "ERA_CHUNK_MAX_CHARS" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_wrong_dagster_home_is_named_also_where_there_is_nothing_to_do(shell: Shell) -> None:
    done = shell.era("ingest", DAGSTER_HOME=str(shell.folder / "nowhere"))
    assert done.returncode == 2
    assert "nowhere: it is no folder" in done.stderr


def test_a_missing_database_is_one_sentence_and_exit_code_1(shell: Shell) -> None:
    done = shell.era("ingest", ERA_DATABASE_URL="postgresql://era:secret@127.0.0.1:9/era")
    assert done.returncode == 1
    assert "PostgreSQL cannot be reached" in done.stderr
    assert "secret" not in done.stderr + done.stdout
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "url",
    [
        "postgresql//era:s3cret@127.0.0.1/era",
        "postgresql://era:s3cret word@127.0.0.1/era",
        "postgresql://era:s3cret%zz@127.0.0.1/era",
        "postgresql://era:pass@s3cret@127.0.0.1/era",
    ],
)
def test_a_wrong_database_url_is_named_with_exit_code_2_and_its_password_is_not_shown(shell: Shell, url: str) -> None:
    status = shell.era("--debug", "status", ERA_DATABASE_URL=url)
    assert status.returncode == 2
    assert "ERA_DATABASE_URL" in status.stderr
    doctor = shell.era("doctor", ERA_DATABASE_URL=url)
    assert "ERA_DATABASE_URL" in doctor.stdout
    shell.era("db", "migrate")
    of_dagster = shell.era("doctor", ERA_DAGSTER_DATABASE_URL=url)
    assert "ERA_DAGSTER_DATABASE_URL" in of_dagster.stdout
    assert "s3cret" not in "".join(done.stderr + done.stdout for done in (status, doctor, of_dagster))


def test_a_missing_embedding_server_is_named_and_nothing_is_half_written(shell: Shell) -> None:
    write_book(shell.folder / "data" / "drop", "Level Book")
    done = shell.era("ingest", ERA_EMBEDDING_URLS="http://127.0.0.1:9", ERA_RETRY_BUDGET_SECONDS="1")
    assert done.returncode == 1
    assert "http://127.0.0.1:9" in done.stderr
    assert "Traceback" not in done.stderr
    with psycopg.connect(shell.environment["ERA_DATABASE_URL"]) as connection:
        assert connection.execute("SELECT count(*) FROM embedding_spaces").fetchone() == (0,)
    assert shell.json("ingest")["ok"] is True


def test_a_missing_model_is_said_with_the_command_that_fetches_it(shell: Shell) -> None:
    write_book(shell.folder / "data" / "drop", "Level Book")
    done = shell.era("ingest", ERA_EMBEDDING_MODEL="nobody-has-this")
    assert done.returncode == 1
    assert "ollama pull nobody-has-this" in done.stderr


def test_another_model_than_the_stored_one_is_refused_by_ingest_and_search(shell: Shell) -> None:
    write_book(shell.folder / "data" / "drop", "Level Book")
    assert shell.era("ingest").returncode == 0
    for words in (("ingest",), ("search", "level")):
        done = shell.era(*words, ERA_EMBEDDING_MODEL="another-model")
        assert done.returncode == 2
        assert "test-model" in done.stderr
        assert "another-model" in done.stderr


def test_one_poisoned_text_is_a_dead_letter_and_the_numbers_add_up(
    shell: Shell, embedding_server: tuple[FakeEmbeddingServer, str]
) -> None:
    server = embedding_server[0]
    write_book(shell.folder / "data" / "drop", "Poison Book", chapters=1)
    server.poison.add("Records shorten the next crisis. Poison Book 1.")
    try:
        done = shell.era("ingest", "--json")
    finally:
        server.poison.clear()
    receipt = json.loads(done.stdout)
    assert done.returncode == 1
    assert receipt["items"] == {"seen": 5, "stored": 4, "unchanged": 0, "dead": 1, "unusable": 0, "adds_up": True}
    status = shell.json("status")
    assert status["totals"]["open_dead_letters"] == 1


def test_a_question_need_not_be_in_quotes(shell: Shell) -> None:
    """ "Got unexpected extra arguments (should I wait)" was the answer to the first question of many."""
    write_book(shell.folder / "data" / "drop", "Level Book")
    assert shell.era("ingest").returncode == 0
    quoted = shell.json("search", "a dated record", "-k", "2")
    assert shell.json("search", "a", "dated", "-k", "2", "record") == quoted
    assert quoted["query"] == "a dated record"
    assert shell.era("search").returncode == 2


def test_an_unknown_domain_finds_nothing_and_is_no_error(shell: Shell) -> None:
    write_book(shell.folder / "data" / "drop", "Level Book")
    assert shell.era("ingest").returncode == 0
    done = shell.era("search", "level", "--domain", "No Such Domain")
    assert done.returncode == 0
    assert "Nothing found" in done.stdout


def test_a_folder_without_a_book_is_told_from_one_without_changes(shell: Shell) -> None:
    drop = shell.folder / "data" / "drop"
    (drop / "notes.txt").write_text("x", encoding="utf-8")
    for words in (["ingest"], ["ingest", "--dry-run"], ["ingest", str(drop)]):
        done = shell.era(*words)
        assert done.returncode == 0
        assert f"No book lies in {drop}: no folder with 01_chapters.json and 02_doctrine.json" in done.stdout
    write_book(drop, "Level Book")
    assert "No book" not in shell.era("ingest").stdout
    assert "No book" not in shell.era("ingest").stdout
    shutil.rmtree(drop / "Level Book")
    # What leaves is told as removed; from then on the folder is empty again.
    assert "No book" not in shell.era("ingest").stdout
    assert "No book" in shell.era("ingest").stdout


@pytest.mark.parametrize("half", ["01_chapters.json", "02_doctrine.json"])
def test_half_of_a_book_is_no_book_of_that_name(shell: Shell, half: str) -> None:
    book = write_book(shell.folder / "books", "Level Book")
    done = shell.era("ingest", str(book / half))
    assert done.returncode == 2
    assert f'Name its folder: era ingest "{book}".' in done.stderr
    assert shell.json("status")["books"] == []


def test_a_file_that_is_no_json_by_its_name_is_refused_and_leaves_no_trace(shell: Shell) -> None:
    """It was in quarantine for as long as it was there, and the doctor not content: of somebody's own text, for ever."""
    for name in ("story.txt", "book.pdf", "story"):
        (shell.folder / name).write_text("Once upon a time", encoding="utf-8")
        done = shell.era("ingest", name)
        assert done.returncode == 2
        assert f"{name} is no book: its name does not end in .json. A book is a folder with" in done.stderr
    assert shell.json("status")["quarantine"] == []
    (shell.folder / "STORY.JSON").write_text('[{"chapter_index": 1, "text": "Once upon a time."}]', encoding="utf-8")
    assert shell.json("ingest", "STORY.JSON")["chapters"]["stored"] == 1


def test_doctor_is_content_when_all_is_there_and_names_what_is_not(shell: Shell) -> None:
    well = shell.json("doctor")
    assert well["ok"] is True
    assert [check["name"] for check in well["checks"] if check["level"] != "ok"] == ["daemon"]
    assert all(check["next_step"] for check in well["checks"] if check["level"] != "ok")
    assert well["settings"]["database_url"]["value"] == "***"
    assert well["settings"]["embedding_model"] == {"value": "test-model", "source": "ERA_EMBEDDING_MODEL"}
    ill = shell.era("doctor", ERA_EMBEDDING_URLS="http://127.0.0.1:9", ERA_RETRY_BUDGET_SECONDS="1")
    assert ill.returncode == 1
    assert "http://127.0.0.1:9" in ill.stdout


def test_doctor_tells_that_the_disk_with_the_books_is_away(shell: Shell) -> None:
    drop = shell.folder / "data" / "drop"
    write_book(drop, "Level Book")
    assert shell.json("ingest")["ok"]
    drop.rename(shell.folder / "unplugged")
    drop.mkdir()
    ill = shell.era("doctor", "--json")
    (books,) = (check for check in json.loads(ill.stdout)["checks"] if check["name"] == "books")
    assert (ill.returncode, books["level"]) == (1, "failed")
    assert "may not be mounted" in books["found"]
    assert "Mount it" in books["next_step"]


def test_doctor_makes_no_database_no_table_and_no_folder(shell: Shell) -> None:
    def everything() -> tuple[set[str], list[Path]]:
        with psycopg.connect(shell.environment["ERA_DATABASE_URL"]) as connection:
            tables = connection.execute("SELECT format('%I.%I', schemaname, tablename) FROM pg_tables").fetchall()
            mine = connection.execute(
                "SELECT datname FROM pg_database WHERE starts_with(datname, current_database())"
            ).fetchall()
        return {name for (name,) in (*tables, *mine)}, sorted(shell.folder.rglob("*"))

    before = everything()
    checks = {check["name"]: check["found"] for check in shell.json("doctor")["checks"]}
    assert everything() == before
    assert checks["daemon"] == "never seen with this instance."
    assert "no daemon has run it yet" in checks["sensor"]
    # The same words when the instance is there, and still nothing new.
    assert shell.json("ingest")["ok"]
    before = everything()
    again = {check["name"]: check["found"] for check in shell.json("doctor")["checks"]}
    assert everything() == before
    assert (again["daemon"], again["sensor"]) == (checks["daemon"], checks["sensor"])


def test_doctor_tells_by_its_exit_code_what_is_wrong(shell: Shell) -> None:
    assert shell.era("doctor").returncode == 0
    away = shell.era("doctor", "--json", ERA_DATABASE_URL="postgresql://127.0.0.1:9/era")
    assert away.returncode == 1
    database = next(check for check in json.loads(away.stdout)["checks"] if check["name"] == "database")
    assert database["level"] == "failed"
    assert database["next_step"]
    assert shell.era("doctor", ERA_SETTLE_SECONDS="soon").returncode == 2


def test_the_doctor_calls_nothing_empty_that_it_did_not_look_into(shell: Shell) -> None:
    def dimension(**settings: str) -> str:
        checks = json.loads(shell.era("doctor", "--json", **settings).stdout)["checks"]
        return next(check["found"] for check in checks if check["name"] == "dimension")

    write_book(shell.folder / "data" / "drop", "Level Book")
    assert shell.json("ingest")["ok"]
    assert dimension(ERA_DATABASE_URL="postgresql://127.0.0.1:9/era").endswith("not compared with the database")
    with psycopg.connect(shell.environment["ERA_DATABASE_URL"]) as connection:
        connection.execute("DELETE FROM schema_migrations WHERE name = '0006_drop_folders.sql'")
    assert dimension().endswith("not compared with the database")


def test_the_doctor_does_not_send_to_the_doctor(shell: Shell) -> None:
    away = shell.era("doctor", ERA_DATABASE_URL="postgresql://127.0.0.1:9/era")
    database = next(line for line in away.stdout.splitlines() if " database: " in line)
    assert "PGPASSWORD" in database
    assert "Run `era doctor`" not in away.stdout
    # Another command still does.
    assert "era doctor" in shell.era("status", ERA_DATABASE_URL="postgresql://127.0.0.1:9/era").stderr


def test_a_user_without_rights_is_told_what_somebody_with_more_must_do(shell: Shell, postgres_server: str) -> None:
    name = f"plain_{os.getpid()}"
    with psycopg.connect(postgres_server, autocommit=True) as connection:
        connection.execute(f"CREATE ROLE {name} LOGIN")
        connection.execute(f"CREATE DATABASE {name}")
        theirs = postgres_server.replace("/era?", f"/{name}?")
        ours = {"ERA_DATABASE_URL": theirs.replace("postgres@", f"{name}@")}
        no_schema = shell.era("db", "migrate", **ours)
        assert no_schema.returncode == 2
        assert "permission denied for schema public" in no_schema.stderr
        connection.execute(f"ALTER DATABASE {name} OWNER TO {name}")
        no_extension = shell.era("ingest", **ours)
        assert no_extension.returncode == 2
        assert "Let a superuser say CREATE EXTENSION vector in this database" in no_extension.stderr
        assert "Free space" not in no_schema.stderr + no_extension.stderr
        with psycopg.connect(theirs, autocommit=True) as inside:
            inside.execute("CREATE EXTENSION vector")
        assert shell.era("db", "migrate", **ours).returncode == 0
        # An ingest would stumble over it, so the doctor says it before.
        doctor = shell.era("doctor", **ours)
        assert doctor.returncode == 1
        assert f"this user may not create {name}_dagster. Create it, or set ERA_DAGSTER_DATABASE_URL" in doctor.stdout
        connection.execute(f"CREATE DATABASE {name}_dagster OWNER {name}")
        assert shell.era("doctor", **ours).returncode == 0


def test_the_doctor_names_an_alias_table_and_a_log_folder_that_no_command_could_use(shell: Shell) -> None:
    (shell.folder / "torn.json").write_text("{", encoding="utf-8")
    (shell.folder / "file").write_text("", encoding="utf-8")
    done = shell.era("doctor", ERA_DOMAIN_ALIASES="torn.json", ERA_LOG_FILE="file/era.jsonl")
    assert done.returncode == 1
    named = {line.split(":")[0].split(maxsplit=1)[1]: line for line in done.stdout.splitlines() if "failed" in line[:7]}
    assert "torn.json is not valid JSON" in named["domain aliases"]
    assert "file is no folder. Move it" in named["log folder"]
    (log,) = [line for line in shell.era("doctor", ERA_LOG_FILE="data").stdout.splitlines() if "log folder" in line]
    assert log.startswith("failed")
    assert log.endswith("data is a folder, and ERA_LOG_FILE a file. Name a file in it.")


def test_the_doctor_notices_a_setting_that_is_written_wrongly(shell: Shell) -> None:
    done = shell.era("doctor", ERA_EMBEDDING_URL="http://127.0.0.1:9", ERA_IMAGE_TAG="1", ERA_DATA_FOLDER="data")
    assert done.returncode == 0
    (said,) = (line for line in done.stdout.splitlines() if line.startswith("warning settings"))
    assert said.endswith("ERA_EMBEDDING_URL is no setting. Did you mean ERA_EMBEDDING_URLS?")


def test_db_stop_refuses_a_server_it_did_not_start(shell: Shell) -> None:
    done = shell.era("db", "stop")
    assert done.returncode == 2
    assert "ERA_DATABASE_URL" in done.stderr


def test_db_start_url_and_stop_work_on_the_embedded_server(tmp_path: Path) -> None:
    shell = Shell(tmp_path, {})
    started = shell.era("db", "start")
    assert started.returncode == 0, started.stderr
    try:
        url = shell.era("db", "url").stdout.strip()
        with psycopg.connect(url) as connection:
            assert connection.execute("SELECT to_regclass('doctrine_sources') IS NOT NULL").fetchone() == (True,)
        assert shell.era("db", "migrate").stdout.strip() == "The schema is up to date."
    finally:
        assert shell.era("db", "stop").stdout.strip() == "Stopped."
    assert shell.era("db", "stop").stdout.strip() == "It was not running."


def test_the_server_may_refuse_for_a_while_and_nothing_is_lost(
    shell: Shell, embedding_server: tuple[FakeEmbeddingServer, str]
) -> None:
    write_book(shell.folder / "data" / "drop", "Busy Book")
    embedding_server[0].faults.extend(
        [None, None, Fault(status=503), Fault(status=429, headers={"Retry-After": "1"}), Fault(reset=True)]
    )
    receipt = shell.json("ingest")
    assert receipt["ok"] is True
    assert receipt["items"]["stored"] == 10
    assert receipt["embedding"]["retries"] > 0


def test_a_demo_whose_ingest_failed_asks_nothing(shell: Shell) -> None:
    done = shell.era("demo", ERA_EMBEDDING_URLS="http://127.0.0.1:9", ERA_RETRY_BUDGET_SECONDS="1")
    assert done.returncode == 1
    assert "http://127.0.0.1:9" in done.stderr
    assert "? " not in done.stdout


@pytest.mark.skipif(os.name == "nt", reason="the folder is called Scripts there")
def test_what_the_demo_says_comes_next_can_be_typed(shell: Shell) -> None:
    environment = Path(sys.executable).parent.parent
    (shell.folder / ".venv").symlink_to(environment)
    demo = [".venv/bin/era", "demo"]
    for path, before, what in (
        (os.defpath, ".venv/bin/", "dagster dev -m era_dagster.definitions"),
        (f"{environment / 'bin'}:{os.defpath}", "", "dagster dev"),
    ):
        variables = shell.environment | {"PATH": path}
        done = subprocess.run(demo, cwd=shell.folder, env=variables, capture_output=True, encoding="utf-8", check=True)
        said = done.stdout.splitlines()[-1]
        told = f'Next: {before}era search "your question", {before}era status, or {before}{what} for the UI'
        assert said.startswith(told)
        (shell.folder / "workspace.yaml").touch()


def test_the_demo_answers_three_questions_and_a_second_one_embeds_only_them(
    shell: Shell, embedding_server: tuple[FakeEmbeddingServer, str]
) -> None:
    server = embedding_server[0]
    first = shell.era("demo")
    assert first.returncode == 0, first.stderr
    assert "19 seen = 19 stored" in first.stdout
    assert first.stdout.count("\n? ") == 3
    before = len(server.texts)
    second = shell.era("demo")
    assert second.returncode == 0, second.stderr
    assert "19 seen = 0 stored + 19 unchanged" in second.stdout
    asked = [text for text in server.texts[before:] if text.endswith("?")]
    assert len(asked) == 3
    # The rest is the text by which the client asks which model answers.
    assert len(set(server.texts[before:]) - set(asked)) <= 1


def test_a_search_may_count_words_and_its_recall_is_measured(shell: Shell) -> None:
    write_book(shell.folder / "data" / "drop", "Almanack", chapters=3)
    assert shell.era("verify", "--recall").returncode == 0, "nothing is stored yet"
    shell.json("ingest")
    hits = shell.json("search", "rumour", "--hybrid", "-k", "3")["results"]
    assert len(hits) == 3
    assert all("rumour" in hit["text"] for hit in hits)
    tables = {table["table"]: table for table in shell.json("verify", "--recall")["tables"]}
    assert tables["doctrine_embeddings_all"]["recall"] == 1.0
    assert tables["chunk_embeddings"]["indexed_ms"] is None
    assert shell.era("verify", "--recall", "--fix").returncode == 2


def test_the_persona_of_the_examples_reads_up_before_it_speaks(shell: Shell) -> None:
    persona = [sys.executable, str(Path(__file__).resolve().parents[2] / "examples" / "persona.py")]

    def asked(question: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*persona, question],
            cwd=shell.folder,
            env=shell.environment,
            capture_output=True,
            encoding="utf-8",
            timeout=60,
            check=False,
        )

    write_book(shell.folder / "data" / "drop", "Almanack")
    shell.json("ingest")
    spoken = asked("A dated record beats a good memory. Almanack 2.")
    assert spoken.returncode == 0, spoken.stderr
    assert "- A dated record beats a good memory. Almanack 2. (principles; Almanack, chapter 2)" in spoken.stdout
    blank = asked(" ")
    assert (blank.returncode, blank.stdout) == (1, "")
    assert "blank" in blank.stderr


def test_an_ingest_killed_at_any_moment_and_run_again_ends_like_an_undisturbed_one(
    tmp_path: Path, new_database_url: Callable[[], str], embedding_server: tuple[FakeEmbeddingServer, str]
) -> None:
    for n in range(4):
        write_book(tmp_path / "books", f"Book {n}", chapters=10, domains=("truth", f"subject {n}"))

    def shell(name: str) -> Shell:
        (tmp_path / name).mkdir()
        return Shell(
            tmp_path / name,
            {
                "ERA_DATABASE_URL": new_database_url(),
                "ERA_EMBEDDING_PROVIDER": "ollama",
                "ERA_EMBEDDING_URLS": embedding_server[1],
                "ERA_EMBEDDING_MODEL": "test-model",
                "ERA_DROP_DIR": str(tmp_path / "books"),
            },
        )

    def state(one: Shell) -> dict[str, object]:
        """Every table and every file by its name."""
        with Database(one.environment["ERA_DATABASE_URL"], pool_size=1) as database:
            tables = dump_tables(database, without=PER_RUN)
        files = {
            str(path.relative_to(one.folder)): re.sub(rb'"(last_updated|created)": "[^"]*"', b"", path.read_bytes())
            for path in (one.folder / "data").rglob("*")
            if path.is_file()
        }
        return {**tables, **files}

    undisturbed = shell("undisturbed")
    started = time.monotonic()
    assert undisturbed.era("ingest").returncode == 0
    whole = time.monotonic() - started
    expected = state(undisturbed)
    chance = random.Random(11)
    for n in range(5):
        victim = shell(f"killed {n}")
        process = victim.start("ingest", "--json")
        time.sleep(whole * chance.uniform(0.3, 1.0))
        process.kill()
        process.wait(30)
        assert victim.json("ingest")["ok"] is True
        found = state(victim)
        assert [name for name in found | expected if found.get(name) != expected.get(name)] == [], f"killed {n}"
