"""Names of the published mmdetection checkpoints ↔ our parameters, as one table used in both directions."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from tood_jax.config import Config
from tood_jax.networks.resnet import BLOCKS

Path = tuple[str, ...]


class Entry(NamedTuple):
    """One tensor. `element` picks one element of ours (the levels' scales are five scalars there, one vector here)."""

    torch_name: str
    path: Path  # collection first: ("params", …) or ("batch_stats", …)
    element: int | None = None


def _conv(torch: str, path: Path, bias: bool) -> Iterator[Entry]:
    yield Entry(f"{torch}.weight", ("params", *path, "kernel"))
    if bias:
        yield Entry(f"{torch}.bias", ("params", *path, "bias"))


def _norm(torch: str, path: Path, batch: bool) -> Iterator[Entry]:
    yield Entry(f"{torch}.weight", ("params", *path, "norm", "scale"))
    yield Entry(f"{torch}.bias", ("params", *path, "norm", "bias"))
    if batch:
        yield Entry(f"{torch}.running_mean", ("batch_stats", *path, "norm", "mean"))
        yield Entry(f"{torch}.running_var", ("batch_stats", *path, "norm", "var"))


def _backbone(config: Config) -> Iterator[Entry]:
    batch, letter = config.backbone.norm != "group", "bn" if config.backbone.norm != "group" else "gn"
    depth = config.backbone.depth
    convs = 3 if depth >= 50 else 2
    yield from _conv("backbone.conv1", ("backbone", "conv1"), False)
    yield from _norm(f"backbone.{letter}1", ("backbone", "norm1"), batch)
    for stage, blocks in enumerate(BLOCKS[depth], start=1):
        for block in range(blocks):
            torch, path = f"backbone.layer{stage}.{block}", ("backbone", f"layer{stage}_{block}")
            for i in range(1, convs + 1):
                yield from _conv(f"{torch}.conv{i}", (*path, f"conv{i}"), False)
                yield from _norm(f"{torch}.{letter}{i}", (*path, f"norm{i}"), batch)
            if block == 0 and (stage > 1 or depth >= 50):
                yield from _conv(f"{torch}.downsample.0", (*path, "downsample_conv"), False)
                yield from _norm(f"{torch}.downsample.1", (*path, "downsample_norm"), batch)


def _neck(config: Config) -> Iterator[Entry]:
    plain = config.neck.norm == "none"
    for torch, ours, count in (("lateral_convs", "lateral", 3), ("fpn_convs", "output", 5)):
        for i in range(count):
            yield from _conv(f"neck.{torch}.{i}.conv", ("neck", f"{ours}_{i}"), plain)
            if not plain:
                yield from _norm(f"neck.{torch}.{i}.gn", ("neck", f"{ours}_{i}_norm"), False)


def _head(config: Config) -> Iterator[Entry]:
    for i in range(config.head.num_convs):
        yield from _conv(f"bbox_head.inter_convs.{i}.conv", ("head", f"inter_{i}"), False)
        yield from _norm(f"bbox_head.inter_convs.{i}.gn", ("head", f"inter_{i}_norm"), False)
    for task in ("cls", "reg"):
        torch, path = f"bbox_head.{task}_decomp", ("head", f"{task}_decomposition")
        yield from _conv(f"{torch}.layer_attention.0", (*path, "attention_0"), True)
        yield from _conv(f"{torch}.layer_attention.2", (*path, "attention_1"), True)
        yield Entry(f"{torch}.reduction_conv.conv.weight", ("params", *path, "reduction"))
        yield from _norm(f"{torch}.reduction_conv.gn", (*path, "norm"), False)
    for torch, ours in (
        ("tood_cls", "cls_logits"),
        ("tood_reg", "reg_sides"),
        ("cls_prob_module.0", "cls_alignment_0"),
        ("cls_prob_module.2", "cls_alignment_1"),
        ("reg_offset_module.0", "reg_alignment_0"),
        ("reg_offset_module.2", "reg_alignment_1"),
    ):
        yield from _conv(f"bbox_head.{torch}", ("head", ours), True)
    for level in range(5):
        yield Entry(f"bbox_head.scales.{level}.scale", ("params", "head", "scales"), level)


def table(config: Config) -> tuple[Entry, ...]:
    """Every tensor of a TOOD of this config, torch name and ours."""
    return (*_backbone(config), *_neck(config), *_head(config))


def from_torch_layout(array: np.ndarray) -> np.ndarray:
    """OIHW kernels become HWIO; anything else stays."""
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array


def to_torch_layout(array: np.ndarray) -> np.ndarray:
    """HWIO kernels become OIHW; anything else stays."""
    return array.transpose(3, 2, 0, 1) if array.ndim == 4 else array


def import_state_dict(state_dict: Mapping[str, np.ndarray], config: Config) -> dict[str, Any]:
    """Flax variables {"params": …, "batch_stats": …} from a torch state dict of numpy arrays.

    Raises:
        ValueError: one error that lists every missing and every unexpected name.
    """
    entries = table(config)
    expected = {entry.torch_name for entry in entries}
    given = {name for name in state_dict if not name.endswith("num_batches_tracked")}
    if expected != given:
        missing, unexpected = sorted(expected - given), sorted(given - expected)
        raise ValueError(f"The weights don't fit {config.name}: missing {missing}, unexpected {unexpected}.")
    variables: dict[str, Any] = {}
    for entry in entries:
        *parents, leaf = entry.path
        node = variables
        for name in parents:
            node = node.setdefault(name, {})
        value = from_torch_layout(np.asarray(state_dict[entry.torch_name]))
        if entry.element is None:
            node[leaf] = value
        else:
            node.setdefault(leaf, []).append(value)
    variables["params"]["head"]["scales"] = np.stack(variables["params"]["head"]["scales"])
    return variables


def export_state_dict(variables: Mapping[str, Any], config: Config) -> dict[str, np.ndarray]:
    """The way back: flax variables (or anything shaped like them, gradients say) to torch names and layouts."""
    state_dict = {}
    for entry in table(config):
        value: Any = variables
        for name in entry.path:
            value = value[name]
        array = np.asarray(value)
        state_dict[entry.torch_name] = to_torch_layout(array if entry.element is None else array[entry.element])
    return state_dict
