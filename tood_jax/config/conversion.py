"""Convert frozen dataclasses to plain JSON values and back, with one sentence for each mismatch.

This module is independent of the fields of `config/schema.py`; the command line uses it too.
"""

import dataclasses
import difflib
import reprlib
import sys
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from tood_jax.untrusted.printable import printable

_LONGEST_NAME = 100  # characters that are compared with the names of fields


class ConfigError(ValueError):
    """A config that can't be read or is invalid; the message has one sentence for each problem."""


def to_plain(value: Any) -> Any:
    """Return dataclasses as dicts and tuples as lists, recursively; other values are unchanged."""
    if dataclasses.is_dataclass(value):
        return {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    return [to_plain(item) for item in value] if isinstance(value, (tuple, list)) else value


def from_plain(hint: Any, value: Any, path: str = "") -> Any:
    """Return a value from JSON as a type. The only conversions are integer to float, and list to tuple.

    Args:
        hint: a dataclass, tuple, Literal, union, bool, int, float, str or None.
        value: missing fields of a dataclass keep their defaults.
        path: full name of the value in error messages.

    Raises:
        ConfigError: a field is unknown or has the wrong type.
    """
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
        return _dataclass_from_plain(hint, value, path)
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
    if hint is float and type(value) is int and abs(value) <= sys.float_info.max:
        return float(value)
    if isinstance(hint, type) and type(value) is hint:
        return value
    is_choice = origin is Literal and isinstance(value, str)
    suggestion = did_you_mean(value[:_LONGEST_NAME], [str(part) for part in parts]) if is_choice else ""
    raise ConfigError(f"{path or 'The config'} = {_short(value)} must be {describe_type(hint)}.{suggestion}")


def _dataclass_from_plain(cls: Any, values: Mapping[str, Any], path: str) -> Any:
    hints = field_hints(cls)
    for name in values:
        if name not in hints:
            where = f"in {path}" if path else "in the config"
            suggestion = did_you_mean(str(name)[:_LONGEST_NAME], hints)
            raise ConfigError(f"There is no field {_short(name)} (= {_short(values[name])}) {where}.{suggestion}")
    return cls(**{name: from_plain(hints[name], v, f"{path}.{name}".lstrip(".")) for name, v in values.items()})


def _short(value: Any) -> str:
    """Return a value for a message, on one line and of bounded length."""
    shorter = reprlib.Repr()
    shorter.maxstring = shorter.maxother = shorter.maxlong = 200
    return printable(shorter.repr(value))


def field_hints(cls: Any) -> dict[str, Any]:
    """Return the types of a dataclass's fields by name, in order."""
    hints = typing.get_type_hints(cls)
    return {f.name: hints[f.name] for f in dataclasses.fields(cls)}


def leaf_hints(cls: Any, prefix: str = "") -> dict[str, Any]:
    """Return the types of all fields below a dataclass that are not groups, by full name (`group.field`)."""
    leaves: dict[str, Any] = {}
    for name, hint in field_hints(cls).items():
        is_group = dataclasses.is_dataclass(hint)
        leaves |= leaf_hints(hint, f"{prefix}{name}.") if is_group else {f"{prefix}{name}": hint}
    return leaves


def did_you_mean(name: str, names: Iterable[str], count: int = 1, cutoff: float = 0.6) -> str:
    """Return " Did you mean …?" with at most `count` of `names` that are similar to `name`; "" if none is."""
    close = difflib.get_close_matches(name, list(names), n=count, cutoff=cutoff)
    return f" Did you mean {' or '.join(close)}?" if close else ""


def describe_type(hint: Any) -> str:
    """Describe a type: `an integer`, `one of fail, skip`, `2 integers`, `a number or None`."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return "one of " + ", ".join(str(part) for part in parts)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(describe_type(part) for part in parts)
    if origin is tuple:
        count = "a list of" if parts[-1] is Ellipsis else str(len(parts))
        plurals = {int: "integers", float: "numbers", str: "texts", bool: "booleans"}
        if typing.get_origin(parts[0]) is Literal:
            return f"{count} names among {', '.join(str(name) for name in typing.get_args(parts[0]))}"
        return f"{count} {plurals.get(parts[0]) or f'groups of {describe_type(parts[0])}'}"
    names = {int: "an integer", float: "a number", str: "text", bool: "True or False", type(None): "None"}
    if dataclasses.is_dataclass(hint):
        return f"a group of fields ({', '.join(field_hints(hint))})"
    return names.get(hint) or str(getattr(hint, "__name__", hint))
