"""OTA, ResNet-50, 12 epochs: assignment by optimal transport (Ge et al. 2021).

    python train.py --config configs/rivals/ota_r50_fpn_1x_coco.py

Needs: COCO 2017 in data/coco (train2017, val2017, annotations) and a ResNet-50 trained on ImageNet (--init_from FILE;
    the stem and stage 1 are frozen). 16 images a step; another --train.batch_size scales the learning rate with it.
Time: 12 epochs of about 7,330 steps; not measured here.
Score: published: AP 40.7 on val2017 (by the authors).
"""

from dataclasses import replace

from tood_jax.config import AssignerConfig, Config, DetectConfig, HeadConfig, LossConfig
from tood_jax.config.presets import tood_r50_fpn_1x_coco


def config() -> Config:
    return replace(
        tood_r50_fpn_1x_coco(),
        name="ota_r50_fpn_1x_coco",
        head=HeadConfig(
            kind="parallel",
            num_convs=4,
            norm="group",
            tower_bias=True,
            alignment=False,
            quality="iou",
            box_coding="relu_distances",
            point_offset=0.5,
        ),
        assigner=AssignerConfig(kind="ota", center_radius=2.5),
        loss=LossConfig(
            cls="focal",
            cls_target="one",
            normalizer="positives",
            box="giou",
            box_weight="iou",
            box_loss_weight=2.0,
            quality_loss_weight=0.5,
        ),
        detect=DetectConfig(clip_boxes=True, quality_fusion="geometric_mean"),
    )
