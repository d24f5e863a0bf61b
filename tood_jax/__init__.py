"""TOOD, task-aligned one-stage object detection, in JAX and Flax.

`load` opens a trained detector. It is imported when it is first used, so that data workers never load JAX.
"""

from typing import Any

__all__ = ["load"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from tood_jax import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
