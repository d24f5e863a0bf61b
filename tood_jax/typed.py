"""Frozen dataclasses to plain JSON values and back, every mismatch named in one sentence.

Knows nothing of the fields themselves; `config.py` and the command line build on it.
"""

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, Literal


class ConfigError(ValueError):
    """A config that can't be read or can't work; the message is for the user, one sentence a problem."""


def to_plain(value: Any) -> Any:
    """Dataclasses as dicts and tuples as lists, all the way down; anything else as it is."""
    if dataclasses.is_dataclass(value):
        return {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    return [to_plain(item) for item in value] if isinstance(value, (tuple, list)) else value


def from_plain(hint: Any, value: Any, path: str = "") -> Any:
    """`value` (from JSON) as the type `hint`: a dataclass, tuple, Literal, union, bool, int, float, str or None.

    Missing fields of a dataclass keep their defaults, an integer serves as a float, and nothing else is converted.
    Raises ConfigError for an unknown or ill-typed field; `path` is what the value is called there.
    """
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
        return _dataclass(hint, value, path)
    if origin is Literal and any(type(value) is type(part) and value == part for part in parts):
        return value
    if origin in (typing.Union, types.UnionType):
        for part in parts:
            try:
                return from_plain(part, value, path)
            except ConfigError:
                continue
    if origin is tuple and isinstance(value, (list, tuple)):
        items = [parts[0]] * len(value) if parts[-1] is Ellipsis else list(parts)
        if len(items) == len(value):
            pairs = enumerate(zip(items, value, strict=True))
            return tuple(from_plain(part, item, f"{path}[{i}]") for i, (part, item) in pairs)
    if hint is float and type(value) is int:
        return float(value)
    if isinstance(hint, type) and type(value) is hint:
        return value
    near = nearest(value, [str(part) for part in parts]) if origin is Literal and isinstance(value, str) else ""
    raise ConfigError(f"{path or 'The config'} = {value!r} must be {expected(hint)}.{near}")


def _dataclass(cls: Any, values: Mapping[str, Any], path: str) -> Any:
    hints = field_hints(cls)
    for name in values:
        if name not in hints:
            where = f"in {path}" if path else "in the config"
            raise ConfigError(f"There is no field {name!r} (= {values[name]!r}) {where}.{nearest(str(name), hints)}")
    return cls(**{name: from_plain(hints[name], v, f"{path}.{name}".lstrip(".")) for name, v in values.items()})


def field_hints(cls: Any) -> dict[str, Any]:
    """Field names of a dataclass to their types, in order."""
    hints = typing.get_type_hints(cls)
    return {f.name: hints[f.name] for f in dataclasses.fields(cls)}


def leaf_hints(cls: Any, prefix: str = "") -> dict[str, Any]:
    """Full names (`group.field`) of all fields below a dataclass that are not groups themselves, to their types."""
    leaves: dict[str, Any] = {}
    for name, hint in field_hints(cls).items():
        inner = dataclasses.is_dataclass(hint)
        leaves |= leaf_hints(hint, f"{prefix}{name}.") if inner else {f"{prefix}{name}": hint}
    return leaves


def nearest(name: str, names: Iterable[str], count: int = 1, cutoff: float = 0.6) -> str:
    """The question `Did you mean …?` with the `count` most similar of `names`, a blank in front; "" if none is near."""
    close = difflib.get_close_matches(name, list(names), n=count, cutoff=cutoff)
    return f" Did you mean {' or '.join(close)}?" if close else ""


def expected(hint: Any) -> str:
    """A type in words: `an integer`, `one of fail, skip`, `2 integers`, `a number or None`."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return "one of " + ", ".join(str(part) for part in parts)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(expected(part) for part in parts)
    if origin is tuple:
        count = "a list of" if parts[-1] is Ellipsis else str(len(parts))
        plurals = {int: "integers", float: "numbers", str: "texts", bool: "booleans"}
        return f"{count} {plurals.get(parts[0]) or f'groups of {expected(parts[0])}'}"
    words = {int: "an integer", float: "a number", str: "text", bool: "True or False", type(None): "None"}
    if dataclasses.is_dataclass(hint):
        return f"a group of fields ({', '.join(field_hints(hint))})"
    return words.get(hint) or str(getattr(hint, "__name__", hint))
