"""Reads the user's table of domain aliases, for those who store under domains and those who ask for them."""

from collections.abc import Mapping

from era_dagster.domain.domains import fold_aliases
from era_dagster.domain.errors import ConfigurationError, CorruptInput
from era_dagster.intake.json_files import RepeatedKeys, parse_json, read_bytes
from era_dagster.settings import Settings


def domain_aliases(settings: Settings) -> Mapping[str, str]:
    """The alias table as slug -> slug, from the JSON file that the settings name; empty without one.

    Raises `ConfigurationError` for a file that is not there, not JSON, or not an object of names.
    """
    file = settings.domain_aliases
    if file is None:
        return {}
    hint = 'ERA_DOMAIN_ALIASES names a JSON file such as {"Risk Management": "risk"}.'
    try:
        table = parse_json(read_bytes(file), file)
    except CorruptInput as error:
        raise ConfigurationError(error.message, hint=hint) from error
    if isinstance(table, RepeatedKeys):
        twice = ", ".join(repr(name) for name in sorted(table.keys_twice))
        raise ConfigurationError(f"{file} names {twice} twice.", hint="Keep one of them.")
    if not isinstance(table, dict) or not all(isinstance(target, str) for target in table.values()):
        raise ConfigurationError(f"{file} is no object of domain names.", hint=hint)
    return fold_aliases(table)
