"""Ablation: parallel head, task-aligned assignment and losses, small and from scratch.

    python train.py --config configs/ablation/parallel_task_aligned.py

Needs: the dense generated set in build/dense_shapes, which `python -m benchmarks.cases.ablation` makes.
Time: 5 minutes on two AMD EPYC cores.
Score: reports/2026-11/ablation.md has the table of all four, with their spread over seeds.
"""

from dataclasses import replace

from tood_jax.config import Config, HeadConfig
from tood_jax.config.presets import ablation


def config() -> Config:
    return replace(
        ablation(),
        name="parallel_task_aligned",
        head=HeadConfig(kind="parallel", channels=64, num_convs=4, norm_groups=16, alignment=False),
    )
