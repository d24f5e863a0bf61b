"""A small TOOD for a small set of your own (some hundred photographs), trained from scratch.

    python train.py --config configs/small_set.py --data DIR --train.workdir=runs/mine

Needs: a set in COCO, YOLO or Pascal VOC format (docs/data.md) and two CPU cores. No pre-trained weights are used. With
    more images take fewer epochs: about 3,000 steps of 4 images show what a set is worth.
Time: 3 to 5 steps a second on two AMD EPYC cores (without a GPU).
Score: reports/2026-12/small_sets.md has AP on sets of nine kinds after 600 steps, three seeds each.
"""

from tood_jax.config import Config
from tood_jax.config.presets import small_set


def config() -> Config:
    return small_set()
