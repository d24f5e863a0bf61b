"""Kinds of files by the names of their tensors: recognize the kind, and look up its table of names.

flax          params/backbone/conv1/kernel, …: files of this package, every variable by its path
mmdetection   backbone.conv1.weight, bbox_head.tood_cls.weight, …: the published checkpoints
authors       the same, with the authors' names of a few convolutions
torchvision   conv1.weight, layer1.0.conv1.weight, …: ImageNet backbones of torchvision, timm and open-mmlab
"""

from collections.abc import Iterable
from typing import Literal, get_args

from tood_jax.config import Config
from tood_jax.weights.mapping import Naming, Shapes, WeightsError, flax_name
from tood_jax.weights.mmdetection import Entry, tensor_table

Kind = Literal["flax", "mmdetection", "authors", "torchvision"]
KINDS: tuple[Kind, ...] = get_args(Kind)

AUTHORS_NAMES = (  # mmdetection's name, the authors' name
    (".layer_attention.0.", ".la_conv1."),
    (".layer_attention.2.", ".la_conv2."),
    (".cls_prob_module.0.", ".cls_prob_conv1."),
    (".cls_prob_module.2.", ".cls_prob_conv2."),
    (".reg_offset_module.0.", ".reg_offset_conv1."),
    (".reg_offset_module.2.", ".reg_offset_conv2."),
)
# Tensors without a counterpart: a counter that only BatchNorm's cumulative mode reads, GFL's constant 0, 1, …, 16, and
# the ImageNet classifier in the files of torchvision, timm and mmpretrain.
_COUNTER, _CONSTANT = ".num_batches_tracked", "bbox_head.integral.project"
_CLASSIFIERS = ("fc.", "head.fc.")


def recognize_kind(names: Iterable[str], where: str) -> Kind:
    """Return the kind of a file with tensors of these names. Raises WeightsError for other networks."""
    names = list(names)
    if any(name.startswith(("params/", "batch_stats/")) for name in names):
        return "flax"
    if any(authors in name for name in names for _, authors in AUTHORS_NAMES):
        return "authors"
    if any(name.startswith(("backbone.", "bbox_head.")) for name in names):
        return "mmdetection"
    if any(name.startswith(("conv1.1.", "stem.")) for name in names):
        raise WeightsError(
            f"{where} has another stem than the published ResNets (for example timm's resnet50d): "
            f"use plain weights, such as torchvision's resnet50 or resnext101_64x4d."
        )
    if any(".se." in name or ".se_module." in name for name in names):
        raise WeightsError(f"{where} is a network with squeeze-and-excitation; use a plain ResNet or ResNeXt.")
    if "conv1.weight" in names and any(name.startswith("layer1.0.") for name in names):
        return "torchvision"
    some = ", ".join(names[:3])
    raise WeightsError(f"{where} has tensor names of none of the kinds {', '.join(KINDS)}; it begins with {some}.")


def is_ignored(name: str) -> bool:
    """Return whether a tensor of this name in a file has no counterpart in the model, and needs none."""
    return name.endswith((_COUNTER, _CONSTANT)) or name.startswith(_CLASSIFIERS)


def naming_of(kind: Kind, config: Config, shapes: Shapes, *, backbone_only: bool = False) -> Naming:
    """Return the table of names for a kind of file and the detector of a config.

    Args:
        kind: the kind of file; "torchvision" is always the backbone only.
        config: the config of the detector.
        shapes: the shapes of its variables, by flax name.
        backbone_only: leave out the neck and the head.
    """
    if kind == "flax":
        entries = tuple(Entry(name, tuple(name.split("/"))) for name in shapes)
    elif kind == "authors":
        entries = tuple(entry._replace(torch_name=authors_name(entry.torch_name)) for entry in tensor_table(config))
    else:
        entries = tensor_table(config)
    if backbone_only or kind == "torchvision":
        entries = tuple(entry for entry in entries if in_backbone(flax_name(entry)))
    if kind == "torchvision":
        entries = tuple(entry._replace(torch_name=entry.torch_name.removeprefix("backbone.")) for entry in entries)
    return Naming(entries, torch_layout=kind != "flax")


def batch_norm_counters(naming: Naming) -> list[str]:
    """Return the names of BatchNorm's counters in a PyTorch file; PyTorch's strict loading needs them."""
    ends = ".running_var"
    names = [entry.torch_name for entry in naming.entries]
    return [name.removesuffix(ends) + _COUNTER for name in names if name.endswith(ends)]


def authors_name(name: str) -> str:
    """Return the name in the authors' code of a tensor with this name in mmdetection."""
    for mmdetection, authors in AUTHORS_NAMES:
        name = name.replace(mmdetection, authors)
    return name


def in_backbone(name: str) -> bool:
    """Return whether a flax name belongs to the backbone."""
    return name.split("/")[1] == "backbone"
