"""compare_torch.py on a small TOOD with deformable convolutions: equal weights agree, and changed ones are found."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tood_jax.config import BackboneConfig, Config, HeadConfig, NeckConfig, save_config
from tood_jax.tools.compare_torch import main as compare_torch
from tood_jax.tools.compare_torch.differences import SINGLE, difference
from tood_jax.tools.compare_torch.torch_implementation import ReferenceNetwork, TorchImplementation
from tood_jax.weights.files import write_weights

pytestmark = pytest.mark.torch

ROOT = Path(__file__).resolve().parents[3]
SMALL = Config(
    name="small",
    backbone=BackboneConfig(depth=50, width=8, deformable_stages=(3,)),
    neck=NeckConfig(channels=32),
    head=HeadConfig(channels=32, num_convs=2, norm_groups=8, deformable_convs=1),
)
ARGS = compare_torch.Args(height=64, width=96, num_classes=5, steps=2)


@pytest.fixture(scope="module")
def implementations():
    """(this package, the peer, their weights, a batch)."""
    weights = compare_torch.load_weights(ARGS, SMALL)
    own, peer = compare_torch.make_implementations(ARGS, SMALL, weights)
    return own, peer, weights, compare_torch.example_batch(2, 64, 96, 5, seed=0)


def test_everything_is_within_tolerance(implementations, monkeypatch, capsys):
    own, peer, _, _ = implementations
    monkeypatch.setattr(compare_torch, "make_implementations", lambda *_: (own, peer))
    found = compare_torch.compare(ARGS, SMALL)
    assert [row for row in found if not row.within] == []
    groups = {row.group for row in found}
    assert groups == {"maps", "detections"} | {
        f"{what} {phase}" for what in ("losses", "gradients", "trajectory") for phase in ("atss", "tal")
    }
    trained = sum(value.requires_grad for value in peer.network.module.parameters())
    names = [row.name for row in found if row.group == "gradients tal" and "frozen" not in row.name]
    assert len(names) == trained + 1
    assert names[-1] == "all together"
    assert any("layer3.0.conv2.conv_offset.weight" in row.name for row in found)
    text = capsys.readouterr().out
    for part in ("boxes P7", "Image 1:", "Phase tal:", "0 of 258 differ", "Trajectory of SGD in phase atss"):
        assert part in text


def test_a_trajectory_does_not_change_the_weights(implementations):
    own, peer, weights, batch = implementations
    for implementation in (own, peer):
        before = implementation.losses_and_gradients(batch, True).losses
        rows = implementation.trajectory([batch, batch], True)
        assert rows[0].sum() != rows[1].sum()
        after = implementation.losses_and_gradients(batch, True).losses
        for part in before:
            np.testing.assert_array_equal(before[part], after[part])
    for name, tensor in peer.network.module.state_dict().items():
        if name in weights.state_dict:
            np.testing.assert_array_equal(tensor, weights.state_dict[name])


@pytest.mark.parametrize(
    ("tensor", "first"), [("neck.fpn_convs.1.conv.weight", "P4"), ("bbox_head.scales.2.scale", "boxes P5")]
)
def test_a_changed_weight_is_found_where_it_is_used(implementations, tensor, first):
    own, _, weights, batch = implementations
    changed = {**weights.state_dict, tensor: weights.state_dict[tensor] * np.float32(1.01)}
    peer = TorchImplementation("changed", ReferenceNetwork(SMALL, 5), changed, SMALL, 1e-4)
    a, b = own.forward(batch).maps, peer.forward(batch).maps
    found = [difference("maps", name, a[name], b[name], SINGLE.maps) for name in b]
    assert next(row.name for row in found if not row.within) == first


def test_both_assign_the_same_locations_and_none_in_the_padding(implementations):
    """The second image is smaller than the canvas, so some locations are ignored in both."""
    own, peer, _, batch = implementations
    for in_tal_phase in (False, True):
        a, b = (
            own.losses_and_gradients(batch, in_tal_phase).gt_index,
            peer.losses_and_gradients(batch, in_tal_phase).gt_index,
        )
        np.testing.assert_array_equal(a, b)
        assert (a[1].reshape(-1)[: 8 * 12].reshape(8, 12)[:, 9:] == -1).all()
        assert (a >= 0).any(axis=1).all()


def test_weights_of_a_file_reach_the_peer_unchanged(implementations, tmp_path):
    made = implementations[2]
    counter = {"backbone.bn1.num_batches_tracked": np.asarray(7, np.int64)}
    write_weights(tmp_path / "x.pth", {**made.state_dict, **counter}, tuple("abcde"), {})
    args = dataclasses.replace(ARGS, checkpoint=str(tmp_path / "x.pth"))
    read = compare_torch.load_weights(args, SMALL)
    assert (read.num_classes, read.class_names) == (5, tuple("abcde"))
    assert read.state_dict.keys() == made.state_dict.keys()
    for name, array in made.state_dict.items():
        np.testing.assert_array_equal(read.state_dict[name], array)
    np.testing.assert_array_equal(
        read.variables["params"]["backbone"]["conv1"]["kernel"],
        made.state_dict["backbone.conv1.weight"].transpose(2, 3, 1, 0),
    )


def run(tmp_path, *options):
    save_config(SMALL, tmp_path / "small.json")
    words = ["--config", str(tmp_path / "small.json"), "--height=64", "--width=96", "--num_classes=5", *options]
    return subprocess.run(
        [sys.executable, str(ROOT / "compare_torch.py"), *words],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_missing_mmdetection_is_one_sentence(tmp_path):
    done = run(tmp_path, "--peer=mmdet")
    assert done.returncode == 1
    assert done.stderr.startswith("compare_torch.py: --peer mmdet needs mmdetection 3.x")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.slow
@pytest.mark.parametrize(("options", "status"), [((), 0), (("--maps_tolerance=1e-18",), 1)])
def test_double_precision_has_almost_no_differences_and_the_exit_status_shows_them(tmp_path, options, status):
    done = run(tmp_path, "--precision=double", "--steps=1", "--json", str(tmp_path / "out.json"), *options)
    assert done.returncode == status, done.stdout + done.stderr
    last = done.stdout.splitlines()[-1]
    assert ("All " in last and "within tolerance" in last) == (status == 0)
    assert ("exceed their tolerance" in last) == (status == 1)
    rows = json.loads((tmp_path / "out.json").read_text())["differences"]
    assert max(row["relative"] for row in rows if row["group"] == "maps") < 1e-13
    assert max(row["relative"] for row in rows) < 1e-8


def test_missing_torch_is_one_sentence(monkeypatch):
    monkeypatch.setattr(compare_torch.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(compare_torch.ConfigError, match=r"needs PyTorch: pip install 'torch>=2.6'"):
        compare_torch.compare(ARGS, SMALL)
