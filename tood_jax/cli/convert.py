"""Convert weights from one kind of file to another: python -m tood_jax.cli.convert

--config configs/NAME.py --weights tood.pth --out runs/tood     a published checkpoint, for eval.py and predict.py
--config configs/NAME.py --weights tood.pth --out x.safetensors  … under flax names, to be read without PyTorch
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

from tood_jax.checkpoint.reader import list_steps, nest
from tood_jax.checkpoint.store import CheckpointStore
from tood_jax.cli.command_line import parse, refuse_repeated_options
from tood_jax.cli.common import config_of, parse_step, report_errors
from tood_jax.cli.outputs import check_output_file, is_same_file
from tood_jax.config import Config, ConfigError, to_dict
from tood_jax.config.paths import expand_home
from tood_jax.data.dataset import class_names
from tood_jax.data.formats.array_record import ANNOTATIONS
from tood_jax.models.build import build_model
from tood_jax.untrusted.terminal import print_line
from tood_jax.weights.classes import Classes, find_classes
from tood_jax.weights.conventions import swap_channels
from tood_jax.weights.files import WeightsFile, is_weights_file, write_weights
from tood_jax.weights.load import Weights, fit_to_model, open_source
from tood_jax.weights.mapping import WeightsError, export_tensors
from tood_jax.weights.naming import Kind, batch_norm_counters, in_backbone, naming_of
from tood_jax.weights.shapes import DetectorShapes, detector_shapes

PROG = "python -m tood_jax.cli.convert"


@dataclass(frozen=True)
class Args:
    weights: str = ""
    """Input: a .pth or .safetensors file, a run's folder (its moving average, if it has one), the folder of one
    step, hf://USER/REPO[@REVISION][/FILE], https://…/FILE, or the name of an ImageNet backbone: resnet50. The kind
    is recognized by the names: flax, mmdetection's, the authors', or an ImageNet ResNet's."""
    step: str = "best"
    """Step of a run: best (by train.best), latest, or the number of a saved step."""
    out: str = ""
    """Output: a file in .pth (needs PyTorch) or .safetensors; any other name is the folder of a new checkpoint."""
    names: Literal["auto", "flax", "mmdetection", "authors", "torchvision"] = "auto"
    """Names in the output file; torchvision writes the backbone alone; auto is flax for .safetensors and mmdetection
    for .pth."""
    channel_order: Literal["rgb", "bgr"] = "rgb"
    """Channel order of the first convolution of `weights`; bgr (Caffe's ResNets) is converted to rgb."""
    overwrite: bool = False
    """Replace the file `out` if it exists."""


def main(argv: list[str] | None = None, prog: str = PROG) -> None:
    """Run `python -m tood_jax.cli.convert`."""
    argv = sys.argv[1:] if argv is None else argv
    refuse_repeated_options(argv, prog)
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for option, default in (("--weights", ""), ("--step", "best"), ("--out", "")):
        early.add_argument(option, default=default, nargs="?")
    given = early.parse_known_args(argv)[0]
    source, stored = None, None
    with report_errors(prog):
        if given.weights and given.out:
            check_output(expand_home(given.out), expand_home(given.weights))
        if given.weights:
            source = open_source(expand_home(given.weights), parse_step(given.step or ""), print_line)
            if "config" in source.about and not any(word.split("=")[0] == "--config" for word in argv):
                stored = config_of(source.about["config"], given.weights, prog)
    description = "Convert weights: mmdetection, the authors, torchvision, timm, .safetensors and runs of this package."
    args, config = parse(Args, argv, prog=prog, description=description, default_config=stored or "")
    with report_errors(prog):
        if source is None or not args.out:
            raise ConfigError("Name the input and the output: --weights FILE_OR_RUN --out FILE_OR_FOLDER.")
        for line in convert(source, args, config):
            print_line(line)


def convert(source: WeightsFile, args: Args, config: Config) -> list[str]:
    """Convert `source` by the options, and return messages for the user.

    Raises:
        WeightsError: `source` does not match the config's model, or can't be converted to this kind of output.
    """
    shapes = detector_shapes(lambda num_classes: build_model(config, num_classes))
    weights = fit_to_model(source, args.weights, config, shapes)
    messages = [_describe(weights, args.weights)]
    if args.channel_order == "bgr":
        weights = weights._replace(tensors=swap_channels(weights.tensors))
        messages.append("Swapped the first convolution's input channels from BGR to RGB.")
        if config.data.pixel_std != (1, 1, 1):
            messages.append("Note: if it was trained without a standard deviation, set data.pixel_std=1,1,1.")
    else:
        messages += [f"Note: {note}" for note in weights.notes]
    classes, origin = None, ""
    if weights.num_classes is not None:
        stored = source.about.get("classes")
        val = config.data.val
        annotations = f"{val.records}/{ANNOTATIONS}" if val.records else val.annotations
        classes, origin = find_classes(args.weights, weights.num_classes, source.class_names, stored, annotations)
        messages.append(f"Classes from {origin}." if classes else f"Note: {origin}.")
    if is_weights_file(args.out):
        written = _write_file(weights, source.class_names, classes, shapes, args, config)
    else:
        written = _write_checkpoint(weights, classes, origin, args, config)
    return [*messages, *written]


def check_output(out: str, weights: str) -> None:
    """Refuse an `out` that is the input, or a folder with the name of a file. Raises ConfigError."""
    if is_weights_file(out):
        check_output_file("--out", out, None, [weights])
    elif is_same_file(out, weights):
        raise ConfigError(f"--out={out} is the input folder: name a new folder.")


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
    variables = {name: array for name, array in weights.tensors.items() if in_backbone(name) or not backbone_only}
    naming = naming_of(kind, config, shapes.one_class, backbone_only=backbone_only)
    absent = [entry.torch_name for entry in naming.entries if "/".join(entry.path) not in variables]
    naming = naming._replace(entries=tuple(entry for entry in naming.entries if entry.torch_name not in absent))
    tensors = export_tensors(variables, naming)
    if kind != "flax":
        tensors |= {name: np.asarray(0, np.int64) for name in batch_norm_counters(naming)}
    about: Mapping[str, Any] = {"config": to_dict(config)}
    if classes is not None and not backbone_only:
        about = {**about, "classes": [category._asdict() for category in classes]}
        names = class_names(classes)
    write_weights(args.out, tensors, None if backbone_only else names, about)
    message = f"Wrote {args.out}: {len(tensors)} tensors, named as by {kind}."
    return [f"{message} Next: tood train --config … --init_from {args.out}" if backbone_only else message]


def _write_checkpoint(weights: Weights, classes: Classes | None, reason: str, args: Args, config: Config) -> list[str]:
    if weights.backbone_only:
        raise WeightsError(
            f"{args.weights} is a backbone, and a checkpoint holds a whole detector. Train one with "
            f"train.py --init_from {args.weights}, or write a file: --out NAME.safetensors."
        )
    if classes is None:
        raise WeightsError(f"{reason}: name the set's instances JSON, --data.val.annotations=FILE.")
    if Path(args.out).exists() and (not Path(args.out).is_dir() or any(Path(args.out).iterdir())):
        raise WeightsError(f"{args.out} exists; name a new folder.")
    about = {
        "config": to_dict(config),
        "classes": [category._asdict() for category in classes],
        "converted_from": args.weights,
    }
    with CheckpointStore(Path(args.out) / "checkpoints", 1) as store:
        saved = store.save(0, nest(weights.tensors), about)
    if not saved or not list_steps(Path(args.out) / "checkpoints"):
        raise WeightsError(f"{args.out} could not be written.")
    return [f"Wrote {args.out}, step 0. Next: tood eval --checkpoint {args.out}"]


if __name__ == "__main__":
    main()
