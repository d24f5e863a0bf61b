"""Weights from one kind of file to another: python -m tood_jax.cli.convert

--config configs/NAME.py --weights tood.pth --out runs/tood     a published checkpoint, for eval.py and predict.py
--config configs/NAME.py --weights tood.pth --out x.safetensors  … under our names, without PyTorch from then on
--weights runs/NAME --out x.pth                                  a run, for mmdetection
--config configs/NAME.py --weights resnet50.pth --out r50.safetensors   an ImageNet backbone, for train.py --init_from
"""

import argparse
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from tood_jax.build import build_model
from tood_jax.cli.common import said_in_one_sentence
from tood_jax.cli.options import parse
from tood_jax.config import Config, ConfigError, from_dict, to_dict
from tood_jax.data.records import ANNOTATIONS
from tood_jax.training.checkpoint_files import list_steps, nest
from tood_jax.training.checkpoints import CheckpointStore
from tood_jax.weights.classes import Classes, find_classes
from tood_jax.weights.conventions import swap_channels
from tood_jax.weights.files import WeightsFile, is_weights_file, write_weights
from tood_jax.weights.load import Weights, fit, open_source
from tood_jax.weights.mapping import WeightsError, export_tensors
from tood_jax.weights.naming import Kind, counters, in_backbone, naming_of
from tood_jax.weights.shapes import DetectorShapes, detector_shapes

PROG = "python -m tood_jax.cli.convert"


@dataclass(frozen=True)
class Args:
    weights: str = ""
    """What to convert: a .pth or .safetensors file, a run's folder (its moving average, if it kept one), or the folder
    of one step. Its names tell its kind: ours, mmdetection's, the authors', or an ImageNet ResNet's."""
    step: str = "best"
    """Of a run: best (by AP), latest, or the number of a saved step."""
    out: str = ""
    """Where to: a file in .pth (needs PyTorch) or .safetensors; any other name is a folder, made into a checkpoint."""
    names: Literal["auto", "flax", "mmdetection", "authors", "torchvision"] = "auto"
    """Names in the file to write: flax are ours, torchvision is the backbone alone; auto is flax for .safetensors and
    mmdetection for .pth."""
    channel_order: Literal["rgb", "bgr"] = "rgb"
    """What the first convolution of `weights` takes; bgr (Caffe's ResNets) is turned into rgb."""
    overwrite: bool = False
    """Replace the file `out` if there is one."""


def main(argv: list[str] | None = None) -> None:
    """`python -m tood_jax.cli.convert`."""
    argv = sys.argv[1:] if argv is None else argv
    peek = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for option, default in (("--weights", ""), ("--step", "best")):
        peek.add_argument(option, default=default, nargs="?")
    given = peek.parse_known_args(argv)[0]
    source, stored = None, None
    with said_in_one_sentence(PROG):
        if given.weights:
            source = open_source(given.weights, _step(given.step or ""))
            if "config" in source.about and not any(word.split("=")[0] == "--config" for word in argv):
                stored = from_dict(source.about["config"])
    description = "Convert weights: mmdetection, the authors, torchvision, timm, .safetensors and runs of this package."
    args, config = parse(Args, argv, prog=PROG, description=description, default_config=stored or "")
    with said_in_one_sentence(PROG):
        if source is None or not args.out:
            raise ConfigError("Name what to convert and where to: --weights FILE_OR_RUN --out FILE_OR_FOLDER.")
        for line in convert(source, args, config):
            print(line)


def convert(source: WeightsFile, args: Args, config: Config) -> list[str]:
    """Write `source` as the options want it; returns what to tell the user.

    Raises:
        WeightsError: it doesn't fit the config's model, or can't become what is asked for.
    """
    shapes = detector_shapes(lambda num_classes: build_model(config, num_classes))
    weights = fit(source, args.weights, config, shapes)
    said = [_describe(weights, args.weights)]
    if args.channel_order == "bgr":
        weights = weights._replace(tensors=swap_channels(weights.tensors))
        said.append("Swapped the first convolution's input channels from BGR to RGB.")
        if config.data.pixel_std != (1, 1, 1):
            said.append("Note: if it was trained without a standard deviation, set data.pixel_std=1,1,1 in its runs.")
    else:
        said += [f"Note: {note}" for note in weights.notes]
    classes, origin = None, ""
    if weights.num_classes is not None:
        stored = source.about.get("classes")
        val = config.data.val
        annotations = f"{val.records}/{ANNOTATIONS}" if val.records else val.annotations
        classes, origin = find_classes(args.weights, weights.num_classes, source.class_names, stored, annotations)
        said.append(f"Classes from {origin}." if classes else f"Note: {origin}.")
    if is_weights_file(args.out):
        written = _write_file(weights, source.class_names, classes, shapes, args, config)
    else:
        written = _write_checkpoint(weights, classes, origin, args, config)
    return [*said, *written]


def _step(text: str) -> Any:
    if not (text.isdigit() or text in ("best", "latest")):
        raise ConfigError(f"--step={text} must be best, latest or the number of a saved step.")
    return int(text) if text.isdigit() else text


def _describe(weights: Weights, where: str) -> str:
    what = "a backbone" if weights.backbone_only else f"a detector of {weights.num_classes} classes"
    unused = f"; not used: {', '.join(weights.left_out)}" if weights.left_out else ""
    return f"{where}: {what}, {len(weights.tensors)} tensors, named as by {weights.kind}{unused}."


def _write_file(
    weights: Weights,
    names: tuple[str, ...] | None,
    classes: Classes | None,
    shapes: DetectorShapes,
    args: Args,
    config: Config,
) -> list[str]:
    if Path(args.out).exists() and not args.overwrite:
        raise WeightsError(f"{args.out} exists; name another file, or replace it with --overwrite.")
    kind: Kind = "flax" if args.out.endswith(".safetensors") else "mmdetection"
    kind = kind if args.names == "auto" else args.names
    backbone_only = weights.backbone_only or kind == "torchvision"
    ours = {name: array for name, array in weights.tensors.items() if in_backbone(name) or not backbone_only}
    naming = naming_of(kind, config, shapes.one, backbone_only=backbone_only)
    absent = [entry.torch_name for entry in naming.entries if "/".join(entry.path) not in ours]
    naming = naming._replace(entries=tuple(entry for entry in naming.entries if entry.torch_name not in absent))
    tensors = export_tensors(ours, naming)
    if kind != "flax":
        tensors |= {name: np.asarray(0, np.int64) for name in counters(naming)}
    about: Mapping[str, Any] = {"config": to_dict(config)}
    if classes is not None and not backbone_only:
        about = {**about, "classes": [one._asdict() for one in classes]}
        names = tuple(one.name for one in classes)
    write_weights(args.out, tensors, None if backbone_only else names, about)
    said = f"Wrote {args.out}: {len(tensors)} tensors, named as by {kind}."
    return [f"{said} Next: python train.py --config … --init_from {args.out}" if backbone_only else said]


def _write_checkpoint(weights: Weights, classes: Classes | None, why: str, args: Args, config: Config) -> list[str]:
    if weights.backbone_only:
        raise WeightsError(
            f"{args.weights} is a backbone, and a checkpoint holds a whole detector. Train one with "
            f"train.py --init_from {args.weights}, or write a file: --out NAME.safetensors."
        )
    if classes is None:
        raise WeightsError(f"{why}: name the set's instances JSON, --data.val.annotations=FILE.")
    if Path(args.out).exists() and (not Path(args.out).is_dir() or any(Path(args.out).iterdir())):
        raise WeightsError(f"{args.out} exists; name a new folder.")
    about = {
        "config": to_dict(config),
        "classes": [one._asdict() for one in classes],
        "converted_from": args.weights,
    }
    with CheckpointStore(Path(args.out) / "checkpoints", 1) as store:
        saved = store.save(0, nest(weights.tensors), about)
    if not saved or not list_steps(Path(args.out) / "checkpoints"):
        raise WeightsError(f"{args.out} could not be written.")
    return [f"Wrote {args.out}, step 0. Next: python eval.py --checkpoint {args.out}"]


if __name__ == "__main__":
    main()
