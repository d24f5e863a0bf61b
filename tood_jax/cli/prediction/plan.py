"""Find what predict.py reads, and check what it writes before anything is computed."""

import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax

from tood_jax.api.rows import import_pyarrow
from tood_jax.cli.outputs import check_output_file, check_output_folder
from tood_jax.cli.prediction.formats import FORMATS, check_labels_folder
from tood_jax.cli.prediction.image_search import LeftOutFiles
from tood_jax.cli.prediction.job import JobFolder
from tood_jax.cli.prediction.options import Args
from tood_jax.cli.prediction.readers import Images
from tood_jax.cli.prediction.unique_names import UniqueNames, drawing_name
from tood_jax.cli.prediction.video import Video, find_video
from tood_jax.cli.written_files import WrittenFiles
from tood_jax.config import ConfigError
from tood_jax.data.views import Views, parse_variants
from tood_jax.untrusted.printable import printable


@dataclass
class Plan:
    """What to read and to write."""

    images: Images
    video: Video | None  # instead of images
    count: int | None  # of images; None if a video doesn't tell it
    views: Views
    out: Path
    written: WrittenFiles
    job: JobFolder
    left_out: LeftOutFiles


def plan_job(args: Args) -> Plan:
    """Find the images and check that no output replaces an input or a file that predict.py did not write.

    Raises:
        ConfigError: an option is invalid, or an output would replace a file.
        DataError: there are no images.
    """
    if args.threshold is not None and not 0 <= args.threshold <= 1:
        raise ConfigError(f"--threshold={args.threshold} must be a number from 0 to 1.")
    if args.batch < 0:
        raise ConfigError(f"--batch={args.batch} must be at least 1, or 0 for the default.")
    if not args.format:
        raise ConfigError(f"--format is empty: name one of {', '.join(FORMATS)}.")
    views = Views(args.tiles, args.overlap, parse_variants(args.tta))
    check_output_folder("--out", args.out)
    out = Path(args.out)
    source = find_video(args.images)
    video = None if source is None else _open_video(args, source)
    images, left_out = Images(args.images, out), LeftOutFiles()
    written = WrittenFiles(out)
    for name in args.format:
        path, writer = out / FORMATS[name].NAME, FORMATS[name]
        if name == "parquet":
            import_pyarrow()  # checked now, because the file is written at the end
        if name == "yolo":
            check_output_folder("--out", path)
            check_labels_folder(path)
        else:
            sources = [pattern.removeprefix("@") for pattern in args.images]
            check_output_file("--out", path, partial(writer.is_own, path), sources)
    job = JobFolder(out)
    count: int | None
    if video is not None:
        count = video.count
        if args.draw:
            check_output_file("--out", out / video.drawing, lambda _: written.has(video.drawing), args.images)
    elif args.draw:
        count = _check_drawings(out, images, written, left_out)
    else:
        count = sum(1 for _ in images.find(left_out))
    out.mkdir(parents=True, exist_ok=True)
    return Plan(images, video, count, views, out, written, job, left_out)


def _open_video(args: Args, source: str) -> Video:
    """Open a video. Raises ConfigError for what only images can do, and DataError."""
    if args.resume:
        raise ConfigError("--resume continues a job of images; a video is read from its start.")
    if jax.process_count() > 1:
        raise ConfigError("a video is read by one process: start predict.py without the launcher.")
    return Video(source)


def _check_drawings(out: Path, images: Images, written: WrittenFiles, left_out: LeftOutFiles) -> int:
    """Return the number of images; raise ConfigError if a drawing would replace an input or another program's file."""
    existing: dict[tuple[int, int], str] = {}
    names, count = UniqueNames(), 0
    for count, path in enumerate(images.find(left_out), 1):  # noqa: B007  the number is used below
        name = names(drawing_name(path.name))
        if os.path.lexists(out / name):
            status = os.stat(out / name) if (out / name).exists() else os.lstat(out / name)
            existing[status.st_dev, status.st_ino] = name
    for path in images.find() if existing else ():
        if not (isinstance(path, Path) and path.exists()):
            continue
        status = path.stat()
        if name := existing.get((status.st_dev, status.st_ino), ""):
            raise ConfigError(
                f"--out={printable(out)}: the drawing {printable(name)} would replace an input image: name another "
                "folder."
            )
    for name in existing.values():
        if not written.has(name):
            raise ConfigError(
                f"--out={printable(out)} has a file {printable(name)} that predict.py did not write, and a drawing "
                "would replace it: name another folder, or set --draw False."
            )
    return count
