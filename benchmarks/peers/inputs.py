"""The inputs of all peers, on the host."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from benchmarks.harness.deformable_inputs import DeformableSizes, random_arguments
from benchmarks.harness.inputs import random_batch, random_nms_candidates, random_predictions
from benchmarks.harness.options import ModelOptions
from tood_jax.config import Config
from tood_jax.geometry.locations import locations_in_image
from tood_jax.models.detector import canvas_pyramid
from tood_jax.tools.compare_torch import main as compare_torch
from tood_jax.types import Batch


@dataclass(frozen=True)
class InputOptions(ModelOptions):
    """Sizes of the inputs."""

    objects: int = 8
    """Objects per image."""
    candidates: int = 5000
    """Boxes that NMS receives."""


class AssignerInputs(NamedTuple):
    """Inputs of an assigner."""

    batch: Batch
    scores: np.ndarray  # [B, N, C], random predictions
    boxes: np.ndarray  # [B, N, 4] pixels
    valid: np.ndarray  # [B, N], locations inside their image


class PeerInputs(NamedTuple):
    """Inputs of all workloads."""

    config: Config
    classes: int
    variables: Any  # flax variables of tood_jax
    torch_weights: Mapping[str, np.ndarray]  # the same weights by mmdetection's names
    batch: Batch
    assigner: AssignerInputs
    nms_candidates: tuple[np.ndarray, np.ndarray, np.ndarray]  # boxes, scores, labels
    deformable_map: np.ndarray  # [B, H, W, I]
    deformable_offsets: np.ndarray  # [B, H, W, G, 9, 2]
    deformable_mask: np.ndarray  # [B, H, W, G, 9]
    deformable_kernel: np.ndarray  # [3, 3, I, O]

    @property
    def params_and_stats(self) -> tuple[Any, Any]:
        """The variables of tood_jax as (params, batch_stats)."""
        return self.variables["params"], self.variables.get("batch_stats", {})


def random_assigner_inputs(batch: Batch, classes: int, seed: int) -> AssignerInputs:
    """Return random predictions for the objects of a batch."""
    pred, locations = random_predictions(batch, classes, seed), canvas_pyramid(batch)
    boxes = np.asarray(pred.boxes * locations.strides[:, None])
    valid = np.asarray(locations_in_image(locations, jnp.asarray(batch.sizes)))
    return AssignerInputs(batch, np.asarray(pred.scores), boxes, valid)


def random_inputs(args: InputOptions, config: Config) -> PeerInputs:
    """Return inputs that depend on the seed alone; the map of the deformable convolution is C4 of the canvas."""
    weights = compare_torch.load_weights(compare_torch.Args(num_classes=args.classes, seed=args.seed), config)
    batch = random_batch(
        args.batch,
        args.height,
        args.width,
        objects=args.objects,
        max_objects=args.objects,
        classes=args.classes,
        seed=args.seed,
    )
    deformable = DeformableSizes(batch=args.batch, height=args.height // 16, width=args.width // 16)
    return PeerInputs(
        config,
        args.classes,
        weights.variables,
        weights.state_dict,
        batch,
        random_assigner_inputs(batch, args.classes, args.seed),
        random_nms_candidates(args.candidates, classes=args.classes, seed=args.seed),
        *map(np.asarray, random_arguments(deformable, args.seed)[:4]),
    )
