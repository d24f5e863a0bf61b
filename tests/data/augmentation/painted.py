"""Made images with coloured objects, and functions that a test names as data.augment_hook."""

import cv2
import numpy as np

from tood_jax.config import DataConfig
from tood_jax.data.augmentation.augment import Augmenter
from tood_jax.data.dataset import AnnotatedImage
from tood_jax.data.sampler import RowSpec

GREY = (90.0, 90.0, 90.0)  # pixel_mean, so that the background of an augmented image is grey too


def records(random, count, objects=2):
    """Images of random sizes, not smaller than what is made of them; the label of each object is its number."""
    found, label = [], 0
    for _ in range(count):
        height, width = random.integers(100, 180, 2)
        sides = random.integers(8, 60, (objects, 2))
        corner = np.floor(random.random((objects, 2)) * ((width, height) - sides))
        boxes = np.concatenate([corner, corner + sides], axis=1).astype(np.float32)
        labels = np.arange(label, label + objects, dtype=np.int32)
        found.append(AnnotatedImage(0, None, int(width), int(height), boxes, labels))
        label += objects
    return found


def paint(record, label=None):
    """Return the image, grey with a red rectangle in place of the object with this label."""
    image = np.full((record.height, record.width, 3), 110, np.uint8)
    for x1, y1, x2, y2 in record.boxes[record.labels == label].astype(int):
        image[y1:y2, x1:x2] = (200, 40, 40)
    return image


def augment(images, data, size, key, label=None, **flips):
    """Augment painted images; the same key gives the same geometry, whichever object is painted."""
    augmenter = Augmenter(data, num_classes=100)
    return augmenter(RowSpec(0, size, key=key, **flips), images, lambda position, _: paint(images[position], label))


def painted_extent(image):
    """Return xyxy of the pixels that are more than half as colourful as the most colourful one; None if none is."""
    values = image.astype(int)
    chroma = values.max(axis=2) - values.min(axis=2)
    if chroma.max() < 20:
        return None
    rows, columns = np.nonzero(chroma > chroma.max() / 2)
    return np.asarray([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])


def data_of(**fields):
    return DataConfig(pixel_mean=GREY, **fields)


def halve(rng, image, boxes, labels):
    """A hook: half the size, and only the first object."""
    return cv2.resize(image, None, fx=0.5, fy=0.5), boxes[:1] / 2, labels[:1]


def darken(rng, image, boxes, labels):
    """A hook with random numbers."""
    return (image * rng.uniform(0.2, 1)).astype(np.uint8), boxes, labels


def double(rng, image, boxes, labels):
    """A hook whose image is larger than the planned size."""
    return np.repeat(np.repeat(image, 2, 0), 2, 1), boxes * 2, labels


def forget_labels(rng, image, boxes, labels):
    return image, boxes


def float_image(rng, image, boxes, labels):
    return image / 255, boxes, labels


def flat_boxes(rng, image, boxes, labels):
    return image, boxes.ravel(), labels


def too_many_labels(rng, image, boxes, labels):
    return image, boxes, np.append(labels, 0)


def infinite_box(rng, image, boxes, labels):
    return image, boxes + np.inf, labels


def unknown_label(rng, image, boxes, labels):
    return image, boxes, labels + 1000


NO_FUNCTION = 3
