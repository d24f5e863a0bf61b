"""A COCO directory as ArrayRecord shards:

    python -m tood_jax.cli.to_array_record --images DIR --annotations FILE --out FOLDER [--shards N]

and then --data.train.records=FOLDER. The samples are those of the directory, bit for bit. Broken off, the same command
goes on where it was; a folder without `records.json` is not taken for whole. docs/data.md tells the format.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import tyro
from tqdm import tqdm

from tood_jax.cli.common import said_in_one_sentence
from tood_jax.config import SplitConfig
from tood_jax.data.coco import load_coco, read_coco_json
from tood_jax.data.errors import DataError
from tood_jax.data.paths import as_path, is_remote, read_bytes
from tood_jax.data.records import write_records

PROG = "python -m tood_jax.cli.to_array_record"
IMAGES_A_SHARD = 2000  # unless told otherwise: some 300 MB of COCO's


@dataclass(frozen=True)
class Args:
    images: str
    """Folder of the image files; may begin with gs:// and the like."""
    annotations: str
    """COCO instances JSON; likewise."""
    out: str
    """Folder to write, on a local disk."""
    shards: int = 0
    """Files to spread the images over; 0 makes one for every 2,000 images."""


def main(argv: list[str] | None = None) -> None:
    """The door."""
    argv = sys.argv[1:] if argv is None else argv
    description = "Write a COCO directory as ArrayRecord shards."
    args = tyro.cli(Args, args=argv, prog=PROG, description=description, use_underscores=True)
    with said_in_one_sentence(PROG):
        print(convert(args))


def convert(args: Args) -> str:
    """Write the folder and say what is there. Raises DataError in one sentence."""
    if args.shards < 0:
        raise DataError(f"--shards={args.shards} must be at least 0.")
    out = as_path(args.out)
    if is_remote(out):
        raise DataError(f"--out={args.out} must be a local folder: write there, then copy it (gcloud storage cp -r).")
    dataset = load_coco(SplitConfig(args.images, args.annotations))  # whatever is wrong is said before hours of work
    annotations = read_bytes(as_path(args.annotations))
    listed = read_coco_json(annotations, args.annotations)["images"]
    images = [(one["file_name"], record.path) for one, record in zip(listed, dataset.images, strict=True)]
    shards = args.shards or -(-len(images) // IMAGES_A_SHARD)
    with tqdm(total=len(images), unit="image", disable=None, leave=False) as progress:
        written, found = write_records(annotations, images, Path(out), shards, progress.update)
    already = f" ({found} were there already)" if found else ""
    size = sum(one.stat().st_size for one in Path(out).iterdir())
    return (
        f"{args.out}: {len(images)} images in {written + found} shards{already}, {size / 1e6:.1f} MB. "
        f"Next: --data.train.records={args.out}"
    )


if __name__ == "__main__":
    main()
