"""Steps are dispatched one ahead, in order, and a non-finite one stops those behind it."""

import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.tiny import random_batch
from tood_jax.distributed.sharding import make_mesh
from tood_jax.distributed.signals import Reason, Stopped, StopRequest
from tood_jax.distributed.stop_vote import StopVote
from tood_jax.run_log.goodput import Stopwatch
from tood_jax.training.stepper import Stepper

BAD = 3  # the batch of this number gives a NaN


class Batches:
    """Batches whose image indices are their number."""

    def __init__(self):
        self.taken = 0
        self._batch = random_batch(2, side=32)

    def __iter__(self):
        return self

    def __next__(self):
        self.taken += 1
        return self._batch._replace(image_indices=np.full(2, self.taken - 1, np.int32))


@jax.jit
def step(state, batch, go):
    number = batch.image_indices[0]
    finite = (number != BAD) & (go > 0)
    return jnp.where(finite, state * 10 + number, state), {"number": number, "finite": finite.astype(jnp.float32)}


@pytest.fixture
def batches():
    return Batches()


@pytest.fixture
def stepper(batches):
    with StopRequest(lambda text: None) as stop:
        yield Stepper(step, jnp.asarray(0), batches, make_mesh(jax.devices()[:1]), stop, Stopwatch(0))


def test_rows_come_in_order_and_nothing_stays_in_flight(stepper, batches):
    numbers = []
    for row, batch in stepper.rows(2):
        numbers.append(row["number"])
        assert batch.image_indices[0] == row["number"]
        assert batches.taken == 2  # the second is dispatched before the first is read
    assert numbers == [0, 1]
    assert int(stepper.state) == 1
    assert [row["number"] for row, _ in stepper.rows(1)] == [2]
    assert batches.taken == 3
    assert int(stepper.state) == 12


def test_a_bad_step_stops_the_one_behind_it(stepper, batches):
    seen = []
    for row, batch in stepper.rows(10):
        seen.append((row["number"], row["finite"]))
        if not row["finite"]:
            assert batch.image_indices[0] == BAD
            break
    assert seen == [(0, 1), (1, 1), (2, 1), (BAD, 0)]
    assert batches.taken == BAD + 2
    assert int(stepper.state) == 12  # without batch 4, which was good


@pytest.mark.parametrize(("alone", "expected"), [(True, [0, 1]), (False, [0, 1, 2, 3])])
def test_a_request_to_stop_ends_it_after_what_is_in_flight(stepper, alone, expected):
    """Of several processes each puts its request to the vote with its next step, and reads all votes with that."""
    stepper.vote.is_alone = alone
    numbers = []
    for row, _ in stepper.rows(10):
        numbers.append(row["number"])
        if len(numbers) == 1:
            stepper.check()
            os.kill(os.getpid(), signal.SIGTERM)
    assert numbers == expected
    assert stepper.reason is Reason.PREEMPTION
    assert list(stepper.rows(10)) == []
    with pytest.raises(Stopped):
        stepper.check()


@pytest.mark.parametrize("space", [1, 2])
def test_the_largest_number_is_agreed_on(space):
    vote = StopVote(make_mesh(jax.devices(), space))
    assert vote.is_alone
    assert [int(vote.propose(number)) for number in (0, 2, 1)] == [0, 2, 1]
    assert [vote.decide(number) for number in (0, 2)] == [0, 2]
    text = vote.maximum.lower(jax.ShapeDtypeStruct((len(jax.devices()),), jnp.int32)).compile().as_text()
    assert text.count("all-reduce(") == 1
