"""TOOD, ResNeXt-101 64×4d, multi-scale, 24 epochs.

    python train.py --config configs/tood_x101_64x4d_fpn_ms_2x_coco.py --init_from resnext101_64x4d.pth

Needs: COCO 2017 in data/coco (train2017, val2017, annotations) and a ResNeXt-101 64×4d trained on ImageNet
    (torchvision's, timm's or open-mmlab's file, docs/weights.md; the published score began with open-mmlab's): the
    stem and stage 1 are frozen. 16 images a step; another --train.batch_size scales the learning rate with it.
    Where they don't fit in memory: --train.precision=bfloat16, or --train.accumulate_steps=2.
Time: 24 epochs of about 7,330 steps; not measured here.
Score: published: AP 47.6 on val2017 (mmdetection's model zoo).
"""

from dataclasses import replace

from tood_jax.config import BackboneConfig, Config
from tood_jax.config.presets import tood_r50_fpn_ms_2x_coco


def config() -> Config:
    return replace(
        tood_r50_fpn_ms_2x_coco(),
        name="tood_x101_64x4d_fpn_ms_2x_coco",
        backbone=BackboneConfig(depth=101, groups=64, width_per_group=4),
    )
