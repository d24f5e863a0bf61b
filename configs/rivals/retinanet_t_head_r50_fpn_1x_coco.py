"""RetinaNet with T-head, one anchor a cell, ResNet-50, 12 epochs. Its boxes are sampled, so they learn by GIoU.

    python train.py --config configs/rivals/retinanet_t_head_r50_fpn_1x_coco.py

Needs: COCO 2017 in data/coco (train2017, val2017, annotations) and a ResNet-50 trained on ImageNet (--init_from FILE;
    the stem and stage 1 are frozen). 16 images a step; another --train.batch_size scales the learning rate with it.
Time: 12 epochs of about 7,330 steps; not measured here.
Score: published: none.
"""

from dataclasses import replace

from tood_jax.config import AssignerConfig, Config, DetectConfig, HeadConfig, LossConfig, NeckConfig
from tood_jax.config.presets import tood_r50_fpn_1x_coco


def config() -> Config:
    return replace(
        tood_r50_fpn_1x_coco(),
        name="retinanet_t_head_r50_fpn_1x_coco",
        neck=NeckConfig(extra_levels="on_input"),
        head=HeadConfig(kind="t_head", num_convs=6, alignment=True, box_coding="anchor_deltas", anchor_scale=4.0),
        assigner=AssignerConfig(kind="max_iou", positive_iou=0.5, negative_iou=0.4),
        loss=LossConfig(
            cls="focal",
            cls_target="one",
            normalizer="positives_per_image",
            box="giou",
            box_weight="one",
            box_loss_weight=2.0,
        ),
        detect=DetectConfig(nms_iou=0.5, clip_boxes=True),
    )
