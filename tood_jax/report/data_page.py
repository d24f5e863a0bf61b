"""The HTML page of a check of a data set: findings, sizes, classes, and a contact sheet with the annotated boxes."""

import itertools

import numpy as np

from tood_jax.config import DataConfig
from tood_jax.data.dataset import AnnotatedImage, Dataset, class_names
from tood_jax.data.errors import DataError
from tood_jax.data.health import SIZE_LIMITS, Health, class_counts, size_counts
from tood_jax.data.image_io import decode_image
from tood_jax.data.transforms import resize, resized_size
from tood_jax.report.page import Section, paragraph, picture, render_page, table, text
from tood_jax.untrusted.printable import printable
from tood_jax.visualization.draw import draw_ground_truth, encode_image

GENERATOR = b'<meta name="generator" content="tood_jax">'  # in every page
SPLIT_HEADER = ("split", "images", "without objects", "boxes", "boxes per image", "at most", "image size")
CLASS_HEADER = ("class", "id")
_NAMED = 500  # cases of a finding
_PICTURES = 12  # of each split
_DRAWN_SIDES = (320, 480)  # short and long side of a picture, pixels
_CAPTION_LENGTH = 20  # characters of a class name


def data_page(health: Health, data: DataConfig) -> bytes:
    """Return the page; `data` is what the folder was checked with."""
    findings = [(one.level, one.split, one.number, one.what, one.named(_NAMED)) for one in health.sorted_findings()]
    found = table(("level", "split", "number", "what", "examples"), findings) if findings else paragraph("Nothing.")
    sections = [
        Section("Findings", found),
        Section("Splits", table(SPLIT_HEADER, split_rows(health))),
        Section("Object sizes", paragraph(describe_sizes(data)) + table(*size_table(health, data))),
        Section("Classes", table((*CLASS_HEADER, *health.datasets), class_rows(health))),
        *(Section(f"Images of {split}", _pictures(dataset)) for split, dataset in health.datasets.items()),
    ]
    return render_page(f"Data of {printable(health.folder)}", f"Layout: {health.layout}", sections).encode()


def split_rows(health: Health) -> list[tuple[object, ...]]:
    """Return the rows of SPLIT_HEADER."""
    rows: list[tuple[object, ...]] = []
    for split, dataset in health.datasets.items():
        counts = np.asarray([len(image.labels) for image in dataset.images])
        sizes = np.asarray([(image.width, image.height) for image in dataset.images])
        low, middle, high = ("×".join(str(int(side)) for side in row) for row in _spread(sizes))
        size = low if low == high else f"{low} to {high}, median {middle}"
        boxes = (int((counts == 0).sum()), int(counts.sum()), float(counts.mean()), int(counts.max()))
        rows.append((split, len(counts), *boxes, size))
    return rows


def _spread(sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return sizes.min(axis=0), np.median(sizes, axis=0), sizes.max(axis=0)


def describe_sizes(data: DataConfig) -> str:
    """Return what the sizes of `size_table` mean."""
    return (
        f"√area in pixels after resizing to data.eval_short_side={data.eval_short_side} and at most "
        f"data.max_long_side={data.max_long_side}. The strides of P3–P7 are 8, 16, 32, 64 and 128."
    )


def size_table(health: Health, data: DataConfig) -> tuple[tuple[str, ...], list[tuple[object, ...]]]:
    """Return header and rows: objects of each range of sizes, by split."""
    edges = ["0", *map(str, SIZE_LIMITS)]
    ranges = [f"{low}–{high}" for low, high in itertools.pairwise(edges)] + [f"{edges[-1]} and more"]
    rows = [(split, *size_counts(dataset, data)) for split, dataset in health.datasets.items()]
    return ("split", *ranges), rows


def class_rows(health: Health) -> list[tuple[object, ...]]:
    """Return a row of CLASS_HEADER and the objects in each split for each class, in the order of the first split."""
    counts = {
        split: dict(zip(dataset.classes, class_counts(dataset), strict=True))
        for split, dataset in health.datasets.items()
    }
    classes = dict.fromkeys(info for dataset in health.datasets.values() for info in dataset.classes)
    return [(info.name, info.id, *(one.get(info, 0) for one in counts.values())) for info in classes]


def _pictures(dataset: Dataset) -> str:
    """Return pictures of images that are spread evenly over a split; those that can't be read are left out."""
    step = max(1, len(dataset.images) // _PICTURES)
    names = [printable(name, _CAPTION_LENGTH) for name in class_names(dataset.classes)]
    figures: list[str] = []
    for image in dataset.images[::step]:
        if len(figures) == _PICTURES:
            break
        drawing = _draw(image, names)
        if drawing is not None:
            caption = f"<figcaption>{text(image.path.name)}: {len(image.labels)} objects</figcaption>"
            figures.append(f"<figure>{picture(drawing, 'jpeg', image.path.name)}{caption}</figure>")
    return f'<div class="pictures">{"".join(figures)}</div>'


def _draw(image: AnnotatedImage, names: list[str]) -> bytes | None:
    size = (image.height, image.width)
    try:
        pixels = decode_image(image.path, size)
    except (DataError, OSError):
        return None
    drawn_size = resized_size(*size, *_DRAWN_SIDES)
    scale = np.asarray([drawn_size[1] / size[1], drawn_size[0] / size[0]] * 2)
    drawing = draw_ground_truth(resize(pixels, drawn_size), image.boxes * scale, image.labels, names)
    return encode_image("picture.jpg", drawing)
