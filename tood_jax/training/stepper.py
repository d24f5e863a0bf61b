"""Steps sent to the devices one ahead of the numbers that are read back, so that they never wait for the host.

While step k + 1 computes, the host reads the numbers of step k, logs, and fetches the batch of step k + 2. Step k + 1
is on its way before anyone has seen whether step k was finite; so it gets step k's `finite` on the device, and changes
nothing either if that was 0 (see `train_step`): the state stays the one before the bad step.
"""

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from tood_jax.training.agreement import Agreement
from tood_jax.training.goodput import Stopwatch
from tood_jax.training.sharding import put_batch, put_whole, replicated
from tood_jax.training.signals import Reason, Stopped, StopRequest
from tood_jax.training.state import TrainState
from tood_jax.types import Batch

Row = dict[str, float]  # the scalars of one step
_IN_FLIGHT = 2  # steps


class _Flight(NamedTuple):
    batch: Batch  # on the host
    row: dict[str, jax.Array]
    vote: jax.Array | None


class Stepper:
    """Runs a step function over a feed.

    Attributes:
        state: after the newest step that was sent off.
        reason: why to stop, as all processes agree.
    """

    def __init__(
        self,
        step: Callable[[TrainState, Batch, jax.Array], tuple[TrainState, dict[str, jax.Array]]],
        state: TrainState,
        feed: Iterator[Batch],
        mesh: Mesh,
        stop: StopRequest,
        watch: Stopwatch,
    ):
        self.state = state
        self._step, self._feed, self._mesh, self._stop, self._watch = step, feed, mesh, stop, watch
        self._agreement = Agreement(mesh)
        self._agreed = Reason.NONE
        self._finite: jax.Array = put_whole(np.ones((), np.float32), replicated(mesh))
        self._canvases: set[Any] = set()
        self._newest: Any = None  # of what is in flight

    @property
    def reason(self) -> Reason:
        return self._stop.reason if self._agreement.alone else self._agreed

    def rows(self, steps: int) -> Iterator[tuple[Row, Batch]]:
        """Runs so many steps, or fewer if asked to stop; yields each one's numbers and its batch.

        At its end nothing is in flight: `state` is that after the last row.
        """
        flying: deque[_Flight] = deque()
        left = steps
        while True:
            while left and not self.reason and len(flying) < _IN_FLIGHT:
                flying.append(self._send())
                left -= 1
            if not flying:
                return
            flight = flying.popleft()
            row, vote = jax.device_get((flight.row, flight.vote))
            if vote is not None:
                self._agreed = max(self._agreed, Reason(int(vote)))
            yield {name: float(value) for name, value in row.items()}, flight.batch

    def check(self) -> None:
        """Raises Stopped if any process was asked to stop; all processes must call it at the same point."""
        self._agreed = max(self._agreed, Reason(self._agreement.largest(self._stop.reason)))
        if self._agreed:
            raise Stopped(self._agreed)

    def _send(self) -> _Flight:
        begin = time.perf_counter()
        batch = next(self._feed)
        if self._newest is None or self._newest.is_ready():  # else the devices had work enough
            self._watch.add("waiting", time.perf_counter() - begin)
        on_device = put_batch(batch, self._mesh)
        vote = None if self._agreement.alone else self._agreement.propose(self._stop.reason)
        canvas = batch.images.shape
        with contextlib.nullcontext() if canvas in self._canvases else self._watch.spend("compiling"):
            self.state, row = self._step(self.state, on_device, self._finite)
        self._canvases.add(canvas)
        self._newest = self._finite = row["finite"]
        return _Flight(batch, row, vote)
