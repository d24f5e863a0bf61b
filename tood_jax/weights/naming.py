"""What kinds of files call the tensors: which kind a file is, and the table of that kind.

flax          params/backbone/conv1/kernel, our own: every variable by its path
mmdetection   backbone.conv1.weight, bbox_head.tood_cls.weight, …: the published checkpoints
authors       the same, with the authors' names of a few convolutions
torchvision   conv1.weight, layer1.0.conv1.weight, …: ImageNet backbones of torchvision, timm and open-mmlab
"""

from collections.abc import Iterable
from typing import Literal, get_args

from tood_jax.config import Config
from tood_jax.weights.mapping import Naming, Shapes, WeightsError, name_of
from tood_jax.weights.mmdetection import Entry, table

Kind = Literal["flax", "mmdetection", "authors", "torchvision"]
KINDS: tuple[Kind, ...] = get_args(Kind)

AUTHORS = (  # mmdetection's name, the authors' name
    (".layer_attention.0.", ".la_conv1."),
    (".layer_attention.2.", ".la_conv2."),
    (".cls_prob_module.0.", ".cls_prob_conv1."),
    (".cls_prob_module.2.", ".cls_prob_conv2."),
    (".reg_offset_module.0.", ".reg_offset_conv1."),
    (".reg_offset_module.2.", ".reg_offset_conv2."),
)
# In files and not wanted: a counter that only BatchNorm's cumulative mode reads, GFL's constant 0, 1, …, 16, and
# ImageNet's classifier in the files of torchvision, timm and mmpretrain.
_COUNTER, _CONSTANT = ".num_batches_tracked", "bbox_head.integral.project"
_CLASSIFIERS = ("fc.", "head.fc.")


def recognise(names: Iterable[str], where: str) -> Kind:
    """The kind of file that has tensors of these names. Raises WeightsError where it is none of them."""
    names = list(names)
    if any(name.startswith(("params/", "batch_stats/")) for name in names):
        return "flax"
    if any(theirs in name for name in names for _, theirs in AUTHORS):
        return "authors"
    if any(name.startswith(("backbone.", "bbox_head.")) for name in names):
        return "mmdetection"
    if any(name.startswith(("conv1.1.", "stem.")) for name in names):
        raise WeightsError(
            f"{where} has another stem than the published ResNets (timm's resnet50d, say): "
            f"take plain weights, such as torchvision's resnet50 or resnext101_64x4d."
        )
    if any(".se." in name or ".se_module." in name for name in names):
        raise WeightsError(f"{where} is a network with squeeze-and-excitation; take a plain ResNet or ResNeXt.")
    if "conv1.weight" in names and any(name.startswith("layer1.0.") for name in names):
        return "torchvision"
    some = ", ".join(names[:3])
    raise WeightsError(f"{where} has names of none of the kinds {', '.join(KINDS)}; it begins with {some}.")


def is_ignored(name: str) -> bool:
    """Whether a tensor of this name in a file has no counterpart here, and needs none."""
    return name.endswith((_COUNTER, _CONSTANT)) or name.startswith(_CLASSIFIERS)


def naming_of(kind: Kind, config: Config, shapes: Shapes, *, backbone_only: bool = False) -> Naming:
    """The table of a kind of file for a config's detector, whose variables have these shapes.

    "torchvision" is the backbone only, by its nature.
    """
    if kind == "flax":
        entries = tuple(Entry(name, tuple(name.split("/"))) for name in shapes)
    elif kind == "authors":
        entries = tuple(entry._replace(torch_name=authors_name(entry.torch_name)) for entry in table(config))
    else:
        entries = table(config)
    if backbone_only or kind == "torchvision":
        entries = tuple(entry for entry in entries if in_backbone(name_of(entry)))
    if kind == "torchvision":
        entries = tuple(entry._replace(torch_name=entry.torch_name.removeprefix("backbone.")) for entry in entries)
    return Naming(entries, torch_layout=kind != "flax")


def counters(naming: Naming) -> list[str]:
    """Names of BatchNorm's counters in a PyTorch file of this naming; a strict load there wants them."""
    ends = ".running_var"
    names = [entry.torch_name for entry in naming.entries]
    return [name.removesuffix(ends) + _COUNTER for name in names if name.endswith(ends)]


def authors_name(name: str) -> str:
    """What the authors' code calls mmdetection's tensor."""
    for ours, theirs in AUTHORS:
        name = name.replace(ours, theirs)
    return name


def in_backbone(name: str) -> bool:
    """Whether one of ours belongs to the backbone."""
    return name.split("/")[1] == "backbone"
