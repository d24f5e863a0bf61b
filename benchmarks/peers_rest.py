"""PyTorch's side of rest.py. Imports torch."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks import rest
from benchmarks.task import Run, Task
from tood_jax.geometry.pyramid import level_shapes
from tood_jax.networks.group_norm import EPSILON
from tood_jax.torch_reference.comparison.plain_torch import PlainTorch
from tood_jax.torch_reference.detector import Maps
from tood_jax.torch_reference.head import align


def runs(task: Task, wait: Run) -> dict[str, Callable[[], Run]]:
    """As `peers.runs`; `wait` waits for the device."""
    made = {rest.NORMS: _norms, rest.ALIGNMENT: _alignment, rest.LOSSES: _losses, rest.OPTIMIZER: _optimizer}

    def waited_for(make: Callable[[Task], Run]) -> Run:
        run = make(task)
        return lambda: (run(), wait())

    return {row: partial(waited_for, make) for row, make in made.items()}


def _norms(task: Task) -> Run:
    maps = rest.norm_maps(task)

    def given(one: rest.NormMap) -> tuple[Tensor, ...]:
        """The map, scale and bias."""
        channels = one.values.shape[-1]
        tensors = _nchw(one.values), torch.ones(channels), torch.zeros(channels)
        return tuple(x.requires_grad_(one.trained) for x in tensors)

    inputs = [given(one) for one in maps]
    cotangents = [_nchw(one.cotangent) for one in maps if one.trained]
    statistics = [(torch.zeros_like(scale), torch.ones_like(scale)) for _, scale, _ in inputs]

    def apply(one: rest.NormMap, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        if one.kind == "group":
            return F.group_norm(x, one.groups, scale, bias, EPSILON).relu()
        return F.batch_norm(x, mean, var, scale, bias, one.kind == "batch" and one.trained, 0.1, EPSILON).relu()

    def run() -> None:
        outs = [apply(one, *of, *own) for one, of, own in zip(maps, inputs, statistics, strict=True)]
        trained = [out for out, one in zip(outs, maps, strict=True) if one.trained]
        torch.autograd.grad(trained, [x for of in inputs for x in of if x.requires_grad], cotangents)

    return run


def _alignment(task: Task) -> Run:
    levels = [[_nchw(one).requires_grad_() for one in level] for level in rest.level_maps(task)]

    def run() -> None:
        outs = [out for level in levels for out in align(*level)]
        torch.autograd.grad(outs, [one for level in levels for one in level], [out.detach() for out in outs])

    return run


def _losses(task: Task) -> Run:
    network = PlainTorch(task.config, task.classes)
    pred, shapes = rest.head_says(task), level_shapes(*task.batch.images.shape[1:3])
    ends = np.cumsum([height * width for height, width in shapes])[:-1]
    maps = [
        [_nchw(one.reshape(len(one), *shape, -1)).requires_grad_() for one in level]
        for shape, *level in zip(
            shapes, *(np.split(one, ends, axis=1) for one in (pred.scores, pred.boxes)), strict=True
        )
    ]

    def run() -> None:
        cls, box, _ = network.losses(Maps((), (), tuple((scores, boxes) for scores, boxes in maps)), task.batch, True)
        torch.autograd.grad(cls.sum() + box.sum(), [one for level in maps for one in level])

    return run


def _optimizer(task: Task) -> Run:
    """Of the trained parameters, refused where the gradient's norm isn't finite, as ours."""
    options, module = task.config.optimizer, PlainTorch(task.config, task.classes).module
    trained = [value for value in module.parameters() if value.requires_grad]
    sgd = torch.optim.SGD(trained, lr=1e-12, momentum=options.momentum, weight_decay=options.weight_decay)
    for value in trained:
        value.grad = 0.01 * value.detach()

    def run() -> None:
        if torch.nn.utils.get_total_norm([value.grad for value in trained]).isfinite():
            sgd.step()

    return run


def _nchw(array: Any) -> Tensor:
    dtype = getattr(torch, str(array.dtype))
    tensor = torch.from_numpy(np.array(array, np.float32)).to(torch.get_default_device(), dtype)
    return tensor.movedim(-1, 1).contiguous()
