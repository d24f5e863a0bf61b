"""TOOD with square anchors instead of points, ResNet-50, 12 epochs.

    python train.py --config configs/tood_r50_fpn_anchor_based_1x_coco.py --init_from resnet50.pth

Needs: COCO 2017 in data/coco (train2017, val2017, annotations) and a ResNet-50 trained on ImageNet (torchvision's
    or timm's file, docs/weights.md): the stem and stage 1 are frozen. 16 images a step; another --train.batch_size
    scales the learning rate with it. Where they don't fit in memory: --train.precision=bfloat16, or
    --train.accumulate_steps=2.
Time: 12 epochs of about 7,330 steps; not measured here.
Score: published: AP 42.4 on val2017 (by the authors).
"""

from dataclasses import replace

from tood_jax.config import Config, HeadConfig
from tood_jax.config.presets import tood_r50_fpn_1x_coco


def config() -> Config:
    return replace(
        tood_r50_fpn_1x_coco(),
        name="tood_r50_fpn_anchor_based_1x_coco",
        head=HeadConfig(box_coding="anchor_deltas"),
    )
