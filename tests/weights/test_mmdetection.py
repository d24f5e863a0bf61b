"""The table of names matches the published checkpoints and the models."""

import numpy as np
import pytest

from tests.golden_models import FOLDER, NAMES, NUM_CLASSES, RIVALS, golden_config, golden_manifest
from tood_jax.config.files import load_config
from tood_jax.models.build import build_model
from tood_jax.weights.mapping import flax_name, to_torch_layout
from tood_jax.weights.mmdetection import tensor_table
from tood_jax.weights.shapes import variable_shapes

WITHOUT_NUMBERS = {  # manifest without golden numbers → config
    "tood_r101_fpn_ms-2x_coco": "tood_r101_fpn_ms_2x_coco",
    "tood_r101-dconv-c3-c5_fpn_ms-2x_coco": "tood_r101_fpn_dconv_c3_c5_ms_2x_coco",
    "tood_x101-64x4d-dconv-c4-c5_fpn_ms-2x_coco": "tood_x101_64x4d_fpn_dconv_c4_c5_ms_2x_coco",
}


@pytest.mark.parametrize("name", [*NAMES, *WITHOUT_NUMBERS, *RIVALS])
def test_table_equals_the_manifest_and_the_model(name):
    """Each tensor of a checkpoint is one variable of the model, with its shape, and there are no other variables."""
    if name in WITHOUT_NUMBERS:
        config = load_config(str(FOLDER.parents[1] / "configs" / f"{WITHOUT_NUMBERS[name]}.py"))
    else:
        config = golden_config(name)
    manifest = golden_manifest(name)
    shapes = variable_shapes(build_model(config, NUM_CLASSES))
    entries = tensor_table(config)
    assert {entry.torch_name for entry in entries} == manifest.keys()
    assert len(entries) == len(manifest)
    assert {flax_name(entry) for entry in entries} == shapes.keys()
    for entry in entries:
        shape = shapes[flax_name(entry)] if entry.element is None else shapes[flax_name(entry)][1:]
        assert to_torch_layout(np.broadcast_to(np.float32(0), shape)).shape == manifest[entry.torch_name], entry


def test_every_manifest_is_tested():
    names = {file.name.removesuffix(".manifest.json") for file in FOLDER.rglob("*.manifest.json")}
    assert names == {*NAMES, *WITHOUT_NUMBERS, *RIVALS}
