"""TOOD, task-aligned one-stage object detection, in JAX and Flax."""

import os

# OpenCV refuses images of more pixels than this (decompression bombs); it reads the variable when it is loaded.
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(200_000_000))
