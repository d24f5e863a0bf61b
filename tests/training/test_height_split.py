"""The gradients of images whose height is split, against those of whole images, before a run trusts them."""

import jax
import numpy as np
import pytest

from tests.tiny import tiny_config
from tood_jax.config import ConfigError
from tood_jax.distributed.sharding import make_mesh
from tood_jax.models.build import build_model
from tood_jax.training import height_split
from tood_jax.training.height_split import check_height_split, worst_difference


def test_the_worst_leaf_is_named():
    expected = {"a": np.array([3.0, 4.0]), "b": {"c": np.array([[0.0, 2.0]])}}
    found = {"a": np.array([3.0, 4.5]), "b": {"c": np.array([[0.0, 2.5]])}}
    name, share = worst_difference(found, expected)
    assert name == "b/c"
    assert share == pytest.approx(0.25, rel=1e-2)
    assert worst_difference(expected, expected)[1] == 0


def test_a_gradient_that_should_be_zero_may_differ_by_rounding_of_the_others():
    expected = {"large": np.array([1.0]), "none": np.array([0.0])}
    assert worst_difference({**expected, "none": np.array([1e-6])}, expected)[1] < height_split.TOLERANCE
    assert worst_difference({**expected, "none": np.array([1e-3])}, expected) == ("none", pytest.approx(0.3, rel=1e-2))


def test_not_a_number_is_the_worst():
    expected = {"a": np.array([1.0]), "b": np.array([1.0])}
    name, share = worst_difference({"a": np.array([9.0]), "b": np.array([np.nan])}, expected)
    assert name == "b"
    assert np.isnan(share)


class Setup:
    def __init__(self, folder, space: int):
        self.config = tiny_config(folder, folder)
        self.mesh = make_mesh(jax.devices()[:2], space)
        self.model = build_model(self.config, 4)

    def check(self, *canvases) -> list[str]:
        said: list[str] = []
        check_height_split(self.model, self.config, self.mesh, canvases, said.append)
        return said


def test_a_whole_image_needs_no_check(tmp_path):
    assert Setup(tmp_path, space=1).check((64, 64)) == []


@pytest.mark.slow
def test_the_check_agrees_and_finds_a_fault(tmp_path, monkeypatch):
    setup = Setup(tmp_path, space=2)
    (said,) = setup.check((256, 64))
    assert said.startswith("Height split over 2 devices, canvas 256x64: gradients differ from those of whole images by")
    genuine = height_split.compile_gradients

    def faulty(model, config, mesh, shardings):
        compute = genuine(model, config, mesh, shardings)
        if shardings.images.spec == height_split.whole_images(mesh).images.spec:
            return compute

        def wrong(*arguments):
            found = compute(*arguments)
            found["head"]["cls_logits"]["kernel"] *= 1.05
            return found

        return wrong

    monkeypatch.setattr(height_split, "compile_gradients", faulty)
    with pytest.raises(ConfigError, match=r"by [45]\.\de-02 at most \(head/cls_logits/kernel\).*parallel\.space=1"):
        setup.check((256, 64))


def test_a_canvas_that_splits_unevenly_is_refused_before(tmp_path):
    with pytest.raises(ConfigError, match="write 512x64 for 400x64"):
        Setup(tmp_path, space=2).check((256, 64), (400, 64))
