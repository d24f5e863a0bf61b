"""The one place where a program chooses between formulations of an operation by the platform it is compiled for."""

from collections.abc import Callable
from typing import Any

from jax import lax


def by_platform(
    *arrays: Any,
    default: Callable[..., Any],
    cpu: Callable[..., Any] | None = None,
    gpu: Callable[..., Any] | None = None,
    tpu: Callable[..., Any] | None = None,
) -> Any:
    """Return `function(*arrays)`, where the platform that the program is compiled for chooses the function.

    That platform need not be the default backend: programs are also compiled for devices that are elsewhere.

    Args:
        default: the function of all platforms that have none of their own. All functions return the same shapes and
            types.
    """
    chosen = {"cpu": cpu, "cuda": gpu, "rocm": gpu, "tpu": tpu}
    own = {platform: function for platform, function in chosen.items() if function is not None}
    return lax.platform_dependent(*arrays, **own, default=default)
