"""tood push: publish a trained detector on the Hugging Face Hub, or write the folder that would be published."""

import dataclasses
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from tood_jax.api import TrainedDetector, TrainedModel, load_trained_model
from tood_jax.checkpoint.reader import named_leaves
from tood_jax.cli.command_line import parse_without_config
from tood_jax.cli.common import config_of, parse_step, report_errors, use_compilation_cache
from tood_jax.cli.configs import describe_backbone, describe_head
from tood_jax.cli.outputs import check_output_file, check_output_folder, is_same_file, starts_with_keys
from tood_jax.config import Config, ConfigError, to_dict
from tood_jax.config.paths import PATH_OPTIONS
from tood_jax.data.dataset import class_names
from tood_jax.data.errors import DataError
from tood_jax.data.image_io import decode_image
from tood_jax.data.load_dataset import load_dataset
from tood_jax.files import write_atomically
from tood_jax.untrusted.printable import printable
from tood_jax.untrusted.terminal import print_line, print_warning
from tood_jax.visualization.draw import contact_sheet, draw_detections, encode_image, resize_for_drawing
from tood_jax.weights import hub
from tood_jax.weights.download import is_remote, parse_remote
from tood_jax.weights.files import write_weights
from tood_jax.weights.model_card import Card, card_text
from tood_jax.weights.model_folder import CONFIG, WEIGHTS, ModelFolder, model_json, open_model

PROG = "tood push"
CARD, PICTURE = "README.md", "detections.jpg"
_DRAWN_IMAGES = 4


@dataclass(frozen=True)
class Args:
    run: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN")] = ""
    """Run folder (runs/NAME), or the folder of one step."""
    repo: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="USER/REPO")] = ""
    """Repository on the Hub; created if missing."""
    step: str = "best"
    """best (by train.best), latest, or the number of a saved step."""
    revision: str = ""
    """Branch, created if missing; empty for the default branch."""
    private: bool = False
    """Create a private repository; an existing one must be private."""
    picture: bool = True
    """Publish a picture with detections in images of the val split, if they are on this machine."""
    dry_run: bool = False
    """Write the folder only, and upload nothing."""
    out: str = ""
    """The folder that is written; empty means hub in the run's folder."""


def main(argv: list[str] | None = None, prog: str = PROG) -> None:
    """Write the folder and upload it."""
    argv = sys.argv[1:] if argv is None else argv
    description = "Publish a trained detector on the Hugging Face Hub, with a model card (docs/weights.md)."
    args = parse_without_config(Args, argv, prog=prog, description=description)
    use_compilation_cache()
    with report_errors(prog):
        for line in push(args, prog):
            print_line(line)


def push(args: Args, prog: str) -> Iterator[str]:
    """Write the folder and upload it; yield messages for the user.

    Raises:
        ConfigError: an option is invalid, or the folder has files of other origin.
        CheckpointError: there is no checkpoint, or the upload failed.
    """
    if not args.run or not args.repo:
        raise ConfigError("name a run and a repository: tood push runs/NAME USER/REPO.")
    if parse_remote(f"hf://{args.repo}").address != f"hf://{'/'.join(args.repo.split('/')[:2])}" or "@" in args.repo:
        raise ConfigError(f"{printable(args.repo)} must have the form USER/REPO; --revision names a branch.")
    if is_remote(args.run):
        raise ConfigError(f"{printable(args.run)} must be a folder: runs/NAME.")
    if not args.dry_run:
        hub.import_hub()  # raises before the work
    checkpoint = open_model(args.run, parse_step(args.step), warn=print_warning)
    source = checkpoint.folder if isinstance(checkpoint, ModelFolder) else checkpoint.folder.parent.parent
    folder = Path(args.out) if args.out else source / "hub"
    _check_folder(folder, checkpoint.folder)
    config = config_of(checkpoint.about.get("config"), checkpoint.folder, prog)
    trained = load_trained_model(checkpoint, config)
    about = {**checkpoint.about, "config": to_dict(without_absolute_paths(config)), "step": checkpoint.step}
    for name in (WEIGHTS, PICTURE):  # of an earlier push
        (folder / name).unlink(missing_ok=True)
    write_atomically(folder / CONFIG, model_json(about))
    if args.picture:
        yield _write_picture(folder / PICTURE, trained, config)
    picture = PICTURE if (folder / PICTURE).exists() else ""
    network = f"{describe_backbone(config.backbone)}, {describe_head(config.head)}"
    data_name = Path(config.data.val.source).name
    names, metrics = class_names(trained.classes), about.get("metrics")
    card = Card(args.repo, args.revision, network, config.name, checkpoint.step, names, metrics, data_name, picture)
    write_atomically(folder / CARD, card_text(card).encode())
    variables = named_leaves({"params": trained.params, "batch_stats": trained.batch_stats})
    in_file = {key: about[key] for key in ("config", "classes")}
    write_weights(folder / WEIGHTS, {name: np.asarray(array) for name, array in variables.items()}, names, in_file)
    files = [name for name in (CONFIG, WEIGHTS, CARD, picture) if name]
    yield f"Wrote {folder}: {', '.join(files)}."
    if args.dry_run:
        yield f"Nothing was uploaded. Try it: tood predict --checkpoint {folder} --images …"
        return
    message = f"{config.name}, step {checkpoint.step}"
    local = {name: folder / name for name in files}
    address = hub.upload(args.repo, local, is_private=args.private, revision=args.revision, message=message)
    yield f"Uploaded: {printable(address)}. Next: tood predict --checkpoint {card.name} --images …"


def without_absolute_paths(config: Config) -> Config:
    """Return a config to publish: the names of folders on this machine are nobody else's business, nor of use."""
    splits = {name: _relative_only(getattr(config.data, name)) for name in ("train", "val")}
    train = _relative_only(config.train)
    return dataclasses.replace(config, train=train, data=dataclasses.replace(config.data, **splits))


def _relative_only(group: Any) -> Any:
    paths = {
        field.name: getattr(group, field.name) for field in dataclasses.fields(group) if field.name in PATH_OPTIONS
    }
    return dataclasses.replace(group, **{name: "" for name, path in paths.items() if path.startswith(("/", "~"))})


def _check_folder(folder: Path, source: Path) -> None:
    """Refuse a folder that is the input, or that has files but not those of an earlier push. Raises ConfigError."""
    check_output_folder("--out", folder)
    if is_same_file(folder, source):
        raise ConfigError(f"--out={printable(folder)} is the input folder: name a new folder.")
    check_output_file("--out", folder / CONFIG, starts_with_keys("format", "config", "classes"))
    if folder.is_dir() and any(folder.iterdir()) and not (folder / CONFIG).is_file():
        raise ConfigError(f"--out={printable(folder)} has other files: name a new folder.")


def _write_picture(path: Path, trained: TrainedModel, config: Config) -> str:
    """Draw detections in images of the val split, and return a message; what can't be read is no error."""
    try:
        images = [one for one in load_dataset(config.data.val, "skip", False).images if len(one.boxes)][:_DRAWN_IMAGES]
        pixels = [decode_image(image.path, bit_depth=config.data.bit_depth) for image in images]
    except (DataError, OSError) as error:
        return f"Note: there is no picture, because the val split can't be read: {error}"
    if not pixels:
        return "Note: there is no picture, because the val split has no objects."
    drawings = []
    for image, found in zip(pixels, TrainedDetector(trained, config)(pixels), strict=True):
        large, boxes = resize_for_drawing(image, found.boxes)
        drawings.append(draw_detections(large, boxes, found.scores, found.labels, class_names(trained.classes)))
    write_atomically(path, encode_image(path.name, contact_sheet(drawings, columns=2)))
    return f"Note: {path} shows {len(pixels)} images of the val split; --picture False publishes none."


if __name__ == "__main__":
    main()
