"""Convert a config to plain values and back, and to JSON files; both directions are exact."""

import json
import os
from collections.abc import Callable, Mapping
from typing import Any

from tood_jax.config.conversion import ConfigError, from_plain, to_plain
from tood_jax.config.renames import with_current_names
from tood_jax.config.schema import Config
from tood_jax.files import write_atomically
from tood_jax.untrusted.bounded_json import JsonError, parse_json
from tood_jax.untrusted.regular_files import read_regular

_MAX_BYTES = 16 << 20  # of a config in JSON


def to_dict(config: Config) -> dict[str, Any]:
    """Return the config as nested plain dicts, lists, numbers, text, booleans and None, ready for JSON."""
    plain: dict[str, Any] = to_plain(config)
    return plain


def from_dict(values: Mapping[str, Any], note: Callable[[str], object] | None = None) -> Config:
    """Return the config of a dictionary that `to_dict` made, now or under older names of fields.

    Args:
        values: a field that is missing keeps its default.
        note: called with the renamed fields if there are any: "learning is now assigner".

    Raises:
        ConfigError: names an unknown or ill-typed field, its value, what was expected, and the nearest name.
    """
    if isinstance(values, Mapping):
        values, renamed = with_current_names(values)
        if renamed and note is not None:
            note(renamed)
    config: Config = from_plain(Config, values)
    return config


def save_config(config: Config, path: str | os.PathLike[str]) -> None:
    """Write a config as indented JSON, making the folder; the file appears whole or not at all."""
    write_atomically(path, f"{json.dumps(to_dict(config), indent=2, ensure_ascii=False)}\n".encode())


def load_config_json(path: str | os.PathLike[str], note: Callable[[str], object] | None = None) -> Config:
    """Read a config that `save_config` wrote.

    Args:
        path: the file.
        note: called with a sentence for the user if the file has old names of fields.

    Raises:
        ConfigError: names the file and what is wrong with it.
    """

    def note_renamed(renamed: str) -> None:
        if note is not None:
            note(f"{path} has old names of config fields: {renamed}.")

    try:
        return from_dict(parse_json(read_regular(path, _MAX_BYTES), _MAX_BYTES), note_renamed)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    except JsonError as error:
        raise ConfigError(f"{path} can't be read as a config: it {error}.") from None
    except OSError as error:
        raise ConfigError(f"{path} can't be read as a config in JSON: {error}.") from error
