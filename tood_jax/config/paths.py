"""Paths that users write with ~, in options and in configs."""

import dataclasses
import os
from typing import Any, TypeVar

from tood_jax.config.conversion import ConfigError

Options = TypeVar("Options")
PATH_OPTIONS = {  # names of the options and fields that are paths
    *("annotations", "checkpoint", "config", "folder", "hlo", "image", "images", "init_from", "json", "out", "records"),
    *("run", "tfds", "weights", "workdir"),
}


def expand_home(path: str) -> str:
    """Return the path with ~ and ~NAME replaced by the home folder: no shell does that after "=".

    Raises:
        ConfigError: the user has no home folder.
    """
    expanded = os.path.expanduser(path)
    if expanded == path and (path == "~" or path.startswith("~/")):
        raise ConfigError(
            f"{path} is in your home folder, but HOME is not set and this user has no home folder: give the full path."
        )
    return expanded


def expand_paths(options: Options) -> Options:
    """Return a dataclass of options, or a config, with ~ expanded in all its paths. Raises ConfigError."""
    changed = {}
    for field in dataclasses.fields(options):  # type: ignore[arg-type]
        value = getattr(options, field.name)
        new = _expand(value) if field.name in PATH_OPTIONS or _is_group(value) else value
        if new != value:
            changed[field.name] = new
    return dataclasses.replace(options, **changed) if changed else options  # type: ignore[type-var]


def _is_group(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def _expand(value: Any) -> Any:
    """Expand a path, each path of a tuple, or the paths in a group of fields."""
    if isinstance(value, tuple):
        return tuple(_expand(item) for item in value)
    if _is_group(value):
        return expand_paths(value)
    return expand_home(value) if isinstance(value, str) and value.startswith("~") else value
