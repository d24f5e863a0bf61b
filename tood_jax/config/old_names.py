"""Old names of config classes and fields in Python: files written for them still work, with a FutureWarning."""

import functools
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

from tood_jax.config.renames import renamed_fields

Class = TypeVar("Class", bound=type)


def accept_old_names(group: str) -> Callable[[Class], Class]:
    """Return a decorator of a group's dataclass whose constructor also takes fields by their old names.

    Args:
        group: name of the group in the config; "" for the whole config.
    """
    renamed = renamed_fields(group)

    def decorate(cls: Class) -> Class:
        genuine = cls.__init__  # type: ignore[misc]

        @functools.wraps(genuine)
        def init(self: Any, *arguments: Any, **fields: Any) -> None:
            for old, new in renamed.items():
                if old in fields:
                    if new in fields:
                        raise TypeError(f"{cls.__name__}() has values for {old} and for {new}, its new name: keep one.")
                    warn_renamed(f"{cls.__name__}({old}=…)", f"{cls.__name__}({new}=…)", stacklevel=3)
                    fields[new] = fields.pop(old)
            genuine(self, *arguments, **fields)

        cls.__init__ = init  # type: ignore[misc]
        return cls

    return decorate


def warn_renamed(old: str, new: str, stacklevel: int) -> None:
    """Warn that a name has changed."""
    warnings.warn(f"{old} is now {new}.", FutureWarning, stacklevel=stacklevel + 1)
