"""Task alignment learning on a parallel head, ResNet-50, 12 epochs (paper, table 2).

    python train.py --config configs/rivals/tal_parallel_r50_fpn_1x_coco.py

Needs: COCO 2017 in data/coco (train2017, val2017, annotations) and a ResNet-50 trained on ImageNet (--init_from FILE;
    the stem and stage 1 are frozen). 16 images a step; another --train.batch_size scales the learning rate with it.
Time: 12 epochs of about 7,330 steps; not measured here.
Score: published: in the paper's table 2.
"""

from dataclasses import replace

from tood_jax.config import Config, HeadConfig
from tood_jax.config.presets import tood_r50_fpn_1x_coco


def config() -> Config:
    return replace(
        tood_r50_fpn_1x_coco(),
        name="tal_parallel_r50_fpn_1x_coco",
        head=HeadConfig(kind="parallel", num_convs=4, alignment=False, box_coding="exp_distances"),
    )
