"""RetinaNet, ResNet-50, 12 epochs: nine anchors a cell, max-IoU assignment (Lin et al. 2017).

    python train.py --config configs/rivals/retinanet_r50_fpn_1x_coco.py

Needs: COCO 2017 in data/coco (train2017, val2017, annotations) and a ResNet-50 trained on ImageNet (--init_from FILE;
    the stem and stage 1 are frozen). 16 images a step; another --train.batch_size scales the learning rate with it.
Time: 12 epochs of about 7,330 steps; not measured here.
Score: published: AP 36.5 on val2017 (mmdetection's model zoo).
"""

from dataclasses import replace

from tood_jax.config import AssignerConfig, Config, DetectConfig, HeadConfig, LossConfig, NeckConfig
from tood_jax.config.presets import tood_r50_fpn_1x_coco


def config() -> Config:
    return replace(
        tood_r50_fpn_1x_coco(),
        name="retinanet_r50_fpn_1x_coco",
        neck=NeckConfig(extra_levels="on_input"),
        head=HeadConfig(
            kind="parallel",
            num_convs=4,
            norm="none",
            tower_bias=True,
            alignment=False,
            box_coding="anchor_deltas",
            delta_stds=(1.0, 1.0, 1.0, 1.0),
            level_scales=False,
            anchor_scale=4.0,
            anchor_octaves=3,
            anchor_ratios=(0.5, 1.0, 2.0),
        ),
        assigner=AssignerConfig(kind="max_iou", positive_iou=0.5, negative_iou=0.4),
        loss=LossConfig(
            cls="focal",
            cls_target="one",
            normalizer="positives_per_image",
            box="l1",
            box_weight="one",
            box_loss_weight=1.0,
        ),
        detect=DetectConfig(nms_iou=0.5, clip_boxes=True),
    )
