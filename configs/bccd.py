"""A small TOOD on the BCCD blood cells (364 photographs, 3 classes), trained from scratch.

    python train.py --config configs/bccd.py --data.train.images=DIR/train --data.val.images=DIR/val \
        --data.train.annotations=DIR/annotations/instances_train.json \
        --data.val.annotations=DIR/annotations/instances_val.json

Needs: the BCCD set in COCO format (by default in data/bccd) and two CPU cores. No pre-trained weights are used. For a
    set of your own take configs/small_set.py.
Time: 14 minutes of processor time on AMD EPYC cores (without a GPU).
Score: AP 57.1, AP50 88.6 on its val split (measured, one seed; reports/2026-12/small_sets.md).
"""

from dataclasses import replace

from tood_jax.config import Config, SplitConfig
from tood_jax.config.presets import small_set


def config() -> Config:
    base = small_set()
    return replace(
        base,
        name="bccd",
        data=replace(
            base.data,
            train=SplitConfig("data/bccd/train", "data/bccd/annotations/instances_train.json"),
            val=SplitConfig("data/bccd/val", "data/bccd/annotations/instances_val.json"),
            vertical_flip_probability=0.5,  # blood cells have no up
            max_objects=60,
        ),
        train=replace(base.train, epochs=40),
    )
