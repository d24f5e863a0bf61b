"""Detect a run that has stopped learning although its batches hold objects.

In a collapse nothing is infinite and the loss looks excellent; the targets show it. A step is bad if its batch has
objects, and none of them has a positive location, or the positives' targets or the IoU of their boxes are almost zero.
"""

from collections.abc import Mapping

from tood_jax.config import Config
from tood_jax.training.optimizer import scaled_learning_rate

MIN_TARGET_SUM = 1e-3  # of an object's classification targets; a healthy one has 0.5 to 10
MIN_POSITIVE_IOU = 0.01  # mean over the positives; a random network begins with 0.05


class CollapseError(RuntimeError):
    """Training collapsed; the log has the step, the likely causes, and the checkpoint that was kept."""


class CollapseWatch:
    """Counts bad steps in a row.

    Attributes:
        bad_steps: number of bad steps since the last good one; it is part of a checkpoint.
        found: whether it has ever reached the limit.
    """

    def __init__(self, limit: int, bad_steps: int = 0):
        """Begin with the state of a checkpoint.

        Args:
            limit: bad steps in a row that are a collapse; 0 disables the watch.
            bad_steps: of the checkpoint from which the run continues.
        """
        self.bad_steps = bad_steps
        self.found = False
        self._limit = limit
        self._sign = ""

    def count(self, row: Mapping[str, float]) -> bool:
        """Count the next step by its numbers; return True at the step that makes it a collapse."""
        if not self._limit or not row["objects"]:
            return False
        self._sign = sign_of_collapse(row)
        self.bad_steps = self.bad_steps + 1 if self._sign else 0
        is_new = self.bad_steps >= self._limit and not self.found
        self.found = self.found or is_new
        return is_new

    @property
    def is_suspicious(self) -> bool:
        """Whether the last step was bad, but too few were to call it a collapse."""
        return self.bad_steps > 0 and not self.found

    def describe(self, step: int, config: Config) -> str:
        """Return a sentence about what happened, and its likely causes."""
        return (
            f"Training has collapsed: in each of the last {self.bad_steps} steps before step {step} {self._sign}, "
            f"although the batches hold objects. {' '.join(likely_causes(config))}"
        )


def sign_of_collapse(row: Mapping[str, float]) -> str:
    """Return what is wrong with the targets of a step that has objects, as part of a sentence; "" if nothing is."""
    if not row["positives"]:
        return "no object had a positive location"
    if row["target_sum"] < MIN_TARGET_SUM * row["objects"]:
        return f"the targets of an object added up to less than {MIN_TARGET_SUM:g}"
    if row["positive_iou"] < MIN_POSITIVE_IOU:
        return f"the boxes of the positives overlapped their objects by less than {MIN_POSITIVE_IOU:g} (IoU)"
    return ""


def likely_causes(config: Config) -> list[str]:
    """Return what to try, the likeliest first, one sentence each."""
    options = config.optimizer
    rate = scaled_learning_rate(options, config.train.batch_size)
    causes = [
        f"The usual cause is a learning rate too high (now {rate:.3g} for {config.train.batch_size} images): "
        f"try --optimizer.learning_rate={options.learning_rate / 4:.3g}"
        + (" and --optimizer.clip_norm=1." if options.clip_norm is None or options.clip_norm > 1 else ".")
    ]
    if config.assigner.kind == "task_aligned":
        if config.assigner.rescue_iou == 0:
            causes.append("Objects that are lost stay lost while assigner.rescue_iou is 0: set 0.1.")
        causes.append(f"A longer ATSS warm-up than assigner.warmup_epochs={config.assigner.warmup_epochs:g} helps too.")
    return [*causes, "If it happens again, look at the boxes of the annotations."]
