"""The user's own augmentation: `data.augment_hook` = module:function, called as (rng, image, boxes, labels)."""

import functools
import importlib
from collections.abc import Callable
from typing import Any

import numpy as np

from tood_jax.data.errors import DataError
from tood_jax.untrusted.printable import printable

Hook = Callable[..., Any]


@functools.cache
def load_hook(name: str) -> Hook | None:
    """Return the function that data.augment_hook names; None for "".

    Raises:
        DataError: it cannot be imported, or is no function.
    """
    if not name:
        return None
    module_name, _, function_name = name.partition(":")
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except Exception as error:
        raise DataError(
            f"data.augment_hook = {printable(name)} can't be imported ({type(error).__name__}: {printable(error)}): "
            "write module:function, and put the folder of the module on PYTHONPATH."
        ) from None
    if not callable(function):
        raise DataError(f"data.augment_hook = {printable(name)} is no function: write module:function.")
    return function


def call_hook(
    name: str,
    random: np.random.Generator,
    image: np.ndarray,
    boxes: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return what the hook makes of an image and its objects: [h, w, 3] uint8, [n, 4] float32, [n] int32.

    Args:
        name: data.augment_hook.
        random: the source of all random numbers of the hook.
        image: [h, w, 3] uint8 RGB; like `boxes` and `labels` the hook's own, to change or to return.
        boxes: [n, 4] float32 xyxy, pixels of the image.
        labels: [n] int32, 0 … num_classes − 1.

    Raises:
        DataError: the hook returns something else.
    """
    hook = load_hook(name)
    assert hook is not None
    result = hook(random, np.ascontiguousarray(image), boxes.copy(), labels.copy())
    problem = _problem(result, num_classes)
    if problem:
        raise DataError(f"data.augment_hook = {printable(name)} must return (image, boxes, labels), but {problem}.")
    return result[0], np.asarray(result[1], np.float32), np.asarray(result[2], np.int32)


def _problem(result: Any, num_classes: int) -> str:
    """Return what is wrong with the hook's result, as part of a sentence; "" if nothing is."""
    if not (isinstance(result, tuple) and len(result) == 3 and all(isinstance(part, np.ndarray) for part in result)):
        return f"it returned {_describe(result)} instead of three NumPy arrays"
    image, boxes, labels = result
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        return f"its image is {_describe(image)} instead of uint8 [height, width, 3]"
    if boxes.ndim != 2 or boxes.shape[1] != 4 or boxes.dtype.kind not in "fiu":
        return f"its boxes are {_describe(boxes)} instead of float32 [n, 4]"
    if labels.shape != boxes.shape[:1] or labels.dtype.kind not in "iu":
        return f"its labels are {_describe(labels)} instead of int32 [{len(boxes)}], one per box"
    if not np.isfinite(boxes).all():
        return "a box is not finite"
    if len(labels) and not 0 <= labels.min() <= labels.max() < num_classes:
        return f"its labels range from {labels.min()} to {labels.max()} instead of 0 to {num_classes - 1}"
    return ""


def _describe(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {list(value.shape)}"
    if isinstance(value, tuple):
        return f"a tuple of {', '.join(type(part).__name__ for part in value[:5])}"
    return f"a {type(value).__name__}"
