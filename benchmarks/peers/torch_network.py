"""Training and inference of a PyTorch network, plain or mmdetection's. Imports torch."""

import contextlib
from typing import Any

import torch
from torch import Tensor

from benchmarks.peers.inputs import PeerInputs
from benchmarks.peers.protocol import Run
from tood_jax.tools.compare_torch.torch_implementation import Network, TorchImplementation
from tood_jax.tools.compare_torch.torch_reference.detector import Maps


def load_network(name: str, network: Network, inputs: PeerInputs) -> TorchImplementation:
    """Return the network with the weights of the inputs."""
    return TorchImplementation(name, network, inputs.torch_weights, inputs.config, learning_rate=0.0)


def training_run(side: TorchImplementation, inputs: PeerInputs) -> Run:
    """Return forward, task-aligned losses, gradient and update; the learning rate is 0, so the work stays the same."""
    options = inputs.config.optimizer
    trained = [value for value in side.network.module.parameters() if value.requires_grad]
    sgd = torch.optim.SGD(trained, lr=0.0, momentum=options.momentum, weight_decay=options.weight_decay)
    side.network.module.train()

    def run() -> None:
        cls, box, _ = side.network.losses(_maps(side, side.normalized(inputs.batch)), inputs.batch, True)
        sgd.zero_grad(set_to_none=True)
        (cls.sum() + box.sum()).backward()
        sgd.step()

    return run


def inference_run(side: TorchImplementation, inputs: PeerInputs) -> Run:
    """Return forward pass and post-processing."""
    side.network.module.eval()

    @torch.no_grad()
    def run() -> None:
        side.network.detections(_maps(side, side.normalized(inputs.batch)), inputs.batch)

    return run


def _maps(side: TorchImplementation, images: Tensor) -> Maps:
    """Return the maps, computed in the config's precision; what follows is float32, as in tood_jax."""
    is_bfloat16 = side.config.train.precision == "bfloat16"
    with torch.autocast(images.device.type, torch.bfloat16) if is_bfloat16 else contextlib.nullcontext():
        maps = side.network.maps(images)
    return Maps(*(tuple(_to_float32(value) for value in part) for part in maps))


def _to_float32(values: Any) -> Any:
    return values.float() if isinstance(values, Tensor) else tuple(map(_to_float32, values))
