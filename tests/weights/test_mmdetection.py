"""The table of names equals the published checkpoints' and the models'."""

import numpy as np
import pytest

from tests.golden_models import FOLDER, NAMES, NUM_CLASSES, RIVALS, golden_config, golden_manifest
from tood_jax.build import build_model
from tood_jax.cli.options import load_config
from tood_jax.weights.mapping import name_of, to_torch_layout
from tood_jax.weights.mmdetection import table
from tood_jax.weights.shapes import variable_shapes

BY_NAMES_ALONE = {  # manifest without golden numbers → config
    "tood_r101_fpn_ms-2x_coco": "tood_r101_fpn_ms_2x_coco",
    "tood_r101-dconv-c3-c5_fpn_ms-2x_coco": "tood_r101_fpn_dconv_c3_c5_ms_2x_coco",
    "tood_x101-64x4d-dconv-c4-c5_fpn_ms-2x_coco": "tood_x101_64x4d_fpn_dconv_c4_c5_ms_2x_coco",
}


@pytest.mark.parametrize("name", [*NAMES, *BY_NAMES_ALONE, *RIVALS])
def test_table_equals_the_manifest_and_the_model(name):
    """Every tensor of the checkpoint has one place in the model, of its shape, and every place one tensor."""
    if name in BY_NAMES_ALONE:
        config = load_config(str(FOLDER.parents[1] / "configs" / f"{BY_NAMES_ALONE[name]}.py"))
    else:
        config = golden_config(name)
    manifest = golden_manifest(name)
    shapes = variable_shapes(build_model(config, NUM_CLASSES))
    entries = table(config)
    assert {entry.torch_name for entry in entries} == manifest.keys()
    assert len(entries) == len(manifest)
    assert {name_of(entry) for entry in entries} == shapes.keys()
    for entry in entries:
        shape = shapes[name_of(entry)] if entry.element is None else shapes[name_of(entry)][1:]
        assert to_torch_layout(np.broadcast_to(np.float32(0), shape)).shape == manifest[entry.torch_name], entry


def test_no_manifest_is_left_out():
    names = {file.name.removesuffix(".manifest.json") for file in FOLDER.rglob("*.manifest.json")}
    assert names == {*NAMES, *BY_NAMES_ALONE, *RIVALS}
