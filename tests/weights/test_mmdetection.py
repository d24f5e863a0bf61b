"""The table of names equals the published checkpoints'; round trips are exact; mismatches are named."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.golden_models import NAMES, NUM_CLASSES, R50, golden_config, golden_manifest
from tests.goldens.weights import named_array
from tood_jax.build import build_model
from tood_jax.weights.mmdetection import (
    export_state_dict,
    from_torch_layout,
    import_state_dict,
    table,
    to_torch_layout,
)


@pytest.fixture(scope="module")
def state_dict():
    return {key: named_array(key, shape) for key, shape in golden_manifest(R50).items()}


@pytest.mark.parametrize("name", NAMES)
def test_table_equals_the_manifest_and_the_model(name):
    """Every tensor of the checkpoint has one place in the model, of its shape, and every place one tensor."""
    config, manifest = golden_config(name), golden_manifest(name)
    model = build_model(config, NUM_CLASSES)
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    ours = dict(jax.tree_util.tree_leaves_with_path(jax.eval_shape(model.init, jax.random.key(0), image)))
    shapes = {tuple(key.key for key in path): leaf.shape for path, leaf in ours.items()}
    entries = table(config)
    assert {entry.torch_name for entry in entries} == manifest.keys()
    assert len(entries) == len(manifest)
    assert {entry.path for entry in entries} == shapes.keys()
    for entry in entries:
        shape = shapes[entry.path] if entry.element is None else shapes[entry.path][1:]
        assert to_torch_layout(np.broadcast_to(np.float32(0), shape)).shape == manifest[entry.torch_name], entry


def test_round_trip_is_bit_exact(state_dict):
    config = golden_config(R50)
    returned = export_state_dict(import_state_dict(state_dict, config), config)
    assert returned.keys() == state_dict.keys()
    for name, value in state_dict.items():
        assert returned[name].dtype == value.dtype
        np.testing.assert_array_equal(returned[name], value, err_msg=name)


def test_layouts():
    kernel = np.arange(2 * 3 * 5 * 7).reshape(2, 3, 5, 7)  # OIHW
    ours = from_torch_layout(kernel)
    assert ours.shape == (5, 7, 3, 2)
    assert ours[4, 6, 2, 1] == kernel[1, 2, 4, 6]
    np.testing.assert_array_equal(to_torch_layout(ours), kernel)
    assert from_torch_layout(kernel[0, 0, 0]) is not None
    np.testing.assert_array_equal(from_torch_layout(kernel[0, 0, 0]), kernel[0, 0, 0])


def test_counters_are_ignored(state_dict):
    counters = {"backbone.bn1.num_batches_tracked": np.asarray(7)}
    variables = import_state_dict({**state_dict, **counters}, golden_config(R50))
    assert set(variables) == {"params", "batch_stats"}


def test_every_mismatch_is_named_from_both_sides(state_dict):
    wrong = {key: value for key, value in state_dict.items() if not key.startswith("bbox_head.tood_cls")}
    wrong["head.extra.weight"] = wrong["another.bias"] = np.zeros(1)
    with pytest.raises(ValueError, match="missing") as error:
        import_state_dict(wrong, golden_config(R50))
    for name in ("bbox_head.tood_cls.weight", "bbox_head.tood_cls.bias", "head.extra.weight", "another.bias"):
        assert name in str(error.value)
