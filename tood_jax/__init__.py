"""TOOD, task-aligned one-stage object detection, in JAX and Flax.

    load(checkpoint)              a trained detector, to detect objects in images
    train(config)                 train a detector, or resume its run
    evaluate(checkpoint)          COCO's metrics and the detections of a data set
    load_config(name)             the config of a file, or a published one by its name
    build_detector(config, C)     the Flax module of a config for C classes

All are imported when they are first used, so that data workers never load JAX.
"""

from typing import Any

__all__ = ["build_detector", "evaluate", "load", "load_config", "train"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from tood_jax import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
