"""The learning-rate range test: where it ends, what it suggests, and the real program on a small set."""

import csv
import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tood_jax.cli.main import main
from tood_jax.config import save_config
from tood_jax.tools.learning_rates import smooth, suggest, until_it_diverges

RATES = np.geomspace(1e-5, 1.0, 101)


@given(st.lists(st.floats(0.1, 10), min_size=1, max_size=50))
def test_the_smoothed_loss_is_the_weighted_mean_of_all_before(losses):
    found = smooth(np.asarray(losses))
    for end in range(1, len(losses) + 1):
        weights = 0.9 ** np.arange(end)[::-1]
        assert found[end - 1] == pytest.approx(np.average(losses[:end], weights=weights))


@pytest.mark.parametrize("lowest", [40, 60, 80])
def test_a_tenth_of_the_rate_of_the_lowest_loss_is_suggested(lowest):
    smoothed = 1 + (np.arange(101) - lowest) ** 2 / 1000
    found = suggest(RATES, smoothed)
    assert found is not None
    assert found.rate == pytest.approx(RATES[lowest] / 10)
    assert (found.lowest, found.loss) == (pytest.approx(RATES[lowest]), 1.0)


@pytest.mark.parametrize("smoothed", [np.ones(101), np.linspace(1, 2, 101), np.ones(3), np.ones(0)])
def test_a_loss_that_does_not_fall_gives_no_suggestion(smoothed):
    assert suggest(RATES, smoothed) is None


def test_the_test_ends_where_the_loss_diverges():
    losses = [*[2.0] * 30, *[1.0] * 30, *[50.0] * 100]
    assert len(until_it_diverges(iter(losses))) == 61
    assert len(until_it_diverges(iter([*[2.0] * 30, np.nan, 2.0]))) == 30
    assert len(until_it_diverges(iter([2.0] * 40))) == 40
    assert len(until_it_diverges(iter([]))) == 0


@pytest.mark.slow
def test_the_program_writes_a_curve_and_prints_a_rate(trained, tmp_path, capsys):
    config = dataclasses.replace(trained.config, train=dataclasses.replace(trained.config.train, workdir=str(tmp_path)))
    save_config(config, tmp_path / "c.json")
    words = ["lr", "--config", str(tmp_path / "c.json"), "--steps=60", "--high=10"]
    main(words)
    output = capsys.readouterr().out
    with open(tmp_path / "lr" / "lr.csv", newline="") as file:
        rows = [*csv.DictReader(file)]
    assert 11 < len(rows) <= 60
    assert float(rows[0]["learning_rate"]) == pytest.approx(1e-5)
    batch_losses = [row["loss"] for row, _ in trained.steps]
    assert float(rows[0]["loss"]) == pytest.approx(batch_losses[0], rel=1e-4)  # that of the run's first batch
    assert "Suggested: --optimizer.learning_rate=" in output
    assert (tmp_path / "lr" / "lr.png").read_bytes().startswith(b"\x89PNG")
    main(words)  # replaces its own files
    (tmp_path / "lr" / "lr.csv").write_text("mine")
    for more, message in (
        ([], "was not written by this program"),
        (["--low=2", "--high=1"], "--low=2 must be below --high=1"),
    ):
        with pytest.raises(SystemExit):
            main([*words[:3], *more])
        assert message in capsys.readouterr().err
