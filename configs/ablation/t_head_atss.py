"""Ablation: T-head, ATSS, small and from scratch.

    python train.py --config configs/ablation/t_head_atss.py

Needs: the dense generated set in build/dense_shapes, which `python -m benchmarks.cases.ablation` makes.
Time: 5 minutes on two AMD EPYC cores.
Score: reports/2026-11/ablation.md has the table of all four, with their spread over seeds.
"""

from dataclasses import replace

from tood_jax.config import AssignerConfig, Config, HeadConfig, LossConfig
from tood_jax.config.presets import ablation


def config() -> Config:
    return replace(
        ablation(),
        name="t_head_atss",
        head=HeadConfig(kind="t_head", channels=64, num_convs=6, norm_groups=16, quality="centerness"),
        assigner=AssignerConfig(kind="atss"),
        loss=LossConfig(cls="focal", cls_target="one", normalizer="positives_per_image", box_weight="centerness"),
    )
