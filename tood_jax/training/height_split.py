"""Check that splitting the height of images does not change the gradients, at the start of every run that splits it.

XLA's partitioner gave wrong gradients of kernels, under a right loss, where the rows of a level divide unevenly (400
pixels over 4 devices, JAX 0.10.2; `sharding.check_canvases` refuses those). Nothing else would show it: such a run
trains, but worse.
"""

from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from tood_jax.config import Config, ConfigError
from tood_jax.distributed.mesh import DATA, SPACE
from tood_jax.distributed.sharding import batch_shardings, check_canvases, over_batch, put_whole, replicated
from tood_jax.models.detector import Detector
from tood_jax.training.state import init_variables
from tood_jax.training.train_step import batch_losses
from tood_jax.types import Batch

TOLERANCE = 3e-3  # relative to the norm of a parameter's gradient; rounding gives 4e-5, the error of XLA 4e-2
_NEGLIGIBLE = 1e-5  # gradients below this share of the norm of all may differ by rounding alone
_OBJECTS = 4


def check_height_split(
    model: Detector, config: Config, mesh: Mesh, canvases: Iterable[tuple[int, int]], log: Callable[[str], None]
) -> None:
    """Compare, for each canvas, the gradients of images whose height is split with those of whole images.

    Both are computed on this mesh, from random weights and one synthetic image per row of devices. Returns at once
    where nothing is split. It costs two compilations per canvas, which the compilation cache keeps.

    Args:
        model: in float32; in bfloat16, rounding alone would exceed the tolerance.
        canvases: (height, width), pixels.
        log: called with the largest difference of each canvas.

    Raises:
        ConfigError: the gradients differ, or a canvas cannot be split.
    """
    if mesh.shape[SPACE] == 1:
        return
    canvases = tuple(canvases)
    check_canvases(canvases, mesh)
    params, batch_stats = put_whole(init_variables(model, config.train.seed), replicated(mesh))
    for height, width in canvases:
        batch = _synthetic_batch(mesh.shape[DATA], height, width)
        with jax.default_matmul_precision("highest"):  # a TPU would round the factors to bfloat16
            split, whole = (
                compile_gradients(model, config, mesh, shardings)(params, batch_stats, put_whole(batch, shardings))
                for shardings in (batch_shardings(mesh), whole_images(mesh))
            )
        name, difference = worst_difference(split, whole)
        text = (
            f"Height split over {mesh.shape[SPACE]} devices, canvas {height}x{width}: gradients differ from those of "
            f"whole images by {difference:.1e} at most ({name})"
        )
        if not difference <= TOLERANCE:
            raise ConfigError(
                f"{text}, more than {TOLERANCE:g}: this version of XLA splits such an image wrongly. Set "
                f"parallel.space=1, or take another canvas for {height}x{width} in data.buckets."
            )
        log(f"{text}.")


def whole_images(mesh: Mesh) -> Batch:
    """Return `sharding.batch_shardings` without the split of the height: each device of a row has the whole image."""
    return batch_shardings(mesh)._replace(images=over_batch(mesh))


def worst_difference(found, expected) -> tuple[str, float]:
    """Return the name of the leaf that differs most, and ‖found − expected‖ / (‖expected‖ + a small share of all)."""

    def norms(found, expected):
        total = jnp.sqrt(sum((leaf**2).sum() for leaf in jax.tree.leaves(expected)))
        slack = total * (_NEGLIGIBLE / TOLERANCE)
        return jax.tree.map(
            lambda a, b: jnp.linalg.norm((a - b).ravel()) / jnp.maximum(jnp.linalg.norm(b.ravel()) + slack, 1e-30),
            found,
            expected,
        )

    shares = jax.tree.leaves_with_path(jax.device_get(jax.jit(norms)(found, expected)))
    # A NaN is the worst of all.
    path, share = max(shares, key=lambda pair: np.inf if np.isnan(pair[1]) else float(pair[1]))
    return jax.tree_util.keystr(path, simple=True, separator="/"), float(share)


def compile_gradients(model: Detector, config: Config, mesh: Mesh, batch_sharding):
    """Return the jitted function of (params, batch_stats, batch) to gradients, in the warm-up phase if the run has one.

    Its assignment does not depend on the last bit of the predictions.
    """

    def gradients(params, batch_stats, batch):
        return jax.grad(lambda p: batch_losses(model, config, mesh, p, batch_stats, batch, jnp.asarray(False))[0])(
            params
        )

    everywhere = replicated(mesh)
    return jax.jit(gradients, in_shardings=(everywhere, everywhere, batch_sharding), out_shardings=everywhere)


def _synthetic_batch(images: int, height: int, width: int) -> Batch:
    """Return noise with objects of all sizes, the same in every process."""
    rng = np.random.default_rng(0)
    canvas = np.array([width, height])
    sides = rng.uniform(0.1, 0.7, (images, _OBJECTS, 2)) * canvas
    corner = rng.uniform(0, 1, (images, _OBJECTS, 2)) * (canvas - sides)
    return Batch(
        images=rng.integers(0, 256, (images, height, width, 3), np.uint8),
        sizes=np.tile(np.array([[height, width]], np.int32), (images, 1)),
        scales=np.ones((images, 2), np.float32),
        gt_boxes=np.concatenate([corner, corner + sides], axis=-1).astype(np.float32),
        gt_labels=np.zeros((images, _OBJECTS), np.int32),
        gt_mask=np.ones((images, _OBJECTS), bool),
        image_indices=np.arange(images, dtype=np.int32),
    )
