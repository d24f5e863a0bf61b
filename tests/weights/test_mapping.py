"""Round trips are exact, and one error lists every mismatch."""

import numpy as np
import pytest

from tests.golden_models import R50, X101, golden_config
from tests.weights.example_weights import (
    SMALL,
    assert_same,
    imagenet_file,
    published_state_dict,
    shapes_of,
    small_state_dict,
    with_backbone,
)
from tood_jax.weights.mapping import (
    WeightsError,
    export_state_dict,
    export_tensors,
    from_torch_layout,
    import_state_dict,
    import_tensors,
    to_torch_layout,
)
from tood_jax.weights.naming import batch_norm_counters, is_ignored, naming_of


def without_counters(state_dict):
    return {name: array for name, array in state_dict.items() if not name.endswith("num_batches_tracked")}


@pytest.mark.parametrize("name", [R50, X101])
def test_round_trip_of_published_names(name):
    config, state_dict = golden_config(name), published_state_dict(name)
    assert_same(export_state_dict(import_state_dict(state_dict, config), config), state_dict)


@pytest.mark.parametrize("kind", ["mmdetection", "authors", "torchvision", "flax"])
def test_round_trip_of_every_kind(kind):
    shapes = shapes_of(SMALL)
    variables = import_tensors(
        without_counters(small_state_dict()),
        naming_of("mmdetection", SMALL, shapes.one_class),
        shapes.with_classes(4),
        "x",
    )
    naming = naming_of(kind, SMALL, shapes.one_class)
    file = export_tensors(variables, naming)
    back = import_tensors(file, naming, shapes.with_classes(4), "x")
    assert_same(back, {name: variables[name] for name in back})
    assert len(back) == (len(variables) if kind != "torchvision" else sum("/backbone/" in name for name in variables))


@pytest.mark.parametrize("name", [R50, X101])
def test_round_trip_of_an_imagenet_backbone(name):
    config = golden_config(name)
    file = {k: v for k, v in imagenet_file(published_state_dict(name)).items() if not is_ignored(k)}
    naming = naming_of("torchvision", config, shapes_of(config).one_class)
    variables = import_tensors(file, naming, shapes_of(config).one_class, "x")
    assert_same(export_tensors(variables, naming), file)
    assert file.keys() >= {"conv1.weight", "bn1.running_var", "layer1.0.downsample.1.bias", "layer3.5.bn3.weight"}


def test_the_authors_names():
    naming = naming_of("authors", SMALL, shapes_of(SMALL).one_class)
    names = {entry.torch_name for entry in naming.entries}
    for end in ("weight", "bias"):
        for task in ("cls", "reg"):
            assert {f"bbox_head.{task}_decomp.la_conv1.{end}", f"bbox_head.{task}_decomp.la_conv2.{end}"} <= names
        for module in ("cls_prob_conv1", "cls_prob_conv2", "reg_offset_conv1", "reg_offset_conv2"):
            assert f"bbox_head.{module}.{end}" in names
    assert not any("layer_attention" in name or "_module" in name for name in names)


def test_layouts():
    kernel = np.arange(2 * 3 * 5 * 7).reshape(2, 3, 5, 7)  # OIHW
    variables = from_torch_layout(kernel)
    assert variables.shape == (5, 7, 3, 2)
    assert variables[4, 6, 2, 1] == kernel[1, 2, 4, 6]
    np.testing.assert_array_equal(to_torch_layout(variables), kernel)
    np.testing.assert_array_equal(from_torch_layout(kernel[0, 0, 0]), kernel[0, 0, 0])


def test_every_counter_of_a_torch_file_is_written():
    state_dict = small_state_dict()
    naming = naming_of("mmdetection", SMALL, shapes_of(SMALL).one_class)
    assert set(batch_norm_counters(naming)) == state_dict.keys() - without_counters(state_dict).keys()


def test_counters_are_ignored():
    assert set(import_state_dict(small_state_dict(), SMALL)) == {"params", "batch_stats"}


def test_one_error_lists_every_mismatch():
    wrong = without_counters(small_state_dict())
    wrong = {name: array for name, array in wrong.items() if not name.startswith("bbox_head.tood_reg")}
    del wrong["bbox_head.scales.3.scale"]
    wrong["head.extra.weight"] = np.zeros((1, 2))
    wrong["backbone.conv1.weight"] = np.zeros((8, 4, 7, 7), np.float32)
    wrong["bbox_head.scales.0.scale"] = np.zeros(1, np.float32)
    shapes = shapes_of(SMALL)
    with pytest.raises(WeightsError) as error:
        import_tensors(wrong, naming_of("mmdetection", SMALL, shapes.one_class), shapes.with_classes(4), "tood.pth")
    lines = str(error.value).splitlines()
    assert lines[0] == "tood.pth: 6 tensors don't fit the config's model:"
    assert {line.strip() for line in lines[1:]} == {
        "missing: bbox_head.tood_reg.weight [4, 16, 3, 3]",
        "missing: bbox_head.tood_reg.bias [4]",
        "missing: bbox_head.scales.3.scale []",
        "unexpected: head.extra.weight [1, 2]",
        "wrong shape: backbone.conv1.weight is [8, 4, 7, 7], should be [8, 3, 7, 7]",
        "wrong shape: bbox_head.scales.0.scale is [1], should be []",
    }


def test_a_backbone_of_another_depth_lists_all_differences():
    small, shapes = without_counters(small_state_dict()), shapes_of(with_backbone(SMALL, depth=34))
    naming = naming_of("mmdetection", with_backbone(SMALL, depth=34), shapes.one_class)
    with pytest.raises(WeightsError) as error:
        import_tensors(small, naming, shapes.with_classes(4), "x")
    missing = {entry.torch_name for entry in naming.entries} - small.keys()
    assert len(missing) == 80  # 8 blocks of 2 convolutions with their norms
    assert all(f"missing: {name} [" in str(error.value) for name in missing)
