"""What a run starts with: whole detectors, backbones, other classes, and what is said of it."""

import dataclasses
from functools import partial

import jax
import numpy as np
import pytest

from tests.golden_models import R50, golden_config
from tests.weights.made import (
    SMALL,
    assert_same,
    imagenet_file,
    published_state_dict,
    shapes_of,
    small_state_dict,
    with_backbone,
)
from tood_jax.build import build_model
from tood_jax.config import DataConfig
from tood_jax.training.checkpoint_files import named_leaves, nest
from tood_jax.training.state import init_variables
from tood_jax.weights.files import WeightsFile, write_weights
from tood_jax.weights.load import fit, start_from
from tood_jax.weights.mapping import WeightsError
from tood_jax.weights.naming import authors_name
from tood_jax.weights.shapes import variable_shapes

NAMES = ("a", "b", "c", "d")
CLASSIFIER = {"params/head/cls_logits/kernel", "params/head/cls_logits/bias"}


def source(tensors, names=None):
    return WeightsFile(tensors, names, {})


@pytest.fixture(scope="module")
def fresh():
    return init_variables(build_model(SMALL, len(NAMES)), seed=5)


def blank(config, num_classes):
    """(params, batch_stats) of zeros."""
    shapes = variable_shapes(build_model(config, num_classes))
    trees = nest({name: np.zeros(shape, np.float32) for name, shape in shapes.items()})
    return trees["params"], trees["batch_stats"]


def start(path, fresh, config=SMALL, names=NAMES):
    """(ours before, ours after, what was said) of a run that begins with a file."""
    said = []
    begin = start_from(str(path), config, partial(build_model, config), names, said.append)
    params, batch_stats = begin(*fresh)
    assert jax.tree.structure((params, batch_stats)) == jax.tree.structure(fresh)
    before, after = (
        {name: np.asarray(leaf) for name, leaf in named_leaves({"params": p, "batch_stats": b}).items()}
        for p, b in (fresh, (params, batch_stats))
    )
    assert {name: leaf.dtype for name, leaf in after.items()} == {name: leaf.dtype for name, leaf in before.items()}
    return before, after, said


def kept(before, after):
    """Names of ours that are as before."""
    return {name for name in before if np.array_equal(before[name], after[name])}


@pytest.fixture(scope="module")
def file_of(tmp_path_factory):
    """Writes tensors to a file of this name."""

    def write(tensors, class_names=None, name="x.safetensors"):
        path = tmp_path_factory.mktemp("files") / name
        write_weights(path, tensors, class_names, {})
        return path

    return write


def test_a_whole_detector(fresh, file_of):
    before, after, said = start(file_of(small_state_dict()), fresh)
    assert kept(before, after) == set()
    assert_same(after, fit(source(small_state_dict()), "x", SMALL, shapes_of(SMALL)).tensors)
    assert len(said) == 1
    assert f"Loaded {len(before)} of {len(before)} tensors" in said[0]
    assert said[0].endswith(": backbone, neck and head.")


def test_the_authors_names_load_the_same(fresh, file_of):
    renamed = {authors_name(name): array for name, array in small_state_dict().items()}
    assert renamed.keys() != small_state_dict().keys()
    _, ours, _ = start(file_of(small_state_dict()), fresh)
    _, theirs, _ = start(file_of(renamed), fresh)
    assert_same(theirs, ours)


@pytest.mark.parametrize(
    ("count", "there", "anew"),
    [
        (7, None, True),  # another number
        (4, None, False),  # as many, and the file doesn't name them
        (4, NAMES, False),
        (4, ("a", "b", "d", "c"), True),  # as many, but others
    ],
)
def test_the_classifier_is_replaced_where_classes_differ(fresh, file_of, count, there, anew):
    before, after, said = start(file_of(small_state_dict(count), there), fresh)
    assert kept(before, after) == (CLASSIFIER if anew else set())
    assert ("but not the classifier" in said[0]) == anew
    if anew:
        named = "4 classes: a, b, d, c there" if there else "7 classes there"
        assert f"({named}, 4 classes: a, b, c, d here)" in said[0]
        assert f"Loaded {len(before) - 2} of {len(before)}" in said[0]


def test_a_backbone_alone(fresh, file_of):
    before, after, said = start(file_of(imagenet_file(small_state_dict())), fresh)
    assert kept(before, after) == {name for name in before if "/backbone/" not in name}
    assert "the whole backbone; the neck and the head start anew." in said[0]
    assert "Not used of the file: fc.bias, fc.weight." in said[0]


def test_a_backbone_of_mmpretrain(fresh, file_of):
    backbone = {name: array for name, array in small_state_dict().items() if name.startswith("backbone.")}
    _, after, _ = start(file_of({**backbone, "head.fc.weight": np.ones((3, 4), np.float32)}), fresh)
    _, expected, _ = start(file_of(imagenet_file(small_state_dict())), fresh)
    assert_same(after, expected)


def test_notes_are_said(fresh, file_of):
    config = dataclasses.replace(SMALL, data=DataConfig(pixel_std=(1.0, 1.0, 1.0)))
    _, _, said = start(file_of(small_state_dict()), fresh, config)
    assert said[1].startswith("Note: the backbone of ")


def test_the_published_model_on_another_set(file_of):
    """R50 of 80 classes for a set of three: all but the classifier."""
    config = golden_config(R50)
    fresh = blank(config, 3)
    before, after, said = start(file_of(published_state_dict(R50)), fresh, config, ("x", "y", "z"))
    assert set(after) - {name for name in before if not np.array_equal(before[name], after[name])} == CLASSIFIER
    assert "80 classes there, 3 classes: x, y, z here" in said[0]


def test_all_else_must_match(fresh, file_of):
    wrong = small_state_dict(7)
    del wrong["neck.fpn_convs.4.conv.bias"]
    wrong["bbox_head.tood_reg.weight"] = wrong["bbox_head.tood_reg.weight"][:, :8]
    with pytest.raises(WeightsError) as error:
        start(file_of(wrong), fresh)
    lines = [line.strip() for line in str(error.value).splitlines()[1:]]
    assert lines == [
        "missing: neck.fpn_convs.4.conv.bias [16]",
        "ill-shaped: bbox_head.tood_reg.weight is [4, 8, 3, 3], should be [4, 16, 3, 3]",
    ]


def test_a_broken_backbone_is_no_backbone(fresh, file_of):
    broken = imagenet_file(small_state_dict())
    del broken["layer4.1.bn2.bias"]
    with pytest.raises(WeightsError, match=r"missing: layer4\.1\.bn2\.bias"):
        start(file_of(broken), fresh)


def test_offsets_of_deformable_convolutions_may_start_anew(file_of):
    """An ImageNet backbone has none; a detector must."""
    config = with_backbone(SMALL, depth=50, deformable_stages=(4,))
    plain = small_state_dict(config=with_backbone(SMALL, depth=50))
    fresh = blank(config, 4)
    before, after, said = start(file_of(imagenet_file(plain)), fresh, config)
    offsets = {name for name in before if "/conv_offset/" in name}
    assert len(offsets) == 6
    assert offsets <= kept(before, after)
    assert "the whole backbone but params/backbone/layer4_0/conv2/conv_offset/" in said[0]
    with pytest.raises(WeightsError, match=r"missing: backbone\.layer4\.2\.conv2\.conv_offset\.bias \[27\]"):
        start(file_of(plain), fresh, config)


def test_group_norm_backbones_do_not_take_batch_norm(fresh):
    config = with_backbone(SMALL, norm="group", width=16)
    with pytest.raises(WeightsError, match=r"missing: gn1\.weight \[16\](.|\n)*unexpected: bn1\.weight \[8\]"):
        fit(source(imagenet_file(small_state_dict())), "x", config, shapes_of(config))
