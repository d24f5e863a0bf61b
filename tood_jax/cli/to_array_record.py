"""Write a COCO directory as ArrayRecord shards:

    python -m tood_jax.cli.to_array_record --images DIR --annotations FILE --out FOLDER [--shards N]

and train with --data.train.records=FOLDER. The samples are bit-identical to those of the directory. After an
interruption the same command continues; a folder without `records.json` counts as incomplete. docs/data.md describes
the format.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import tyro
from tqdm import tqdm

from tood_jax.cli.command_line import refuse_repeated_options
from tood_jax.cli.common import report_errors
from tood_jax.cli.outputs import check_output_file, check_output_folder, is_same_file, starts_with_keys
from tood_jax.config import SplitConfig
from tood_jax.config.paths import expand_paths
from tood_jax.data.convert_folder import IMAGES_PER_SHARD
from tood_jax.data.errors import DataError
from tood_jax.data.formats.array_record import INDEX, write_array_record
from tood_jax.data.formats.coco import load_coco, read_coco_json
from tood_jax.data.paths import as_path, is_remote, read_bytes
from tood_jax.untrusted.terminal import print_line

PROG = "python -m tood_jax.cli.to_array_record"


@dataclass(frozen=True)
class Args:
    images: str
    """Folder of the image files; may be remote, such as gs://…"""
    annotations: str
    """COCO instances JSON; may be remote."""
    out: str
    """Folder to write, on a local disk."""
    shards: int = 0
    """Number of files; 0 writes one for every 2,000 images."""


def main(argv: list[str] | None = None) -> None:
    """Run `python -m tood_jax.cli.to_array_record`."""
    argv = sys.argv[1:] if argv is None else argv
    description = "Write a COCO directory as ArrayRecord shards."
    refuse_repeated_options(argv, PROG)
    args = tyro.cli(Args, args=argv, prog=PROG, description=description, use_underscores=True)
    with report_errors(PROG):
        print_line(convert(expand_paths(args)))


def convert(args: Args) -> str:
    """Write the folder, and return a message on what it has. Raises DataError or ConfigError."""
    if args.shards < 0:
        raise DataError(f"--shards={args.shards} must be at least 0.")
    out = as_path(args.out)
    if is_remote(out):
        raise DataError(f"--out={args.out} must be a local folder: write there, then copy it (gcloud storage cp -r).")
    check_output_folder("--out", args.out)
    if is_same_file(out, args.images):
        raise DataError(f"--out={args.out} is the folder of the images: name another one.")
    check_output_file("--out", Path(out) / INDEX, starts_with_keys("format", "images", "shards"), [args.annotations])
    dataset = load_coco(SplitConfig(args.images, args.annotations))  # finds errors before hours of work
    annotations = read_bytes(as_path(args.annotations))
    entries = read_coco_json(annotations, args.annotations)["images"]
    images = [(entry["file_name"], record.path) for entry, record in zip(entries, dataset.images, strict=True)]
    shards = args.shards or -(-len(images) // IMAGES_PER_SHARD)
    with tqdm(total=len(images), unit="image", disable=None, leave=False) as progress:
        written, found = write_array_record(annotations, images, Path(out), shards, progress.update)
    existing = f" ({found} of them existed)" if found else ""
    size = sum(file.stat().st_size for file in Path(out).iterdir())
    return (
        f"{args.out}: {len(images)} images in {written + found} shards{existing}, {size / 1e6:.1f} MB. "
        f"Next: --data.train.records={args.out}"
    )


if __name__ == "__main__":
    main()
