"""Every setting of the project: its variable, default, unit and meaning, read once into one frozen record.

The edge (`cli`, `definitions`) calls `load_settings` and passes values on; nothing else reads the environment.
A setting is resolved in this order: its `ERA_*` variable, an older name the user's scripts still set, the preset chosen
by `ERA_PROFILE`, the default. `Settings.sources` remembers which, for `era doctor`.
"""

import difflib
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import platformdirs

from era_dagster.domain.errors import ConfigurationError
from era_dagster.domain.identity import safe_name

Profile = Literal["local", "standard", "high_throughput"]
ProviderName = Literal["ollama", "openai", "local"]
ChunkMode = Literal["sentences", "words"]
LogLevel = Literal["DEBUG", "INFO", "WARNING", "ERROR"]
DEFAULT_MODELS: Mapping[str, str] = {"ollama": "nomic-embed-text", "local": "all-minilm-l6-v2"}
"""The model of a provider where none is named."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """Ceilings of one profile; the adaptive parts find their values below them.

    `embed_concurrency`: most embedding requests in flight; `embed_batch`: most texts in one request; `queue_limit`: most
    texts waiting inside a run; `store_workers`: most chapters written at once; `database_pool`: most connections in the
    pool of one process; `retry_attempts` and `retry_budget_seconds` bound the retries of one text.
    """

    embed_concurrency: int
    embed_batch: int
    queue_limit: int
    store_workers: int
    database_pool: int
    retry_attempts: int
    retry_budget_seconds: float


PRESETS: Mapping[Profile, Preset] = {
    "local": Preset(
        embed_concurrency=2,
        embed_batch=3,
        queue_limit=100,
        store_workers=2,
        database_pool=5,
        retry_attempts=10,
        retry_budget_seconds=120.0,
    ),
    "standard": Preset(
        embed_concurrency=6,
        embed_batch=8,
        queue_limit=1000,
        store_workers=4,
        database_pool=20,
        retry_attempts=10,
        retry_budget_seconds=120.0,
    ),
    "high_throughput": Preset(
        embed_concurrency=12,
        embed_batch=20,
        queue_limit=5000,
        store_workers=8,
        database_pool=50,
        retry_attempts=10,
        retry_budget_seconds=120.0,
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Settings:
    """The resolved configuration of one process. Times in seconds, sizes in characters unless a name says otherwise.

    `embedding_provider`, `embedding_model` and `embedding_urls` may be unset (None, None, ()): then the model the
    database already holds is used, and for an empty database the first of Ollama (when it answers) and the local model.
    `database_url` unset means the embedded PostgreSQL under `home`. `embed_concurrency` and `embed_batch` are ceilings of a
    chosen profile or of their own variables; None: the embedder finds its values without one. `latency_target_seconds` is
    the 95th percentile of an embedding request that it aims at. A run writes its metrics every `metrics_interval_seconds`;
    0: never. `log_file` None: lines go where the process's own go.
    """

    profile: Profile
    home: Path
    drop_dir: Path
    data_dir: Path
    model_dir: Path
    database_url: str | None
    dagster_database_url: str | None
    embedding_provider: ProviderName | None
    embedding_urls: tuple[str, ...]
    embedding_model: str | None
    embedding_api_key: str | None
    request_timeout_seconds: float
    latency_target_seconds: float
    max_items_per_second: float | None
    chunk_mode: ChunkMode
    chunk_min_chars: int
    chunk_max_chars: int
    chunk_overlap_chars: int
    chunk_words: int
    domain_aliases: Path | None
    chapters_per_run: int
    settle_seconds: float
    embed_concurrency: int | None
    embed_batch: int | None
    queue_limit: int
    store_workers: int
    database_pool: int
    retry_attempts: int
    retry_budget_seconds: float
    metrics_interval_seconds: float
    prometheus_port: int
    log_level: LogLevel
    log_file: Path | None
    json_logs: bool
    error_webhook_url: str | None
    sources: Mapping[str, str]

    def __repr__(self) -> str:
        """As `public`: a traceback or a log may hold it."""
        return f"Settings({', '.join(f'{name}={value!r}' for name, value in self.public().items())})"

    @property
    def ministers_dir(self) -> Path:
        """Where the minister files live: `<data>/ministers`."""
        return self.data_dir / "ministers"

    def public(self) -> dict[str, Any]:
        """All settings as JSON-ready values, secrets masked."""
        shown: dict[str, Any] = {}
        for field in fields(self):
            if field.name == "sources":
                continue
            value = getattr(self, field.name)
            if field.name in SECRETS and value is not None:
                value = "***"
            elif field.name == "embedding_urls":
                value = tuple(without_secrets(url) for url in self.embedding_urls)
            shown[field.name] = str(value) if isinstance(value, Path) else value
        return shown


def configured_model(settings: Settings) -> str | None:
    """The model the settings name, outright or by their provider's default; None when they leave it open."""
    if settings.embedding_model is not None:
        return settings.embedding_model
    return DEFAULT_MODELS.get(settings.embedding_provider or "")


SECRETS = frozenset({"database_url", "dagster_database_url", "embedding_api_key", "error_webhook_url"})


_NO_USER = re.compile(r"[a-z][a-z0-9+.-]*://([^/?#@:\[\]]+|\[[0-9a-f:.]+\])(:\d*)?([/?#]|$)", re.IGNORECASE)
# A password may hold what ends the host of a right URL: where no @ comes before, all up to the last one is taken for it.
_USER_AND_PASSWORD = re.compile(r"^([a-z][a-z0-9+.-]*://)?([^/?#]*@|.*@)", re.IGNORECASE | re.DOTALL)


def without_secrets(url: str) -> str:
    """A URL, or what was meant to be one, without user, password, query and fragment: fit to be shown."""
    without_user = url if _NO_USER.match(url) else _USER_AND_PASSWORD.sub(r"\1", url)
    return re.split("[?#]", without_user, maxsplit=1)[0]


def absolute(path: Path) -> Path:
    """The path from the root without `..`, so that a folder has one name in the register; links keep theirs.

    Raises `ConfigurationError` for a name that is no Unicode, which no table and no message can hold.
    """
    name = os.path.abspath(path)  # noqa: PTH100 - resolve() would rename linked folders
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise ConfigurationError(f"The name {safe_name(name)} is not valid Unicode.", hint="Rename it.") from error
    return Path(name)


def _path(text: str) -> Path:
    return absolute(Path(text).expanduser())


def _urls(text: str) -> tuple[str, ...]:
    # One server named twice would be two to the embedder, and get twice the requests.
    return tuple(dict.fromkeys(part.strip().rstrip("/") for part in text.split(",") if part.strip()))


def _choice(*allowed: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in allowed:
            raise ValueError(f"must be one of {', '.join(allowed)}")
        return text

    return parse


def _whole(minimum: int, why: str = "") -> Callable[[str], int]:
    def parse(text: str) -> int:
        number = int(text)
        if number < minimum:
            raise ValueError(f"must be a whole number of at least {minimum}{why}")
        return number

    return parse


def _positive(text: str) -> float:
    number = float(text)
    if not 0 < number < float("inf"):
        raise ValueError("must be a number above 0")
    return number


def _not_negative(text: str) -> float:
    number = float(text)
    if not 0 <= number < float("inf"):
        raise ValueError("must be a number, 0 or above")
    return number


def _port(text: str) -> int:
    number = int(text)
    if not 0 < number < 65536:
        raise ValueError("must be a port, 1 to 65535")
    return number


def _flag(text: str) -> bool:
    words = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
    if text.lower() not in words:
        raise ValueError("must be true or false")
    return words[text.lower()]


def _web_address(text: str) -> str:
    if not text.startswith(("http://", "https://")):
        raise ValueError("must begin with http:// or https://")
    return text


@dataclass(frozen=True, slots=True)
class _Variable:
    field: str
    parse: Callable[[str], Any]
    default: str | None
    older_names: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"ERA_{self.field.upper()}"


_VARIABLES = (
    _Variable("profile", _choice("local", "standard", "high_throughput"), "standard"),
    _Variable("home", _path, ".era"),
    _Variable("data_dir", _path, "data"),
    _Variable("drop_dir", _path, None),
    _Variable("model_dir", _path, None),
    _Variable("database_url", str, None, ("DB_URL",)),
    _Variable("dagster_database_url", str, None),
    _Variable("embedding_provider", _choice("ollama", "openai", "local"), None),
    _Variable("embedding_urls", _urls, "", ("OLLAMA_URL",)),
    _Variable("embedding_model", str, None, ("EMBED_MODEL",)),
    _Variable("embedding_api_key", str, None),
    _Variable("request_timeout_seconds", _positive, "60"),
    _Variable("latency_target_seconds", _positive, "0.5"),
    _Variable("max_items_per_second", _positive, None),
    _Variable("chunk_mode", _choice("sentences", "words"), "sentences"),
    _Variable("chunk_min_chars", _whole(1), "512"),
    _Variable("chunk_max_chars", _whole(16), "1024"),
    _Variable("chunk_overlap_chars", _whole(0), "0"),
    _Variable("chunk_words", _whole(1), "512"),
    _Variable("domain_aliases", _path, None),
    _Variable("chapters_per_run", _whole(1), "200"),
    _Variable("settle_seconds", _positive, "2"),
    _Variable("embed_concurrency", _whole(1), None, ("WORKERS_EMBED",)),
    _Variable("embed_batch", _whole(1), None),
    _Variable("queue_limit", _whole(1), None),
    _Variable("store_workers", _whole(1), None, ("WORKERS_STORE",)),
    _Variable(
        "database_pool", _whole(2, ", since a build of a space locks it on one connection and writes on another"), None
    ),
    _Variable("retry_attempts", _whole(1), None),
    _Variable("retry_budget_seconds", _positive, None),
    _Variable("metrics_interval_seconds", _not_negative, "10"),
    _Variable("prometheus_port", _port, "8000"),
    _Variable("log_level", lambda text: _choice("DEBUG", "INFO", "WARNING", "ERROR")(text.upper()), "INFO"),
    _Variable("log_file", _path, None),
    _Variable("json_logs", _flag, "false"),
    _Variable("error_webhook_url", _web_address, None),
)


def load_settings(environment: Mapping[str, str], **overrides: Any) -> Settings:
    """Resolve all settings from `environment`; `overrides` (already typed) win.

    Raises `ConfigurationError` that names the variable, its value (never a secret's) and what is allowed.
    """
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for variable in _VARIABLES:
        if variable.field in overrides:
            values[variable.field], sources[variable.field] = overrides[variable.field], "argument"
            continue
        found = next(
            (name for name in (variable.name, *variable.older_names) if environment.get(name, "").strip()), None
        )
        if found is not None:
            values[variable.field] = _parsed(variable, found, environment[found].strip())
            sources[variable.field] = found
        elif variable.default is not None:
            values[variable.field], sources[variable.field] = variable.parse(variable.default), "default"
    preset = PRESETS[values["profile"]]
    for field in fields(preset):
        if field.name not in values:
            if field.name in ("embed_concurrency", "embed_batch") and sources["profile"] == "default":
                values[field.name], sources[field.name] = None, "found while it runs"
                continue
            values[field.name] = getattr(preset, field.name)
            sources[field.name] = f"profile {values['profile']}"
    derived = {
        "drop_dir": values["data_dir"] / "drop",
        "model_dir": Path(platformdirs.user_cache_dir("era-dagster", appauthor=False)) / "models",
    }
    for name, value in derived.items():
        if name not in values:
            values[name], sources[name] = value, "default"
    for variable in _VARIABLES:
        if variable.field not in values:
            values[variable.field], sources[variable.field] = None, "not set"
    if values["chunk_min_chars"] > values["chunk_max_chars"]:
        raise ConfigurationError(
            f"ERA_CHUNK_MIN_CHARS is {values['chunk_min_chars']}, above ERA_CHUNK_MAX_CHARS"
            f" ({values['chunk_max_chars']}).",
            hint="Lower the first or raise the second.",
        )
    if values["chunk_overlap_chars"] * 2 > values["chunk_max_chars"]:
        raise ConfigurationError(
            f"ERA_CHUNK_OVERLAP_CHARS is {values['chunk_overlap_chars']}, over half of ERA_CHUNK_MAX_CHARS"
            f" ({values['chunk_max_chars']}).",
            hint="Choose a smaller overlap.",
        )
    return Settings(**values, sources=sources)


def dagster_home(environment: Mapping[str, str]) -> Path | None:
    """The folder of Dagster's instance that DAGSTER_HOME names; None when it is unset.

    Raises `ConfigurationError` when it is no folder.
    """
    given = environment.get("DAGSTER_HOME", "").strip()
    if not given:
        return None
    folder = Path(given).expanduser()
    if not folder.is_dir():
        raise ConfigurationError(f"DAGSTER_HOME is {given}: it is no folder.", hint="Make it, or unset it.")
    return folder


def misspelt(environment: Mapping[str, str]) -> Mapping[str, str]:
    """Variables that nothing reads though their names are nearly those of settings -> those settings."""
    known = [variable.name for variable in _VARIABLES]
    near = {
        name: difflib.get_close_matches(name, known, n=1, cutoff=0.85)
        for name in sorted(environment)
        if name.startswith("ERA_") and name not in known
    }
    return {name: found[0] for name, found in near.items() if found}


def _parsed(variable: _Variable, name: str, text: str) -> Any:
    try:
        return variable.parse(text)
    except ValueError as error:
        shown = "***" if variable.field in SECRETS else repr(text)
        reason = str(error) if str(error).startswith("must") else "must be a number"
        raise ConfigurationError(f"{name} is {shown}: it {reason}.", hint="Correct it or unset it.") from error
