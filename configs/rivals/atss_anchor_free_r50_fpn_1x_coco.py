"""ATSS, ResNet-50, 12 epochs, anchor-free: distances from the cell's point (Zhang et al. 2020).

    python train.py --config configs/rivals/atss_anchor_free_r50_fpn_1x_coco.py

Needs: COCO 2017 in data/coco (train2017, val2017, annotations) and a ResNet-50 trained on ImageNet (--init_from FILE;
    the stem and stage 1 are frozen). 16 images a step; another --train.batch_size scales the learning rate with it.
Time: 12 epochs of about 7,330 steps; not measured here.
Score: published: none for this form alone.
"""

from dataclasses import replace

from tood_jax.config import AssignerConfig, Config, DetectConfig, HeadConfig, LossConfig
from tood_jax.config.presets import tood_r50_fpn_1x_coco


def config() -> Config:
    return replace(
        tood_r50_fpn_1x_coco(),
        name="atss_anchor_free_r50_fpn_1x_coco",
        head=HeadConfig(
            kind="parallel",
            num_convs=4,
            alignment=False,
            quality="centerness",
            box_coding="exp_distances",
            anchor_scale=8.0,
        ),
        assigner=AssignerConfig(kind="atss", atss_topk=9),
        loss=LossConfig(
            cls="focal",
            cls_target="one",
            normalizer="positives_per_image",
            box="giou",
            box_weight="centerness",
            box_loss_weight=2.0,
        ),
        detect=DetectConfig(clip_boxes=True),
    )
