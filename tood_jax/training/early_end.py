"""End a run before its plan does, by train.patience (evaluations no longer become better) or train.max_hours."""

import math
from collections.abc import Mapping
from typing import Any

from tood_jax.config import TrainConfig
from tood_jax.distributed.host_sync import broadcast_json
from tood_jax.run_log.goodput import Ledger


class EarlyEnd:
    """Decides whether a run ends now.

    Attributes:
        state: what a checkpoint keeps: `metric`, its `best` value so far (None: none yet), the `step` of that, and the
            number of `evaluations` since.
    """

    def __init__(self, config: TrainConfig, ledger: Ledger, counts_after: int, state: Mapping[str, Any] | None):
        """Begin with the state of a checkpoint.

        Args:
            ledger: of the run; that of the primary process has the time of earlier starts.
            counts_after: evaluations up to this step are not counted.
            state: of the checkpoint from which the run continues, if any; that of another metric is not used.
        """
        self._config = config
        self._ledger = ledger
        self._counts_after = counts_after
        fresh = {"metric": config.best, "best": None, "step": 0, "evaluations": 0}
        self.state: dict[str, Any] = dict(state) if state and state.get("metric") == config.best else fresh

    def count(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Count the evaluation of a step."""
        self.state = self._state_after(step, metrics)

    def would_end_after(self, step: int, metrics: Mapping[str, Any]) -> bool:
        """Return whether the run would end if this evaluation was counted."""
        return self._is_exhausted(self._state_after(step, metrics))

    @property
    def is_out_of_patience(self) -> bool:
        """Whether the last `train.patience` evaluations were not better than one before them."""
        return self._is_exhausted(self.state)

    def is_out_of_time(self) -> bool:
        """Return whether the starts of the run have taken their time, as this process knows it."""
        return 0 < self._config.max_hours <= self._ledger.seconds() / 3600

    def has_come(self) -> bool:
        """Return whether a resumed run has nothing left to do; all processes must call it at the same point."""
        return self.is_out_of_patience or (self._config.max_hours > 0 and broadcast_json(self.is_out_of_time))

    def describe(self) -> str:
        """Return why the run ends, as part of a sentence."""
        if not self.is_out_of_patience:
            return f"it has run for {self._config.max_hours:g} hours (train.max_hours)"
        best = "" if self.state["best"] is None else f" than {100 * self.state['best']:.1f} (step {self.state['step']})"
        return f"no better {self.state['metric']}{best} in {self.state['evaluations']} evaluations (train.patience)"

    def _is_exhausted(self, state: Mapping[str, Any]) -> bool:
        return 0 < self._config.patience <= state["evaluations"]

    def _state_after(self, step: int, metrics: Mapping[str, Any]) -> dict[str, Any]:
        if step <= self._counts_after:
            return self.state
        value, best = metrics.get(self.state["metric"]), self.state["best"]
        is_better = isinstance(value, int | float) and math.isfinite(value) and (best is None or value > best)
        return self.state | (
            {"best": value, "step": step, "evaluations": 0}
            if is_better
            else {"evaluations": self.state["evaluations"] + 1}
        )
