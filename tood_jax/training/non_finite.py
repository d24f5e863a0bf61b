"""A step whose loss or gradient is not finite ends the run, with its batch and its numbers in the run's folder."""

import json
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np

from tood_jax.distributed.host_sync import is_primary
from tood_jax.types import Batch


class NonFiniteLossError(RuntimeError):
    """A loss or gradient became NaN or infinite; the message says where, and what was saved."""


def save_evidence(folder: Path, step: int, row: Mapping[str, float], batch: Batch) -> str:
    """Save the batch and the numbers of a non-finite step, and return the message for the user.

    Args:
        folder: of the run.
        step: number of steps before this one.
        row: numbers of the step.
        batch: this process's part of it.
    """
    non_finite = [name for name, value in row.items() if not np.isfinite(value)]
    evidence = folder / f"non_finite_step_{step}"
    part = f"_of_process_{jax.process_index()}" if jax.process_count() > 1 else ""
    evidence.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(evidence / f"batch{part}.npz", **batch._asdict())
    if is_primary():
        (evidence / "metrics.json").write_text(json.dumps({name: str(value) for name, value in row.items()}, indent=1))
    return (
        f"Step {step} gave a non-finite {', '.join(non_finite)}. The weights before it are saved in "
        f"{folder}/checkpoints/{step}, its batch and numbers in {evidence}. {_usual_causes(step)}"
    )


def _usual_causes(step: int) -> str:
    if step == 0:  # no learning rate was applied yet
        return (
            "Nothing was learnt before it, so the cause is in the weights that the run begins with (of --init_from), "
            "whose values may be too large, or in broken boxes of the annotations."
        )
    return (
        "Usual causes: a learning rate too high (optimizer.learning_rate), no clipping (optimizer.clip_norm=10), or "
        "broken boxes in the annotations."
    )
