"""Data sets without files, for tests that read no image."""

import numpy as np

from tood_jax.data.dataset import AnnotatedImage, ClassInfo, Dataset
from tood_jax.data.load_report import LoadReport

CLASSES = (ClassInfo(1, "disc"), ClassInfo(2, "box"), ClassInfo(5, "star"))


def annotated_image(id_, width=64, height=48, boxes=((0, 0, 9, 9),), labels=(0,), path="a.jpg"):
    return AnnotatedImage(id_, path, width, height, np.asarray(boxes, np.float32).reshape(-1, 4), np.asarray(labels))


def dataset(*images, classes=CLASSES):
    return Dataset(classes, images, LoadReport(), ())


def some_images(count):
    return [annotated_image(i, boxes=[[i, 0, i + 5, 7]] * (i % 3), labels=[i % 2] * (i % 3)) for i in range(count)]
