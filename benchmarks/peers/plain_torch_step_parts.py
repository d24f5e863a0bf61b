"""Plain PyTorch: the parts of a training step that tood_jax_step_parts.py has for tood_jax. Imports torch."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.peers.inputs import PeerInputs
from benchmarks.peers.protocol import ALIGNMENT, LOSSES, NORMS, OPTIMIZER, Run
from benchmarks.peers.step_part_inputs import NormInputs, alignment_inputs, loss_predictions, norm_inputs
from benchmarks.peers.torch_runtime import to_nchw
from tood_jax.geometry.locations import level_shapes
from tood_jax.ops.group_norm import EPSILON
from tood_jax.tools.compare_torch.torch_implementation import ReferenceNetwork
from tood_jax.tools.compare_torch.torch_reference.detector import Maps
from tood_jax.tools.compare_torch.torch_reference.head import align


def step_part_runs(inputs: PeerInputs) -> dict[str, Callable[[], Run]]:
    """Return the parts by name; calling a value prepares the part."""
    return {
        NORMS: lambda: _norms(inputs),
        ALIGNMENT: lambda: _alignment(inputs),
        LOSSES: lambda: _losses(inputs),
        OPTIMIZER: lambda: _optimizer(inputs),
    }


def _norms(inputs: PeerInputs) -> Run:
    norms = norm_inputs(inputs)

    def tensors(norm: NormInputs) -> tuple[Tensor, Tensor, Tensor]:
        """Return the map, scale and bias."""
        channels = norm.values.shape[-1]
        found = to_nchw(norm.values), torch.ones(channels), torch.zeros(channels)
        for x in found:
            x.requires_grad_(norm.is_trained)
        return found

    arguments = [tensors(norm) for norm in norms]
    cotangents = [to_nchw(norm.cotangent) for norm in norms if norm.is_trained]
    statistics = [(torch.zeros_like(scale), torch.ones_like(scale)) for _, scale, _ in arguments]

    def apply(norm: NormInputs, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        if norm.kind == "group":
            return F.group_norm(x, norm.groups, scale, bias, EPSILON).relu()
        return F.batch_norm(x, mean, var, scale, bias, norm.kind == "batch" and norm.is_trained, 0.1, EPSILON).relu()

    def run() -> None:
        outs = [apply(norm, *xs, *stats) for norm, xs, stats in zip(norms, arguments, statistics, strict=True)]
        trained = [out for out, norm in zip(outs, norms, strict=True) if norm.is_trained]
        torch.autograd.grad(trained, [x for xs in arguments for x in xs if x.requires_grad], cotangents)

    return run


def _alignment(inputs: PeerInputs) -> Run:
    levels = [[to_nchw(array).requires_grad_() for array in level] for level in alignment_inputs(inputs)]

    def run() -> None:
        outs = [out for level in levels for out in align(*level)]
        torch.autograd.grad(outs, [x for level in levels for x in level], [out.detach() for out in outs])

    return run


def _losses(inputs: PeerInputs) -> Run:
    network = ReferenceNetwork(inputs.config, inputs.classes)
    pred, shapes = loss_predictions(inputs), level_shapes(*inputs.batch.images.shape[1:3])
    ends = np.cumsum([height * width for height, width in shapes])[:-1]
    scores_and_boxes = (np.split(array, ends, axis=1) for array in (pred.scores, pred.boxes))
    maps = [
        [to_nchw(array.reshape(len(array), *shape, -1)).requires_grad_() for array in level]
        for shape, *level in zip(shapes, *scores_and_boxes, strict=True)
    ]

    def run() -> None:
        head = tuple((scores, boxes) for scores, boxes in maps)
        cls, box, _ = network.losses(Maps((), (), head), inputs.batch, True)
        torch.autograd.grad(cls.sum() + box.sum(), [x for level in maps for x in level])

    return run


def _optimizer(inputs: PeerInputs) -> Run:
    """Update the trained parameters unless the gradient's norm is not finite, as tood_jax does."""
    options, module = inputs.config.optimizer, ReferenceNetwork(inputs.config, inputs.classes).module
    trained = [value for value in module.parameters() if value.requires_grad]
    sgd = torch.optim.SGD(trained, lr=1e-12, momentum=options.momentum, weight_decay=options.weight_decay)
    gradients = [0.01 * value.detach() for value in trained]
    for value, gradient in zip(trained, gradients, strict=True):
        value.grad = gradient

    def run() -> None:
        if torch.nn.utils.get_total_norm(gradients).isfinite():
            sgd.step()

    return run
