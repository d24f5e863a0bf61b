"""Runs that end before their plan: by train.patience and train.max_hours."""

import json
import math

import jax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.runs import write_config
from tood_jax.api import training
from tood_jax.checkpoint.store import open_checkpoint
from tood_jax.config import TrainConfig, load_config_json
from tood_jax.data.synthetic import ShapesConfig, write_shapes
from tood_jax.distributed.signals import Reason
from tood_jax.training.early_end import EarlyEnd


class HoursOf:
    """A ledger of a run that has taken this long."""

    def __init__(self, hours):
        self._hours = hours

    def seconds(self):
        return 3600 * self._hours


def early_end(patience=2, hours=0.0, counts_after=0, state=None, **fields):
    return EarlyEnd(TrainConfig(patience=patience, **fields), HoursOf(hours), counts_after, state)


def test_a_run_ends_after_evaluations_that_are_not_better():
    end = early_end(best="AP50", counts_after=1)
    for step, value, is_over in [
        (1, 0.9, False),
        (2, 0.3, False),
        (3, 0.3, False),
        (4, 0.4, False),
        (5, 0.2, False),
        (6, 0.4, True),
    ]:
        metrics = {"AP50": value, "AP": float(step)}
        assert end.would_end_after(step, metrics) is is_over
        end.count(step, metrics)
        assert end.is_out_of_patience is is_over
    assert end.describe() == "no better AP50 than 40.0 (step 4) in 2 evaluations (train.patience)"
    assert early_end(best="AP50", state=end.state).has_come()
    assert not early_end(patience=3, best="AP50", state=end.state).has_come()
    assert not early_end(patience=0, best="AP50", state=end.state).has_come()
    assert not early_end(state=end.state).has_come()  # counted by another metric


@given(
    st.lists(st.sampled_from([None, math.nan, 0.0, 0.1, 0.2, 0.3]), max_size=12), st.integers(0, 11), st.integers(0, 5)
)
def test_the_count_starts_anew_at_each_best_value_and_survives_checkpoints(values, stop, counts_after):
    end = early_end(counts_after=counts_after)
    for step, value in enumerate(values, 1):
        if step == stop:
            end = early_end(counts_after=counts_after, state=json.loads(json.dumps(end.state)))
        end.count(step, {"AP": value})
    counted = list(enumerate(values, 1))[counts_after:]
    finite = [(step, value) for step, value in counted if value is not None and math.isfinite(value)]
    best = max(finite, key=lambda pair: pair[1], default=(counts_after, None))
    assert end.state["best"] == best[1]
    assert end.state["evaluations"] == max(0, len(values) - best[0])


def test_time_is_counted_only_with_a_limit():
    assert not early_end(hours=1e6).has_come()
    assert not early_end(hours=1.9, max_hours=2.0).has_come()
    end = early_end(hours=2.0, max_hours=2.0)
    assert end.has_come()
    assert end.describe() == "it has run for 2 hours (train.max_hours)"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shapes") / "set"
    write_shapes(folder, ShapesConfig(train_images=8, val_images=3, height=(64, 64), width=(64, 64), seed=3))
    return folder


@pytest.mark.slow
def test_a_run_without_progress_ends_and_goes_on_with_a_higher_limit(data, tmp_path, capsys):
    """At a rate of almost 0 no evaluation is better than the first one after the warm-up."""

    def run(**train):
        path = write_config(data, tmp_path / "run", learning_rate=1e-12, epochs=9, eval_every_epochs=1, **train)
        reports = []
        outcome = training.train(
            load_config_json(path), devices=[jax.devices()[0]], write_reports=lambda *given: reports.append(given[:4:3])
        )
        assert outcome.stopped is Reason.NONE
        return outcome, reports, capsys.readouterr().out

    outcome, reports, told = run(max_hours=1e-9)
    assert outcome.step == reports[-1][0] < 4
    assert reports == [(outcome.step, True)]
    assert f"The run ends at step {outcome.step} of 18: it has run for 1e-09 hours (train.max_hours)." in told
    again, reports, told = run(max_hours=1e-9)
    assert (again.step, again.metrics, reports) == (outcome.step, outcome.metrics, [])
    assert "has ended at step" in told

    outcome, reports, told = run(patience=2)  # two steps an epoch, one epoch of warm-up
    assert outcome.step == 8
    assert reports == [(2, False), (4, False), (6, False), (8, True)][-len(reports) :]
    assert "The run ends at step 8 of 18: no better AP than" in told
    assert open_checkpoint(tmp_path / "run", "latest").about["early_end"]["evaluations"] == 2
    again, reports, told = run(patience=2)
    assert (again.step, again.metrics, reports) == (8, outcome.metrics, [])
    assert "Raise that limit to train on." in told
    outcome, _, _ = run(patience=3)
    assert outcome.step == 10
