"""TOOD, ResNet-50, multi-scale, 24 epochs.

    python train.py --config configs/tood_r50_fpn_ms_2x_coco.py --init_from resnet50.pth

Needs: COCO 2017 in data/coco (train2017, val2017, annotations) and a ResNet-50 trained on ImageNet (torchvision's
    or timm's file, docs/weights.md): the stem and stage 1 are frozen. 16 images a step; another --train.batch_size
    scales the learning rate with it. Where they don't fit in memory: --train.precision=bfloat16, or
    --train.accumulate_steps=2.
Time: 24 epochs of about 7,330 steps; not measured here.
Score: published: AP 44.5 on val2017 (mmdetection's model zoo).
"""

from tood_jax.config import Config
from tood_jax.config.presets import tood_r50_fpn_ms_2x_coco


def config() -> Config:
    return tood_r50_fpn_ms_2x_coco()
