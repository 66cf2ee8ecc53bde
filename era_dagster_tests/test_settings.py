"""Which value a setting gets, and from where."""

import re
from pathlib import Path

import pytest

from era_dagster.domain.errors import ConfigurationError
from era_dagster.embedding.config import EmbedderConfig, embedder_config
from era_dagster.settings import load_settings, without_secrets


def test_without_a_profile_nobody_bounds_the_embedder_and_with_one_its_numbers_do() -> None:
    free = load_settings({})
    assert (free.embed_concurrency, free.embed_batch) == (None, None)
    config = embedder_config(free, provider="ollama", urls=["http://server"], model="m")
    told_nothing = EmbedderConfig(urls=("http://server",), model="m")
    assert (config.concurrency, config.batch_items) == (told_nothing.concurrency, told_nothing.batch_items)
    assert free.database_pool == load_settings({"ERA_PROFILE": "standard"}).database_pool


@pytest.mark.parametrize(
    ("profile", "embed", "batch", "queue", "store", "pool"),
    [("local", 2, 3, 100, 2, 5), ("standard", 6, 8, 1000, 4, 20), ("high_throughput", 12, 20, 5000, 8, 50)],
)
def test_a_chosen_profile_bounds_everything_by_its_numbers(
    profile: str, embed: int, batch: int, queue: int, store: int, pool: int
) -> None:
    settings = load_settings({"ERA_PROFILE": profile})
    assert (settings.embed_concurrency, settings.embed_batch) == (embed, batch)
    assert (settings.queue_limit, settings.store_workers, settings.database_pool) == (queue, store, pool)
    config = embedder_config(settings, provider="ollama", urls=["http://server"], model="m")
    assert (config.concurrency, config.batch_items) == (embed, batch)


def test_an_older_name_bounds_the_requests_as_before() -> None:
    settings = load_settings({"WORKERS_EMBED": "3"})
    assert settings.embed_concurrency == 3
    assert settings.sources["embed_concurrency"] == "WORKERS_EMBED"


@pytest.mark.parametrize("value", ["0", "-1", "soon", "inf", "nan"])
def test_a_latency_target_that_makes_no_sense_is_refused_by_name(value: str) -> None:
    with pytest.raises(ConfigurationError, match="ERA_LATENCY_TARGET_SECONDS"):
        load_settings({"ERA_LATENCY_TARGET_SECONDS": value})


def test_one_connection_is_refused_saying_why_and_two_are_taken() -> None:
    with pytest.raises(ConfigurationError, match=r"ERA_DATABASE_POOL is '1': .* at least 2, since a build of a space"):
        load_settings({"ERA_DATABASE_POOL": "1"})
    assert load_settings({"ERA_DATABASE_POOL": "2"}).database_pool == 2


def test_a_server_named_twice_is_one_server() -> None:
    settings = load_settings({"ERA_EMBEDDING_URLS": "http://one:1, http://two, http://one:1/"})
    assert settings.embedding_urls == ("http://one:1", "http://two")


def test_settings_are_shown_without_the_secrets_inside_their_urls() -> None:
    urls = "http://user:s3cret@one:1/v1, user:s3@cret@two, http://three/?key=s3cret, http://four:4"
    shown = load_settings({"ERA_EMBEDDING_URLS": urls}).public()
    assert shown["embedding_urls"] == ("http://one:1/v1", "two", "http://three/", "http://four:4")


def test_settings_that_get_into_a_traceback_show_no_secret() -> None:
    variables = {
        "ERA_EMBEDDING_URLS": "http://user:s3cret@one:1/v1,http://two/?key=s3cret",
        "ERA_EMBEDDING_API_KEY": "sk-s3cret",
        "ERA_DATABASE_URL": "postgresql://era:s3cret@host/era",
        "ERA_DAGSTER_DATABASE_URL": "postgresql://era:s3cret@host/dagster",
        "ERA_ERROR_WEBHOOK_URL": "https://host/s3cret",
    }
    settings = load_settings(variables)
    for shown in (repr(settings), str(settings), f"{[settings]}"):
        assert "s3cret" not in shown
        assert "embedding_urls=('http://one:1/v1', 'http://two/')" in shown
        assert "chunk_max_chars=1024" in shown


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://h/models/@org/x", "http://h/models/@org/x"),
        ("http://h:80/@x", "http://h:80/@x"),
        ("http://[::1]:80/@x", "http://[::1]:80/@x"),
        ("http://user:s3cret@h/models/@org/x", "http://h/models/@org/x"),
        ("http://user:s3@cret@h:1/@x", "http://h:1/@x"),
        ("http://user:pa/s3cret@h", "http://h"),
        ("http://user:pa#s3cret@h/x", "http://h/x"),
        ("http:/user:s3cret@h", "h"),
        ("http//user:s3cret@h", "h"),
        ("http:///user:s3cret@h", "http://h"),
    ],
)
def test_an_at_sign_in_the_path_is_no_end_of_a_password(url: str, shown: str) -> None:
    assert without_secrets(url) == shown


def test_every_setting_is_in_the_readme_or_on_a_page_and_every_one_there_exists() -> None:
    root = Path(__file__).parents[1]
    told = "".join(path.read_text(encoding="utf-8") for path in (root / "README.md", *(root / "docs").glob("*.md")))
    ours = {f"ERA_{name.upper()}" for name in load_settings({}).public()}
    docker = "".join(
        (root / "docker" / name).read_text(encoding="utf-8") for name in (".env.example", "dagster-celery.yaml")
    )
    of_compose = set(re.findall(r"^(ERA_\w+)=|env: (ERA_\w+)", docker, re.MULTILINE))
    found = set(re.findall(r"\bERA_[A-Z_]+\b", told))
    assert ours - found == set()
    assert found - ours - {name for names in of_compose for name in names} == set()
