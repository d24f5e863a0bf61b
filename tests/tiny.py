"""A whole run in miniature, shared by the tests of the loop, the programs and the meshes."""

from pathlib import Path

import numpy as np

from tood_jax.config import (
    AssignerConfig,
    BackboneConfig,
    Config,
    DataConfig,
    HeadConfig,
    NeckConfig,
    OptimizerConfig,
    SplitConfig,
    TrainConfig,
)
from tood_jax.types import Batch

IMAGE_SIDE = 64


def tiny_config(data: Path, workdir: Path, **train) -> Config:
    """The smallest real run: 12 images of 64×64, 3 epochs of 3 steps, both phases."""
    return Config(
        name="tiny",
        backbone=BackboneConfig(depth=18, width=8, norm="batch", frozen_stages=-1),
        neck=NeckConfig(channels=16, norm="group"),
        head=HeadConfig(channels=16, num_convs=2, norm_groups=4),
        assigner=AssignerConfig(warmup_epochs=1),
        data=DataConfig(
            train=SplitConfig(str(data / "train"), str(data / "annotations/instances_train.json")),
            val=SplitConfig(str(data / "val"), str(data / "annotations/instances_val.json")),
            train_short_side=(IMAGE_SIDE, IMAGE_SIDE),
            eval_short_side=IMAGE_SIDE,
            max_long_side=IMAGE_SIDE,
            buckets=((IMAGE_SIDE, IMAGE_SIDE),),
            max_objects=8,
        ),
        optimizer=OptimizerConfig(
            learning_rate=0.02,
            learning_rate_batch=4,
            warmup_steps=2,
            step_epochs=(2,) if train.get("epochs", 3) > 2 else (),
            ema_decay=0.9,
        ),
        train=TrainConfig(
            **{
                "epochs": 3,
                "batch_size": 4,
                "eval_batch_size": 4,
                "checkpoint_every_steps": 2,
                "log_every_steps": 2,
                "eval_every_epochs": 2,
                "draw_targets": False,  # compiles another program
                "workdir": str(workdir),
                **train,
            }
        ),
    )


def random_batch(
    batch_size: int,
    side: int = IMAGE_SIDE,
    max_objects: int = 4,
    num_classes: int = 4,
    seed: int = 0,
    times_high: int = 1,
):
    """A batch of noise with one to `max_objects` objects an image; the last image has none.

    Images are `times_high` as high as wide, and so are their objects.
    """
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, side * 0.6, (batch_size, max_objects, 2))
    size = rng.uniform(side * 0.15, side * 0.4, (batch_size, max_objects, 2))
    corner[..., 1] *= times_high
    size[..., 1] *= times_high
    height = side * times_high
    mask = np.arange(max_objects) < rng.integers(1, max_objects + 1, (batch_size, 1))
    mask[-1] = False
    return Batch(
        rng.integers(0, 256, (batch_size, height, side, 3), dtype=np.uint8),
        np.tile(np.asarray([height, side], np.int32), (batch_size, 1)),
        np.ones((batch_size, 2), np.float32),
        (np.concatenate([corner, corner + size], axis=-1) * mask[..., None]).astype(np.float32),
        (rng.integers(0, num_classes, (batch_size, max_objects)) * mask).astype(np.int32),
        mask,
        np.arange(batch_size, dtype=np.int32),
    )
