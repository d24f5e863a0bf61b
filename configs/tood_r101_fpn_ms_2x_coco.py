"""TOOD, ResNet-101, multi-scale, 24 epochs.

    python train.py --config configs/tood_r101_fpn_ms_2x_coco.py --init_from resnet101.pth

Needs: COCO 2017 in data/coco (train2017, val2017, annotations) and a ResNet-101 trained on ImageNet (torchvision's
    or timm's file, docs/weights.md): the stem and stage 1 are frozen. 16 images a step; another --train.batch_size
    scales the learning rate with it. Where they don't fit in memory: --train.precision=bfloat16, or
    --train.accumulate_steps=2.
Time: 24 epochs of about 7,330 steps; not measured here.
Score: published: AP 46.1 on val2017 (mmdetection's model zoo).
"""

from dataclasses import replace

from tood_jax.config import BackboneConfig, Config
from tood_jax.config.presets import tood_r50_fpn_ms_2x_coco


def config() -> Config:
    return replace(tood_r50_fpn_ms_2x_coco(), name="tood_r101_fpn_ms_2x_coco", backbone=BackboneConfig(depth=101))
