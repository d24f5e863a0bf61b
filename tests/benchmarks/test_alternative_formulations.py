"""Other formulations: they agree with the product's, and a difference ends the command."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.cases import alternative_formulations
from benchmarks.cases.alternative_formulations import DETECTIONS, IOU, nms_by_tiles
from benchmarks.harness.inputs import random_nms_candidates
from tests.benchmarks.timings import check_timing
from tood_jax.postprocess import nms

SIZE = ("--batch=1", "--height=128", "--width=160")


def test_all_ways_agree_and_are_timed(measured, capsys):
    report = measured(alternative_formulations, *SIZE)
    ways = {(row["work"], row["way"]) for row in report["results"]}
    assert len(ways) == len(report["results"]) == 16
    for row in report["results"]:
        check_timing(row)
    assert "| sampling " in capsys.readouterr().out


def test_a_way_that_differs_ends_the_command(measured, monkeypatch):
    monkeypatch.setattr(alternative_formulations, "stem_by_reshapes", lambda x, kernel: jnp.zeros((1, 64, 80, 64)))
    with pytest.raises(SystemExit, match="space to depth by reshapes and 7×7, stride 2 differ"):
        measured(alternative_formulations, *SIZE)


@given(st.integers(0, 1000), st.sampled_from([0.1, 0.5, 0.9]))
def test_tiles_keep_what_rounds_keep(seed, threshold):
    boxes, scores, labels = random_nms_candidates(300, objects=5, classes=3, seed=seed)
    scores = np.where(scores > threshold, scores, 0)
    np.testing.assert_array_equal(TILES(boxes, scores, labels), ROUNDS(boxes, scores, labels))


TILES = jax.jit(nms_by_tiles)
ROUNDS = jax.jit(lambda *one: nms(*one, iou_threshold=IOU, max_detections=DETECTIONS))
