"""tood_jax: the parts of a training step beside convolutions that are functions on their own, each with its gradient.

Norms with their ReLUs, the explicit alignment (scores and sampled box sides), assignment and losses, and the optimizer.
The sums, concatenations and averages in between are left out. plain_torch_step_parts.py has PyTorch's.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.harness.programs import compile_call, compile_program
from benchmarks.peers.inputs import PeerInputs
from benchmarks.peers.protocol import ALIGNMENT, LOSSES, NORMS, OPTIMIZER, Workload
from benchmarks.peers.step_part_inputs import NormInputs, alignment_inputs, loss_predictions, norm_inputs
from tood_jax.criterion.losses import detection_losses
from tood_jax.models.layers import Norm
from tood_jax.models.t_head import align_boxes
from tood_jax.ops.geometric_mean import sigmoid_geometric_mean
from tood_jax.ops.relu import relu
from tood_jax.training.optimizer import make_optimizer
from tood_jax.training.state import TrainState
from tood_jax.training.train_step import updated_state
from tood_jax.types import Predictions


def step_part_workloads(inputs: PeerInputs) -> dict[str, Callable[[], Workload]]:
    """Return the parts by name, as `Peer.workloads`."""
    return {
        NORMS: lambda: _norms(inputs),
        ALIGNMENT: lambda: _alignment(inputs),
        LOSSES: lambda: _losses(inputs),
        OPTIMIZER: lambda: _optimizer(inputs),
    }


def _norms(inputs: PeerInputs) -> Workload:
    norms = norm_inputs(inputs)
    trained = [norm for norm in norms if norm.is_trained]
    frozen = [norm for norm in norms if not norm.is_trained]

    def apply(norm: NormInputs, x, parameters):
        channels = np.zeros(x.shape[-1], np.float32)
        statistics = {"batch_stats": {"norm": {"mean": channels, "var": channels + 1}}}
        module = Norm(norm.kind, norm.groups, x.dtype)
        return relu(module.apply({"params": {"norm": parameters}, **statistics}, x))

    def parameters(norm: NormInputs):
        channels = np.zeros(norm.values.shape[-1], np.float32)
        return {"scale": channels + 1, "bias": channels}

    def forward(norms, values, affine):
        return [apply(*arguments) for arguments in zip(norms, values, affine, strict=True)]

    def run(values, affine, cotangents, frozen_values, frozen_affine):
        out, pull_back = jax.vjp(lambda *arguments: forward(trained, *arguments), values, affine)
        return out, pull_back(cotangents), forward(frozen, frozen_values, frozen_affine)

    arguments = (
        [norm.values for norm in trained],
        [parameters(norm) for norm in trained],
        [norm.cotangent for norm in trained],
        [norm.values for norm in frozen],
        [parameters(norm) for norm in frozen],
    )
    return Workload(*compile_call(jax.jit(run), *jax.device_put(arguments)))


def _alignment(inputs: PeerInputs) -> Workload:
    def align(logits, alignment, boxes, offsets):
        box_rows, offset_rows = (x.reshape(x.shape[0], -1, x.shape[-1]) for x in (boxes, offsets))
        aligned = align_boxes(box_rows, offset_rows, (boxes.shape[1:3],))
        return sigmoid_geometric_mean(logits, alignment), aligned.reshape(boxes.shape)

    def run(levels):
        def forward(levels):
            return [align(*level) for level in levels]

        out, pull_back = jax.vjp(forward, levels)
        return out, pull_back(out)

    levels = jax.device_put([tuple(level) for level in alignment_inputs(inputs)])
    return Workload(*compile_call(jax.jit(run), levels))


def _losses(inputs: PeerInputs) -> Workload:
    def total(scores, boxes, batch):
        return detection_losses(Predictions(scores, boxes), batch, True, inputs.config).total

    pred = loss_predictions(inputs)
    arguments = jax.device_put((pred.scores, pred.boxes, inputs.batch))
    return Workload(*compile_call(jax.jit(jax.value_and_grad(total, argnums=(0, 1))), *arguments))


def _optimizer(inputs: PeerInputs) -> Workload:
    """As in the training step: with the gradient's norm, and without an update if that is not finite."""
    optimizer, params = make_optimizer(inputs.config), inputs.variables["params"]

    def update(state, gradients):
        finite = jnp.isfinite(optax.tree.norm(gradients))
        return updated_state(state, gradients, {}, finite, 1e-12, optimizer, ema_decay=None)

    gradients = jax.device_put(jax.tree.map(lambda x: 0.01 * x, params))
    state = jax.device_put(TrainState(jnp.int32(0), params, {}, optimizer.init(params), {}))
    program = compile_program(jax.jit(update, donate_argnums=0), state, gradients)

    def run() -> Any:
        nonlocal state
        state = program.run(state, gradients)
        return state

    return Workload(run, program)
