"""compare_torch.py on a small TOOD with deformable convolutions: it agrees, and it finds what is made to differ."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tood_jax.cli import compare_torch
from tood_jax.config import BackboneConfig, Config, HeadConfig, NeckConfig, save_config
from tood_jax.torch_reference.comparison.differences import SINGLE, difference
from tood_jax.torch_reference.comparison.plain_torch import PlainTorch, TorchSide
from tood_jax.weights.files import write_weights

pytestmark = pytest.mark.torch

ROOT = Path(__file__).resolve().parent.parent.parent
SMALL = Config(
    name="small",
    backbone=BackboneConfig(depth=50, width=8, deformable_stages=(3,)),
    neck=NeckConfig(channels=32),
    head=HeadConfig(channels=32, num_convs=2, norm_groups=8, deformable_convs=1),
)
ARGS = compare_torch.Args(height=64, width=96, num_classes=5, steps=2)


@pytest.fixture(scope="module")
def sides():
    """(ours, the peer, their weights, a batch)."""
    weights = compare_torch.load_weights(ARGS, SMALL)
    ours, peer = compare_torch.make_sides(ARGS, SMALL, weights)
    return ours, peer, weights, compare_torch.made_batch(2, 64, 96, 5, seed=0)


def test_everything_is_within_tolerance(sides, monkeypatch, capsys):
    ours, peer, _, _ = sides
    monkeypatch.setattr(compare_torch, "make_sides", lambda *_: (ours, peer))
    found = compare_torch.compare(ARGS, SMALL)
    assert [one for one in found if not one.within] == []
    groups = {one.group for one in found}
    assert groups == {"maps", "detections"} | {
        f"{what} {phase}" for what in ("losses", "gradients", "trajectory") for phase in ("atss", "tal")
    }
    trained = sum(value.requires_grad for value in peer.network.module.parameters())
    names = [one.name for one in found if one.group == "gradients tal" and "frozen" not in one.name]
    assert len(names) == trained + 1
    assert names[-1] == "all together"
    assert any("layer3.0.conv2.conv_offset.weight" in one.name for one in found)
    text = capsys.readouterr().out
    for part in ("boxes P7", "Image 1:", "Phase tal:", "0 of 258 another one", "Trajectory of SGD in phase atss"):
        assert part in text


def test_a_trajectory_leaves_the_weights_as_they_were(sides):
    ours, peer, weights, batch = sides
    for side in (ours, peer):
        before = side.learn(batch, True).losses
        rows = side.trajectory([batch, batch], True)
        assert rows[0].sum() != rows[1].sum()
        after = side.learn(batch, True).losses
        for part in before:
            np.testing.assert_array_equal(before[part], after[part])
    for name, tensor in peer.network.module.state_dict().items():
        if name in weights.theirs:
            np.testing.assert_array_equal(tensor, weights.theirs[name])


@pytest.mark.parametrize(
    ("tensor", "first"), [("neck.fpn_convs.1.conv.weight", "P4"), ("bbox_head.scales.2.scale", "boxes P5")]
)
def test_another_weight_shows_where_it_is_used_and_not_before(sides, tensor, first):
    ours, _, weights, batch = sides
    spoilt = {**weights.theirs, tensor: weights.theirs[tensor] * np.float32(1.01)}
    peer = TorchSide("spoilt", PlainTorch(SMALL, 5), spoilt, SMALL, 1e-4)
    a, b = ours.forward(batch).maps, peer.forward(batch).maps
    found = [difference("maps", name, a[name], b[name], SINGLE.maps) for name in b]
    assert next(one.name for one in found if not one.within) == first


def test_a_peer_without_objects_in_its_padding_agrees_on_the_cells(sides):
    """The second image is smaller than the canvas, so some cells count for nothing on either side."""
    ours, peer, _, batch = sides
    for aligned in (False, True):
        a, b = ours.learn(batch, aligned).gt_index, peer.learn(batch, aligned).gt_index
        np.testing.assert_array_equal(a, b)
        assert (a[1].reshape(-1)[: 8 * 12].reshape(8, 12)[:, 9:] == -1).all()
        assert (a >= 0).any(axis=1).all()


def test_weights_of_a_file_reach_the_peer_as_they_are(sides, tmp_path):
    made = sides[2]
    counter = {"backbone.bn1.num_batches_tracked": np.asarray(7, np.int64)}
    write_weights(tmp_path / "x.pth", {**made.theirs, **counter}, tuple("abcde"), {})
    args = dataclasses.replace(ARGS, checkpoint=str(tmp_path / "x.pth"))
    read = compare_torch.load_weights(args, SMALL)
    assert (read.num_classes, read.class_names) == (5, tuple("abcde"))
    assert read.theirs.keys() == made.theirs.keys()
    for name, array in made.theirs.items():
        np.testing.assert_array_equal(read.theirs[name], array)
    np.testing.assert_array_equal(
        read.ours["params"]["backbone"]["conv1"]["kernel"], made.theirs["backbone.conv1.weight"].transpose(2, 3, 1, 0)
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


def test_without_mmdetection_one_sentence_says_so(tmp_path):
    done = run(tmp_path, "--peer=mmdet")
    assert done.returncode == 1
    assert done.stderr.startswith("compare_torch.py: --peer mmdet needs mmdetection 3.x")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.slow
@pytest.mark.parametrize(("options", "status"), [((), 0), (("--maps_tolerance=1e-18",), 1)])
def test_double_precision_leaves_no_rounding_and_the_exit_status_tells(tmp_path, options, status):
    done = run(tmp_path, "--precision=double", "--steps=1", "--json", str(tmp_path / "out.json"), *options)
    assert done.returncode == status, done.stdout + done.stderr
    last = done.stdout.splitlines()[-1]
    assert ("All " in last and "within tolerance" in last) == (status == 0)
    assert ("exceed their tolerance" in last) == (status == 1)
    rows = json.loads((tmp_path / "out.json").read_text())["differences"]
    assert max(row["relative"] for row in rows if row["group"] == "maps") < 1e-13
    assert max(row["relative"] for row in rows) < 1e-8


def test_torch_is_asked_for_in_one_sentence(monkeypatch):
    monkeypatch.setattr(compare_torch.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(compare_torch.ConfigError, match=r"needs PyTorch: pip install 'tood_jax\[torch\]'"):
        compare_torch.compare(ARGS, SMALL)
