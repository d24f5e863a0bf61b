"""What a run starts with: whole detectors, backbones, other classes, and what is messages of it."""

import dataclasses
from functools import partial

import jax
import numpy as np
import pytest

from tests.golden_models import R50, golden_config
from tests.weights.example_weights import (
    SMALL,
    assert_same,
    imagenet_file,
    published_state_dict,
    shapes_of,
    small_state_dict,
    with_backbone,
)
from tood_jax.checkpoint.reader import named_leaves, nest
from tood_jax.config import DataConfig
from tood_jax.models.build import build_model
from tood_jax.training.state import init_variables
from tood_jax.weights.files import WeightsFile, write_weights
from tood_jax.weights.load import fit_to_model, initial_weights
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
    """Load a file into fresh variables; return (variables before, variables after, messages)."""
    messages = []
    load = initial_weights(str(path), config, partial(build_model, config), names, messages.append)
    params, batch_stats = load(*fresh)
    assert jax.tree.structure((params, batch_stats)) == jax.tree.structure(fresh)
    before, after = (
        {name: np.asarray(leaf) for name, leaf in named_leaves({"params": p, "batch_stats": b}).items()}
        for p, b in (fresh, (params, batch_stats))
    )
    assert {name: leaf.dtype for name, leaf in after.items()} == {name: leaf.dtype for name, leaf in before.items()}
    return before, after, messages


def unchanged(before, after):
    """Names of the variables that are equal before and after."""
    return {name for name in before if np.array_equal(before[name], after[name])}


@pytest.fixture(scope="module")
def file_of(tmp_path_factory):
    """A function that writes tensors to a file."""

    def write(tensors, class_names=None, name="x.safetensors"):
        path = tmp_path_factory.mktemp("files") / name
        write_weights(path, tensors, class_names, {})
        return path

    return write


def test_a_whole_detector(fresh, file_of):
    before, after, messages = start(file_of(small_state_dict()), fresh)
    assert unchanged(before, after) == set()
    assert_same(after, fit_to_model(source(small_state_dict()), "x", SMALL, shapes_of(SMALL)).tensors)
    assert len(messages) == 1
    assert f"Loaded {len(before)} of {len(before)} tensors" in messages[0]
    assert messages[0].endswith(": backbone, neck and head.")


def test_the_authors_names_load_the_same(fresh, file_of):
    renamed = {authors_name(name): array for name, array in small_state_dict().items()}
    assert renamed.keys() != small_state_dict().keys()
    _, expected, _ = start(file_of(small_state_dict()), fresh)
    _, loaded, _ = start(file_of(renamed), fresh)
    assert_same(loaded, expected)


@pytest.mark.parametrize(
    ("count", "in_file", "replaced"),
    [
        (7, None, True),  # another number of classes
        (4, None, False),  # the file has no names
        (4, NAMES, False),
        (4, ("a", "b", "d", "c"), True),  # as many classes with other names
    ],
)
def test_the_classifier_is_replaced_where_classes_differ(fresh, file_of, count, in_file, replaced):
    before, after, messages = start(file_of(small_state_dict(count), in_file), fresh)
    assert unchanged(before, after) == (CLASSIFIER if replaced else set())
    assert ("but not the classifier" in messages[0]) == replaced
    if replaced:
        named = "4 classes: a, b, d, c" if in_file else "7 classes"
        assert f"({named} in the file, 4 classes: a, b, c, d in this run)" in messages[0]
        assert f"Loaded {len(before) - 2} of {len(before)}" in messages[0]


def test_a_backbone_alone(fresh, file_of):
    before, after, messages = start(file_of(imagenet_file(small_state_dict())), fresh)
    assert unchanged(before, after) == {name for name in before if "/backbone/" not in name}
    assert "the whole backbone; the neck and the head start with random weights." in messages[0]
    assert "Not used of the file: fc.bias, fc.weight." in messages[0]


def test_a_backbone_of_timm_by_its_name_equals_the_file(fresh, file_of, hub):
    """timm keeps torchvision's names; the classifier and the counters of BatchNorm are not used."""
    file = file_of(imagenet_file(small_state_dict()))
    commit = hub.add("timm/small.tv_in1k", {"model.safetensors": file.read_bytes(), "pytorch_model.bin": b""})
    _, expected, _ = start(file, fresh)
    _, loaded, messages = start("hf://timm/small.tv_in1k", fresh)
    assert_same(loaded, expected)
    assert f"revision {commit}" in messages[0]
    assert "from hf://timm/small.tv_in1k: the whole backbone" in messages[1]


def test_a_similar_name_of_a_backbone_is_suggested(fresh):
    with pytest.raises(WeightsError, match=r"There is no file resnet5. Did you mean resnet50\?"):
        start("resnet5", fresh)


def test_a_backbone_of_mmpretrain(fresh, file_of):
    backbone = {name: array for name, array in small_state_dict().items() if name.startswith("backbone.")}
    _, after, _ = start(file_of({**backbone, "head.fc.weight": np.ones((3, 4), np.float32)}), fresh)
    _, expected, _ = start(file_of(imagenet_file(small_state_dict())), fresh)
    assert_same(after, expected)


def test_notes_are_logged(fresh, file_of):
    config = dataclasses.replace(SMALL, data=DataConfig(pixel_std=(1.0, 1.0, 1.0)))
    _, _, messages = start(file_of(small_state_dict()), fresh, config)
    assert messages[1].startswith("Note: the backbone of ")


def test_the_published_model_on_another_set(file_of):
    """R50 of 80 classes for a set of three: all but the classifier."""
    config = golden_config(R50)
    fresh = blank(config, 3)
    before, after, messages = start(file_of(published_state_dict(R50)), fresh, config, ("x", "y", "z"))
    assert set(after) - {name for name in before if not np.array_equal(before[name], after[name])} == CLASSIFIER
    assert "80 classes in the file, 3 classes: x, y, z in this run" in messages[0]


def test_all_other_tensors_must_match(fresh, file_of):
    wrong = small_state_dict(7)
    del wrong["neck.fpn_convs.4.conv.bias"]
    wrong["bbox_head.tood_reg.weight"] = wrong["bbox_head.tood_reg.weight"][:, :8]
    with pytest.raises(WeightsError) as error:
        start(file_of(wrong), fresh)
    lines = [line.strip() for line in str(error.value).splitlines()[1:]]
    assert lines == [
        "missing: neck.fpn_convs.4.conv.bias [16]",
        "wrong shape: bbox_head.tood_reg.weight is [4, 8, 3, 3], should be [4, 16, 3, 3]",
    ]


def test_an_incomplete_backbone_is_refused(fresh, file_of):
    broken = imagenet_file(small_state_dict())
    del broken["layer4.1.bn2.bias"]
    with pytest.raises(WeightsError, match=r"missing: layer4\.1\.bn2\.bias"):
        start(file_of(broken), fresh)


def test_a_backbone_file_may_lack_the_offsets_of_deformable_convolutions(file_of):
    """An ImageNet backbone has none; a detector must."""
    config = with_backbone(SMALL, depth=50, deformable_stages=(4,))
    plain = small_state_dict(config=with_backbone(SMALL, depth=50))
    fresh = blank(config, 4)
    before, after, messages = start(file_of(imagenet_file(plain)), fresh, config)
    offsets = {name for name in before if "/conv_offset/" in name}
    assert len(offsets) == 6
    assert offsets <= unchanged(before, after)
    assert "the whole backbone except params/backbone/layer4_0/conv2/conv_offset/" in messages[0]
    with pytest.raises(WeightsError, match=r"missing: backbone\.layer4\.2\.conv2\.conv_offset\.bias \[27\]"):
        start(file_of(plain), fresh, config)


def test_group_norm_backbones_do_not_take_batch_norm(fresh):
    config = with_backbone(SMALL, norm="group", width=16)
    with pytest.raises(WeightsError, match=r"missing: gn1\.weight \[16\](.|\n)*unexpected: bn1\.weight \[8\]"):
        fit_to_model(source(imagenet_file(small_state_dict())), "x", config, shapes_of(config))
