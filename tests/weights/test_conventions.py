"""Channel order, mean and scale of ImageNet backbones."""

import jax.numpy as jnp
import numpy as np

from tests.weights.example_weights import SMALL, imagenet_file, shapes_of, small_state_dict
from tood_jax.config import DataConfig
from tood_jax.models.detector import normalize_images
from tood_jax.ops.group_norm import EPSILON
from tood_jax.weights.conventions import CONV1, IMAGENET_MEAN, IMAGENET_STD, convention_notes, swap_channels
from tood_jax.weights.files import WeightsFile
from tood_jax.weights.load import fit_to_model

TORCH_MEAN, TORCH_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of RGB 0–1, as torchvision and timm document


def backbone(**changed):
    return fit_to_model(
        WeightsFile(imagenet_file(small_state_dict()) | changed, None, {}), "x", SMALL, shapes_of(SMALL)
    ).tensors


def test_normalized_pixels_equal_those_of_torchvision():
    """`normalize_images` of uint8 RGB equals (x/255 − mean)/std; ε of BatchNorm is PyTorch's."""
    images = np.random.default_rng(0).integers(0, 256, (1, 4, 5, 3), dtype=np.uint8)
    normalized = normalize_images(
        jnp.asarray(images), jnp.array([[4, 5]]), DataConfig().pixel_mean, DataConfig().pixel_std
    )
    expected = (images / 255 - np.array(TORCH_MEAN)) / np.array(TORCH_STD)
    np.testing.assert_allclose(normalized, expected, atol=2e-6)
    assert EPSILON == 1e-5
    np.testing.assert_allclose(IMAGENET_MEAN, 255 * np.array(TORCH_MEAN), rtol=1e-6)
    np.testing.assert_allclose(IMAGENET_STD, 255 * np.array(TORCH_STD), rtol=1e-6)


def test_a_swapped_backbone_computes_the_same_of_bgr_as_the_other_of_rgb():
    tensors = backbone()
    image = np.random.default_rng(1).standard_normal((7, 7, 3))
    swapped = swap_channels(tensors)
    np.testing.assert_allclose(
        np.einsum("hwc,hwcf->f", image[..., ::-1], tensors[CONV1]), np.einsum("hwc,hwcf->f", image, swapped[CONV1])
    )
    assert all(swapped[name] is tensors[name] for name in tensors if name != CONV1)
    np.testing.assert_array_equal(swap_channels(swapped)[CONV1], tensors[CONV1])


def test_notes_name_the_settings_that_do_not_match():
    tensors = backbone()
    assert convention_notes("resnet50.pth", tensors, DataConfig()) == []
    (note,) = convention_notes("resnet50.pth", tensors, DataConfig(pixel_std=(1.0, 1.0, 1.0)))
    assert "58.395,57.12,57.375; the config has 123.675,116.28,103.53 and 1,1,1" in note
    (note,) = convention_notes("/x/resnet50_caffe.pth", tensors, DataConfig())
    assert "--channel_order=bgr" in note


def test_folded_statistics_are_recognized_as_caffe():
    zeros, ones = np.zeros(8, np.float32), np.ones(8, np.float32)
    (note,) = convention_notes(
        "r50.pth", backbone(**{"bn1.running_mean": zeros, "bn1.running_var": ones}), DataConfig()
    )
    assert "Caffe" in note
