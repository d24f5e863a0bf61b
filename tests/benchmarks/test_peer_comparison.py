"""The comparison of tood_jax with its peers."""

import jax.numpy as jnp
import pytest

from benchmarks.cases import peer_comparison
from benchmarks.harness.options import read_options_and_config, with_default_config
from benchmarks.peers.inputs import random_inputs
from benchmarks.peers.protocol import STEP_PARTS
from benchmarks.peers.step_part_inputs import norm_inputs
from tests.benchmarks.timings import CANVAS, PROGRAM_FIELDS, check_timing


@pytest.mark.torch
def test_tood_jax_beside_plain_torch(measured, capsys):
    network = ("--backbone.width=8", "--backbone.width_per_group=8", "--neck.channels=16", "--head.channels=16")
    network += ("--head.num_convs=1", "--head.norm_groups=4")
    work = (*CANVAS, "--objects=3", "--candidates=100", "--peers", "torch eager")
    *rows, own, peer = measured(peer_comparison, *network, *work)["results"]
    parts = rows[-2 * len(STEP_PARTS) :]
    for together, of_side in ((own, parts[::2]), (peer, parts[1::2])):
        assert together["row"] == peer_comparison.PARTS_TOGETHER
        assert together["median_seconds"] == pytest.approx(sum(row["median_seconds"] for row in of_side))
    assert peer["over_ours"] == pytest.approx(peer["median_seconds"] / own["median_seconds"])
    assert [row["side"] for row in rows] == 11 * ["tood_jax", "torch eager"]
    for own, peer in zip(rows[::2], rows[1::2], strict=True):
        assert own["row"] == peer["row"]
        for row in (own, peer):
            check_timing(row)
            assert row["first_run_seconds"] > 0
            assert row["grown_bytes"] >= 0
            assert row["over_ours"] == pytest.approx(row["median_seconds"] / own["median_seconds"])
        assert own["program"].keys() == PROGRAM_FIELDS
    assert "torch eager" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="caffe must be among torch eager"):
        peer_comparison.main(["--peers=caffe"])


def test_every_norm_of_the_network_has_inputs():
    argv = [*CANVAS, "--backbone.width=8", "--neck.channels=16", "--head.channels=16", "--head.norm_groups=4"]
    argv = with_default_config([*argv, "--head.num_convs=2", "--train.precision=bfloat16"])
    args, config = read_options_and_config(peer_comparison.Args, argv, "", "")
    norms = norm_inputs(random_inputs(args, config))
    of_head = [norm for norm in norms if norm.kind == "group"]
    assert len(of_head) == 4 * 5  # two of interactive layers, two of decompositions, in five levels
    assert len(norms) - len(of_head) == 53
    assert sum(not norm.is_trained for norm in norms) == 11  # the stem's and those of C2
    assert all(norm.values.dtype == norm.cotangent.dtype == jnp.bfloat16 for norm in norms)
