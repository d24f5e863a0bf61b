"""The PyTorch side of versus_torch.py: each piece of work as a function without arguments. Imports torch."""

import contextlib
import importlib.util
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import peers_rest
from benchmarks.task import ATSS, TASK_ALIGNED, Run, Task, ToAssign
from tood_jax.config import LearningConfig
from tood_jax.geometry.pyramid import level_shapes
from tood_jax.torch_reference.assigners import Objects, assign_atss, assign_task_aligned
from tood_jax.torch_reference.boxes import cells_of
from tood_jax.torch_reference.comparison.mmdetection import MMDetection
from tood_jax.torch_reference.comparison.plain_torch import PlainTorch, TorchSide, real_objects
from tood_jax.torch_reference.deformable import deformable_convolution
from tood_jax.torch_reference.detect import nms
from tood_jax.torch_reference.detector import Maps

EAGER, COMPILED, MMDET, ULTRALYTICS = "torch eager", "torch.compile", "mmdetection", "ultralytics"


def installed() -> tuple[str, ...]:
    """The peers that can be asked here."""
    others = {MMDET: "mmdet", ULTRALYTICS: "ultralytics"}
    return (EAGER, COMPILED, *(name for name, module in others.items() if importlib.util.find_spec(module)))


def use_device(device: str) -> None:
    """Tensors are made on `device`, "cpu" or "cuda", from now on."""
    torch.set_default_device(device)


def peak_bytes() -> int | None:
    """The most that PyTorch held on its GPU since the last call, None on a CPU."""
    if torch.get_default_device().type != "cuda":
        return None
    peak = torch.cuda.max_memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    return peak


def runs(peer: str, task: Task) -> dict[str, Callable[[], Run]]:
    """What a peer can do, by row: calling a value prepares the work and returns it."""
    if peer == ULTRALYTICS:
        return {TASK_ALIGNED: lambda: _ultralytics(task)}
    networks: dict[str, Callable[[], Run]] = {
        "training step": lambda: _training(peer, task),
        "inference with NMS": lambda: _inference(peer, task),
    }
    deformable: dict[str, Callable[[], Run]] = {
        "DCNv2, forward": lambda: _deformable(peer, task, gradient=False),
        "DCNv2, forward and gradient": lambda: _deformable(peer, task, gradient=True),
    }
    if peer == MMDET:
        return networks
    if peer == COMPILED:  # loops over objects and boxes have no fixed shapes: nobody compiles them
        return networks | deformable
    return {
        **networks,
        TASK_ALIGNED: lambda: assigner(task.to_assign, task.config.learning, TASK_ALIGNED),
        ATSS: lambda: assigner(task.to_assign, task.config.learning, ATSS),
        "NMS": lambda: _nms(task),
        **deformable,
        **peers_rest.runs(task, _wait),
    }


def _side(peer: str, task: Task) -> TorchSide:
    network = (MMDetection if peer == MMDET else PlainTorch)(task.config, task.classes)
    side = TorchSide(peer, network, task.weights, task.config, learning_rate=0.0)
    if peer == COMPILED:
        network.module = torch.compile(network.module)  # type: ignore[assignment]
    return side


def _maps(side: TorchSide, images: Tensor) -> Maps:
    """In the config's precision; what follows is float32, as ours."""
    half = side.config.train.precision == "bfloat16"
    with torch.autocast(images.device.type, torch.bfloat16) if half else contextlib.nullcontext():
        maps = side.network.maps(images)
    return Maps(*(tuple(_float32(one) for one in part) for part in maps))


def _float32(values: Any) -> Any:
    return values.float() if isinstance(values, Tensor) else tuple(map(_float32, values))


def _training(peer: str, task: Task) -> Run:
    """Forward, task-aligned losses, gradient, update, at a learning rate of 0, which keeps the work the same."""
    side, options = _side(peer, task), task.config.optimizer
    trained = [value for value in side.network.module.parameters() if value.requires_grad]
    sgd = torch.optim.SGD(trained, lr=0.0, momentum=options.momentum, weight_decay=options.weight_decay)
    side.network.module.train()

    def run() -> None:
        cls, box, _ = side.network.losses(_maps(side, side.normalized(task.batch)), task.batch, True)
        sgd.zero_grad(set_to_none=True)
        (cls.sum() + box.sum()).backward()
        sgd.step()
        _wait()

    return run


def profile_training(task: Task, repeats: int) -> tuple[float, float]:
    """Seconds that a step spends in convolutions and matrix products, and in all else, by PyTorch's own profiler."""
    run = _training(EAGER, task)
    run()
    with torch.profiler.profile() as profile:
        for _ in range(repeats):
            run()
    on_gpu = torch.get_default_device().type == "cuda"
    products = others = 0.0
    for one in profile.key_averages():
        spent = (one.self_device_time_total if on_gpu else one.self_cpu_time_total) / 1e6 / repeats
        if re.fullmatch(r"aten::(\w*conv\w*|\w*mm)", one.key):
            products += spent
        elif one.key.startswith("aten::") or not on_gpu:  # kernels of a GPU count with what started them
            others += spent
    return products, others


def _inference(peer: str, task: Task) -> Run:
    side = _side(peer, task)
    side.network.module.eval()

    @torch.no_grad()
    def run() -> None:
        side.network.detections(_maps(side, side.normalized(task.batch)), task.batch)
        _wait()

    return run


def assigner(given: ToAssign, learning: LearningConfig, row: str) -> Run:
    """The plain assigner of a row, image after image."""
    scores, boxes, valid = map(_tensor, given[1:])
    cells = cells_of(level_shapes(*given.batch.images.shape[1:3]), scores)
    objects = [Objects(*of_image) for of_image in real_objects(given.batch)]

    def run() -> None:
        for i, truth in enumerate(objects):
            if row == TASK_ALIGNED:
                assign_task_aligned(
                    scores[i], boxes[i], cells, valid[i], truth,
                    topk=learning.topk, alpha=learning.alpha, beta=learning.beta,
                )  # fmt: skip
            else:
                assign_atss(cells, valid[i], truth, learning.atss_topk)
        _wait()

    return run


def _ultralytics(task: Task) -> Run:
    """Its assigner works on the whole batch, padded."""
    from ultralytics.utils.tal import TaskAlignedAssigner

    learning = task.config.learning
    assigner = TaskAlignedAssigner(learning.topk, task.classes, learning.alpha, learning.beta)
    scores, boxes = _tensor(task.to_assign.scores), _tensor(task.to_assign.boxes)
    points = cells_of(level_shapes(*task.batch.images.shape[1:3]), scores).points
    labels = _tensor(task.batch.gt_labels)[..., None].long()
    gt_boxes, mask = _tensor(task.batch.gt_boxes), _tensor(task.batch.gt_mask)[..., None]

    def run() -> None:
        assigner(scores, boxes, points, labels, gt_boxes, mask)
        _wait()

    return run


def _nms(task: Task) -> Run:
    boxes, scores, labels = map(_tensor, task.candidates)
    options = task.config.detect

    def run() -> None:
        nms(boxes, scores, labels, options.nms_iou)[: options.max_detections]
        _wait()

    return run


def _deformable(peer: str, task: Task, *, gradient: bool) -> Run:
    batch, height, width = task.map.shape[:3]
    arguments = [
        _tensor(task.map).permute(0, 3, 1, 2).contiguous(),
        _tensor(task.offsets).reshape(batch, height, width, -1).permute(0, 3, 1, 2).contiguous(),
        _tensor(task.mask).reshape(batch, height, width, -1).permute(0, 3, 1, 2).contiguous(),
        _tensor(task.kernel).permute(3, 2, 0, 1).contiguous(),
    ]
    function = torch.compile(deformable_convolution) if peer == COMPILED else deformable_convolution

    @torch.set_grad_enabled(gradient)
    def run() -> None:
        out = function(*(one.requires_grad_(gradient) for one in arguments))
        if gradient:
            torch.autograd.grad(out, arguments, torch.ones_like(out))
        _wait()

    return run


def convolution(x: np.ndarray, kernel: np.ndarray, stride: int, dtype: str) -> dict[str, Run]:
    """A convolution of a map NHWC and a kernel HWIO, and its two gradients, in PyTorch's own layout."""
    given = (_tensor(x).permute(0, 3, 1, 2), _tensor(kernel).permute(3, 2, 0, 1))
    of_map, of_kernel = (one.to(getattr(torch, dtype)).contiguous().requires_grad_() for one in given)
    padding = kernel.shape[0] // 2
    out = torch.nn.functional.conv2d(of_map, of_kernel, stride=stride, padding=padding)
    cotangent = torch.ones_like(out)

    def forward() -> None:
        with torch.no_grad():
            torch.nn.functional.conv2d(of_map, of_kernel, stride=stride, padding=padding)
        _wait()

    def gradient(to: Tensor) -> None:
        torch.autograd.grad(out, to, cotangent, retain_graph=True)
        _wait()

    return {
        "forward": forward,
        "to the map": lambda: gradient(of_map),
        "to the kernel": lambda: gradient(of_kernel),
    }


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(array)).to(torch.get_default_device())


def _wait() -> None:
    if torch.get_default_device().type == "cuda":
        torch.cuda.synchronize()
