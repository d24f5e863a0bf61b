"""The programs. Importing them sets what libraries read from the environment when they are loaded."""

import os

# OpenCV refuses images with more pixels than this (decompression bombs); data/image_io.py checks the same.
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(200_000_000))
