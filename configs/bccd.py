"""A small TOOD on the BCCD blood cells (364 photographs, 3 classes), trained from scratch.

    python train.py --config configs/bccd.py --data.train.images=DIR/train --data.val.images=DIR/val \
        --data.train.annotations=DIR/annotations/instances_train.json \
        --data.val.annotations=DIR/annotations/instances_val.json

Needs: the BCCD set in COCO format (by default in data/bccd) and two CPU cores. No pre-trained weights are used. For a
    set of your own take configs/small_set.py, whose learning rate is lower: this one's made other sets collapse.
Time: 13 minutes on two AMD EPYC cores (without a GPU), shared with other jobs.
Score: AP 57.6, AP50 89.5 on its val split (measured; reports/2026-11/training.md has the table).
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
    )
