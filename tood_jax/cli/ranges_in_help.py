"""The range of each field of a config, in the help of a program."""

import dataclasses
import typing
from functools import partial
from typing import Annotated, Any

import tyro

from tood_jax.config.ranges import Range


def with_ranges(config: Any) -> Any:
    """Return a config of the same values whose types make tyro print the range of a field beside its default.

    Each type is derived from the config's own, where tyro finds the docstrings of the fields.
    """
    hints = typing.get_type_hints(type(config), include_extras=True)
    fields: list[Any] = []
    for field in dataclasses.fields(config):
        hint, value = hints[field.name], getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            value = with_ranges(value)
            hint = type(value)
        for range_ in typing.get_args(hint):
            if isinstance(range_, Range):
                beside = partial("({}; default: {})".format, range_)
                hint = Annotated[hint, tyro.conf.arg(help_behavior_hint=beside)]
        fields.append((field.name, hint, dataclasses.field(default=value)))
    own = dataclasses.make_dataclass(type(config).__name__, fields, bases=(type(config),), frozen=True)
    return own()
