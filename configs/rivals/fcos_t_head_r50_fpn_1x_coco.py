"""FCOS with T-head, ResNet-50, 12 epochs (paper, table 1).

    python train.py --config configs/rivals/fcos_t_head_r50_fpn_1x_coco.py

Needs: COCO 2017 in data/coco (train2017, val2017, annotations) and a ResNet-50 trained on ImageNet (--init_from FILE;
    the stem and stage 1 are frozen). 16 images a step; another --train.batch_size scales the learning rate with it.
Time: 12 epochs of about 7,330 steps; not measured here.
Score: published: in the paper's table 1.
"""

from dataclasses import replace

from tood_jax.config import AssignerConfig, Config, DetectConfig, HeadConfig, LossConfig, NeckConfig
from tood_jax.config.presets import tood_r50_fpn_1x_coco


def config() -> Config:
    base = tood_r50_fpn_1x_coco()
    return replace(
        base,
        name="fcos_t_head_r50_fpn_1x_coco",
        neck=NeckConfig(extra_levels="on_output", relu_before_p7=True),
        head=HeadConfig(
            kind="t_head",
            num_convs=6,
            alignment=True,
            quality="centerness",
            box_coding="relu_distances",
            point_offset=0.5,
        ),
        assigner=AssignerConfig(kind="center_sampling", center_radius=1.5),
        loss=LossConfig(
            cls="focal",
            cls_target="one",
            normalizer="positives",
            box="giou",
            box_weight="centerness",
            box_loss_weight=1.0,
        ),
        optimizer=replace(base.optimizer, warmup_factor=1 / 3),
        detect=DetectConfig(clip_boxes=True),
    )
