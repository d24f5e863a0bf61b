"""The plain PyTorch TOOD of tools/compare_torch/torch_reference as a peer, eager or compiled. Imports torch."""

import functools
import re
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from benchmarks.peers.inputs import AssignerInputs, PeerInputs
from benchmarks.peers.plain_torch_step_parts import step_part_runs
from benchmarks.peers.protocol import (
    ATSS,
    DEFORMABLE_FORWARD,
    DEFORMABLE_GRADIENT,
    INFERENCE,
    NMS,
    TASK_ALIGNED,
    TRAINING,
    Run,
    Workload,
)
from benchmarks.peers.torch_network import inference_run, load_network, training_run
from benchmarks.peers.torch_runtime import is_on_gpu, peak_device_bytes, synchronized, to_tensor
from tood_jax.config import AssignerConfig
from tood_jax.geometry.locations import level_shapes
from tood_jax.tools.compare_torch.torch_implementation import ReferenceNetwork, TorchImplementation, real_objects
from tood_jax.tools.compare_torch.torch_reference.assigners import Objects, assign_atss, assign_task_aligned
from tood_jax.tools.compare_torch.torch_reference.boxes import locations_of
from tood_jax.tools.compare_torch.torch_reference.deformable import deformable_convolution
from tood_jax.tools.compare_torch.torch_reference.detect import nms


class PlainTorchPeer:
    """A `Peer`; compiled, it leaves out loops over objects and boxes, which have no fixed shapes to compile for."""

    def __init__(self, *, is_compiled: bool):
        self.name = "torch.compile" if is_compiled else "torch eager"
        self._is_compiled = is_compiled

    def workloads(self, inputs: PeerInputs) -> dict[str, Callable[[], Workload]]:
        options = inputs.config.assigner
        runs: dict[str, Callable[[], Run]] = {
            TRAINING: lambda: training_run(self._network(inputs), inputs),
            INFERENCE: lambda: inference_run(self._network(inputs), inputs),
            DEFORMABLE_FORWARD: lambda: self._deformable(inputs, gradient=False),
            DEFORMABLE_GRADIENT: lambda: self._deformable(inputs, gradient=True),
        }
        if not self._is_compiled:
            runs |= {
                TASK_ALIGNED: lambda: assigner_run(inputs.assigner, options, TASK_ALIGNED),
                ATSS: lambda: assigner_run(inputs.assigner, options, ATSS),
                NMS: lambda: _nms(inputs),
                **step_part_runs(inputs),
            }
        return {name: functools.partial(_workload, prepare) for name, prepare in runs.items()}

    def peak_device_bytes(self, workload: Workload) -> int | None:
        return peak_device_bytes()

    def _network(self, inputs: PeerInputs) -> TorchImplementation:
        network = ReferenceNetwork(inputs.config, inputs.classes)
        side = load_network(self.name, network, inputs)
        if self._is_compiled:
            compiled = torch.compile(network.module)
            assert isinstance(compiled, torch.nn.Module)
            network.module = compiled
        return side

    def _deformable(self, inputs: PeerInputs, *, gradient: bool) -> Run:
        batch, height, width = inputs.deformable_map.shape[:3]
        arguments = [
            to_tensor(inputs.deformable_map).permute(0, 3, 1, 2).contiguous(),
            to_tensor(inputs.deformable_offsets).reshape(batch, height, width, -1).permute(0, 3, 1, 2).contiguous(),
            to_tensor(inputs.deformable_mask).reshape(batch, height, width, -1).permute(0, 3, 1, 2).contiguous(),
            to_tensor(inputs.deformable_kernel).permute(3, 2, 0, 1).contiguous(),
        ]
        function = torch.compile(deformable_convolution) if self._is_compiled else deformable_convolution

        @torch.set_grad_enabled(gradient)
        def run() -> None:
            out = function(*(argument.requires_grad_(gradient) for argument in arguments))
            if gradient:
                torch.autograd.grad(out, arguments, torch.ones_like(out))

        return run


def assigner_run(inputs: AssignerInputs, options: AssignerConfig, name: str) -> Run:
    """Return the plain assigner of a workload's name, image after image."""
    scores, boxes, valid = map(to_tensor, inputs[1:])
    locations = locations_of(level_shapes(*inputs.batch.images.shape[1:3]), scores)
    objects = [Objects(*of_image) for of_image in real_objects(inputs.batch)]

    def run() -> None:
        for i, of_image in enumerate(objects):
            if name == TASK_ALIGNED:
                assign_task_aligned(
                    scores[i], boxes[i], locations, valid[i], of_image,
                    topk=options.topk, alpha=options.alpha, beta=options.beta,
                )  # fmt: skip
            else:
                assign_atss(locations, valid[i], of_image, options.atss_topk)

    return synchronized(run)


def convolution_runs(x: np.ndarray, kernel: np.ndarray, stride: int, dtype: str) -> dict[str, Run]:
    """Return a convolution of a map NHWC and a kernel HWIO, and its two gradients, in PyTorch's own layout."""
    nchw = (to_tensor(x).permute(0, 3, 1, 2), to_tensor(kernel).permute(3, 2, 0, 1))
    torch_x, torch_kernel = (tensor.to(getattr(torch, dtype)).contiguous().requires_grad_() for tensor in nchw)
    padding = kernel.shape[0] // 2
    out = torch.nn.functional.conv2d(torch_x, torch_kernel, stride=stride, padding=padding)
    cotangent = torch.ones_like(out)

    def forward() -> None:
        with torch.no_grad():
            torch.nn.functional.conv2d(torch_x, torch_kernel, stride=stride, padding=padding)

    def gradient(argument: Tensor) -> None:
        torch.autograd.grad(out, argument, cotangent, retain_graph=True)

    runs = {
        "forward": forward,
        "to the map": lambda: gradient(torch_x),
        "to the kernel": lambda: gradient(torch_kernel),
    }
    return {name: synchronized(run) for name, run in runs.items()}


def profile_training(inputs: PeerInputs, repeats: int) -> tuple[float, float]:
    """Return the seconds per step in convolutions and matrix products, and in all else, by PyTorch's own profiler."""
    run = PlainTorchPeer(is_compiled=False).workloads(inputs)[TRAINING]().run
    run()
    with torch.profiler.profile() as profile:
        for _ in range(repeats):
            run()
    on_gpu = is_on_gpu()
    products = others = 0.0
    for row in profile.key_averages():
        spent = (row.self_device_time_total if on_gpu else row.self_cpu_time_total) / 1e6 / repeats
        if re.fullmatch(r"aten::(\w*conv\w*|\w*mm)", row.key):
            products += spent
        elif row.key.startswith("aten::") or not on_gpu:  # kernels of a GPU count with the operation that starts them
            others += spent
    return products, others


def _workload(prepare: Callable[[], Run]) -> Workload:
    return Workload(synchronized(prepare()))


def _nms(inputs: PeerInputs) -> Run:
    boxes, scores, labels = map(to_tensor, inputs.nms_candidates)
    options = inputs.config.detect

    def run() -> None:
        nms(boxes, scores, labels, options.nms_iou)[: options.max_detections]

    return run
