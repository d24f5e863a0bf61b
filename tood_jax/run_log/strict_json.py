"""Convert the values of a run to strict JSON."""

import math
import numbers
import os
from collections.abc import Mapping
from typing import Any


def json_safe(value: Any) -> Any:
    """Return a value that strict JSON can hold: arrays as numbers or lists, NaN and infinities as "nan", "inf", "-inf".

    Raises:
        TypeError: JSON has no form for a value.
    """
    if isinstance(value, Mapping):
        return {str(key): json_safe(inner) for key, inner in value.items()}
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        number = float(value)
        return number if math.isfinite(number) else str(number)
    if isinstance(value, list | tuple):
        return [json_safe(inner) for inner in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "dtype") and hasattr(value, "tolist"):  # numpy or JAX, any number of axes
        return json_safe(value.tolist())
    raise TypeError(f"a {type(value).__name__} can't be written as JSON: {value!r}")
