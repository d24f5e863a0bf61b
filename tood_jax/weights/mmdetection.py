"""Table of the tensors in published mmdetection checkpoints and the flax variables that they become."""

from collections.abc import Iterator
from typing import NamedTuple

from tood_jax.config import Config
from tood_jax.models.resnet import BLOCKS

Path = tuple[str, ...]


class Entry(NamedTuple):
    """One tensor; `element` is its position in the flax variable, where several scalars become one vector (scales)."""

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
                if i == 2 and stage in config.backbone.deformable_stages:
                    yield from _conv(f"{torch}.conv{i}.conv_offset", (*path, f"conv{i}", "conv_offset"), True)
                yield from _norm(f"{torch}.{letter}{i}", (*path, f"norm{i}"), batch)
            if block == 0 and (stage > 1 or depth >= 50):
                yield from _conv(f"{torch}.downsample.0", (*path, "downsample_conv"), False)
                yield from _norm(f"{torch}.downsample.1", (*path, "downsample_norm"), batch)


def _neck(config: Config) -> Iterator[Entry]:
    plain = config.neck.norm == "none"
    for torch, flax, count in (("lateral_convs", "lateral", 3), ("fpn_convs", "output", 5)):
        for i in range(count):
            yield from _conv(f"neck.{torch}.{i}.conv", ("neck", f"{flax}_{i}"), plain)
            if not plain:
                yield from _norm(f"neck.{torch}.{i}.gn", ("neck", f"{flax}_{i}_norm"), False)


def _head(config: Config) -> Iterator[Entry]:
    head = config.head
    yield from _t_tower(config) if head.kind == "t_head" else _parallel_towers(config)
    cls, reg, quality = _predictors(config)
    yield from _conv(f"bbox_head.{cls}", ("head", "cls_logits"), True)
    yield from _conv(f"bbox_head.{reg}", ("head", "reg_sides"), True)
    if head.quality != "none":
        yield from _conv(f"bbox_head.{quality}", ("head", "quality_logits"), True)
    if head.alignment:
        for torch, flax in (("cls_prob_module", "cls_alignment"), ("reg_offset_module", "reg_alignment")):
            yield from _conv(f"bbox_head.{torch}.0", ("head", "align", f"{flax}_0"), True)
            yield from _conv(f"bbox_head.{torch}.2", ("head", "align", f"{flax}_1"), True)
    for level in range(5 if head.level_scales else 0):
        yield Entry(f"bbox_head.scales.{level}.scale", ("params", "head", "scales"), level)


def _t_tower(config: Config) -> Iterator[Entry]:
    for i in range(config.head.num_convs):
        torch, path = f"bbox_head.inter_convs.{i}", ("head", f"inter_{i}")
        yield from _conv(f"{torch}.conv", path, False)
        if i < config.head.deformable_convs:
            yield from _conv(f"{torch}.conv.conv_offset", (*path, "conv_offset"), True)
        yield from _norm(f"{torch}.gn", ("head", f"inter_{i}_norm"), False)
    for task in ("cls", "reg"):
        torch, path = f"bbox_head.{task}_decomp", ("head", f"{task}_decomposition")
        yield from _conv(f"{torch}.layer_attention.0", (*path, "attention_0"), True)
        yield from _conv(f"{torch}.layer_attention.2", (*path, "attention_1"), True)
        yield Entry(f"{torch}.reduction_conv.conv.weight", ("params", *path, "reduction"))
        yield from _norm(f"{torch}.reduction_conv.gn", (*path, "norm"), False)


def _parallel_towers(config: Config) -> Iterator[Entry]:
    for task in ("cls", "reg"):
        for i in range(config.head.num_convs):
            torch, path = f"bbox_head.{task}_convs.{i}", ("head", f"{task}_tower", f"conv_{i}")
            yield from _conv(f"{torch}.conv", path, config.head.tower_bias)
            if config.head.norm == "group":
                yield from _norm(f"{torch}.gn", (*path[:-1], f"conv_{i}_norm"), False)


def _predictors(config: Config) -> tuple[str, str, str]:
    """Return mmdetection's names of the last convolutions (classes, boxes, quality), in its most similar head."""
    if config.head.kind == "t_head":
        return "tood_cls", "tood_reg", "tood_centerness"
    if config.assigner.kind == "max_iou":
        return "retina_cls", "retina_reg", "retina_centerness"
    if config.assigner.kind in ("center_sampling", "fovea", "simota", "ota"):
        return "conv_cls", "conv_reg", "conv_centerness"
    family = "gfl" if config.head.box_coding == "binned_distances" else "atss"
    return f"{family}_cls", f"{family}_reg", f"{family}_centerness"


def tensor_table(config: Config) -> tuple[Entry, ...]:
    """Return every tensor of the detector of a config."""
    return (*_backbone(config), *_neck(config), *_head(config))
