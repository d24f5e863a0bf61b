"""Profile some steps of a run (train.profile_steps), and log their longest operations."""

from pathlib import Path

import jax

from tood_jax.run_log.log import RunLog
from tood_jax.run_log.profile_trace import read_events, seconds_by_operation
from tood_jax.untrusted.printable import printable

_LONGEST = 10  # operations in the log


class StepProfile:
    """JAX's profile of some steps, in the folder `profile` of a run; an error in it never ends the run.

    Args:
        steps: (first, end) of the profile, counted from 1, without `end`; None: none is written.
        folder: of the run.
        is_active: False: another process writes it.

    Attributes:
        boundaries: numbers of steps done at which the profile begins and ends, the same in all processes; no step may
            be in flight there.
    """

    def __init__(self, steps: tuple[int, int] | None, folder: Path, log: RunLog, is_active: bool = True):
        self.boundaries = () if steps is None else (steps[0] - 1, steps[1] - 1)
        self._folder, self._log, self._is_active = folder / "profile", log, is_active
        self._begun_at: int | None = None

    def before(self, step: int) -> None:
        """Begin if the profile's first step is the next after `step` steps."""
        if self._is_active and step in self.boundaries[:1]:
            self._begin(step)

    def after(self, step: int) -> None:
        """End if `step` is the profile's last step."""
        if step in self.boundaries[1:]:
            self.end(step)

    def end(self, step: int) -> None:
        """End the profile after `step` steps, if one has begun, and log its longest operations."""
        if self._begun_at is None:
            return
        begun_at, self._begun_at = self._begun_at, None
        try:
            jax.profiler.stop_trace()
            text = _describe(self._folder, step - begun_at)
        except Exception as error:
            self._warn(error)
            return
        name = f"step {step}" if step - begun_at == 1 else f"steps {begun_at + 1} to {step}"
        self._log.info(f"Profile of {name} (xprof --logdir {self._folder}); {text}")

    def _begin(self, step: int) -> None:
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0  # calls of Python make it large and the steps slow
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            jax.profiler.start_trace(str(self._folder), profiler_options=options)
        except Exception as error:
            self._warn(error)
            return
        self._begun_at = step

    def _warn(self, error: Exception) -> None:
        self._log.warn(f"there is no profile (train.profile_steps): {printable(error) or type(error).__name__}")


def _describe(folder: Path, steps: int) -> str:
    seconds = seconds_by_operation(read_events(folder))
    total = sum(seconds.values())
    if not steps or not total > 0:
        return "it names no operations."
    longest = [*seconds.items()][:_LONGEST]
    lines = [f"{1e3 * spent / steps:10.3f}  {spent / total:6.1%}  {name}" for name, spent in longest]
    return "\n".join(
        (f"the {len(lines)} longest of its {len(seconds)} operations, ms per step and share of the time:", *lines)
    )
