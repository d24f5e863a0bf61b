"""Dispatch steps to the devices one ahead of the numbers that are read back, so that devices never wait for the host.

While step k + 1 computes, the host reads the numbers of step k, logs, and fetches the batch of step k + 2. Step k + 1
is dispatched before the host knows whether step k was finite; so it gets step k's `finite` on the device, and changes
nothing either if that was 0 (see `train_step`): the state remains the one before the non-finite step.
"""

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from tood_jax.distributed.sharding import put_batch, put_whole, replicated
from tood_jax.distributed.signals import Reason, Stopped, StopRequest, waiting_for_others
from tood_jax.distributed.stop_vote import StopVote
from tood_jax.run_log.goodput import Stopwatch
from tood_jax.training.state import TrainState
from tood_jax.types import Batch

Row = dict[str, float]  # the scalars of one step
_MAX_IN_FLIGHT = 2  # steps


class _Dispatched(NamedTuple):
    """A step whose numbers have not been read yet."""

    batch: Batch  # on the host
    row: dict[str, jax.Array]
    vote: jax.Array | None


class Stepper:
    """Runs a step function over batches.

    Attributes:
        state: after the newest step that was dispatched.
        reason: why to stop, as all processes agree.
        vote: how the processes agree on the reason.

    `is_out_of_time` ends the steps of all processes as soon as it returns True in one of them.
    """

    def __init__(
        self,
        step: Callable[[TrainState, Batch, jax.Array], tuple[TrainState, dict[str, jax.Array]]],
        state: TrainState,
        batches: Iterator[Batch],
        mesh: Mesh,
        stop: StopRequest,
        watch: Stopwatch,
        is_out_of_time: Callable[[], bool] = lambda: False,
    ):
        self._is_out_of_time = is_out_of_time
        self.state = state
        self._step, self._batches, self._mesh, self._stop, self._watch = step, batches, mesh, stop, watch
        self.vote = StopVote(mesh)
        self._agreed_reason = Reason.NONE
        self._finite: jax.Array = put_whole(np.ones((), np.float32), replicated(mesh))
        self._canvases: set[Any] = set()
        self._newest: Any = None  # output of the newest step

    @property
    def reason(self) -> Reason:
        return self._own_reason() if self.vote.is_alone else self._agreed_reason

    def rows(self, steps: int) -> Iterator[tuple[Row, Batch]]:
        """Run this many steps, or fewer after a request to stop; yield each one's numbers and batch.

        At the end no step is in flight: `state` is that after the last row.
        """
        in_flight: deque[_Dispatched] = deque()
        remaining = steps
        while True:
            while remaining and not self.reason and len(in_flight) < _MAX_IN_FLIGHT:
                in_flight.append(self._dispatch())
                remaining -= 1
            if not in_flight:
                return
            oldest = in_flight.popleft()
            with contextlib.nullcontext() if self.vote.is_alone else waiting_for_others():
                row, vote = jax.device_get((oldest.row, oldest.vote))
            if vote is not None:
                self._agreed_reason = max(self._agreed_reason, Reason(int(vote)))
            yield {name: float(value) for name, value in row.items()}, oldest.batch

    def check(self) -> None:
        """Raise Stopped if any process was asked to stop; all processes must call it at the same point.

        A run that is out of time is not: it still evaluates.
        """
        self._agreed_reason = max(self._agreed_reason, Reason(self.vote.decide(self._stop.reason)))
        if self._agreed_reason > Reason.OUT_OF_TIME:
            raise Stopped(self._agreed_reason)

    def _own_reason(self) -> Reason:
        return self._stop.reason or (Reason.OUT_OF_TIME if self._is_out_of_time() else Reason.NONE)

    def _dispatch(self) -> _Dispatched:
        begin = time.perf_counter()
        batch = next(self._batches)
        if self._newest is None or self._newest.is_ready():  # otherwise the devices were busy meanwhile
            self._watch.add("waiting", time.perf_counter() - begin)
        on_device = put_batch(batch, self._mesh)
        vote = None if self.vote.is_alone else self.vote.propose(self._own_reason())
        canvas = batch.images.shape
        with contextlib.nullcontext() if canvas in self._canvases else self._watch.spend("compiling"):
            self.state, row = self._step(self.state, on_device, self._finite)
        self._canvases.add(canvas)
        self._newest = self._finite = row["finite"]
        return _Dispatched(batch, row, vote)
