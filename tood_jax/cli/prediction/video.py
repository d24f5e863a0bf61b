"""Frames of a video file, a camera or a network stream, and the video with drawings."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

import cv2
import numpy as np

from tood_jax.config import ConfigError
from tood_jax.config.paths import expand_home
from tood_jax.data.errors import DataError
from tood_jax.data.image_io import MAX_PIXELS
from tood_jax.untrusted.printable import printable
from tood_jax.untrusted.regular_files import file_kind

SUFFIXES = {".mp4", ".m4v", ".avi", ".mov", ".mkv", ".webm"}
_STREAMS = ("rtsp://", "rtsps://")
_DEFAULT_RATE = 25.0  # frames/s of a source that does not name its own
_MAX_RATE = 1000.0
_ENDS_EARLY = 0.98  # share of the announced number of frames, which some containers only estimate


@dataclass(frozen=True, eq=False)
class Frame:
    """One frame."""

    video: str
    number: int  # from 0
    pixels: np.ndarray  # [h, w, 3] uint8 RGB

    def __str__(self) -> str:
        return f"{self.video}/{self.number:06d}"


class Video:
    """A video that is read once, frame by frame.

    Args:
        source: a file, the number of a camera, or the address of an RTSP stream.

    Raises:
        DataError: it can't be opened.

    Attributes:
        name: of the source, without the password of an address.
        is_live: whether it goes on until it is interrupted.
        count: number of frames that the file announces; None if it is not known.
        rate: frames/s.
        read: number of frames read so far.
    """

    def __init__(self, source: str):
        self.name, self.is_live, self.read = _public_name(source), _is_live(source), 0
        path = source if self.is_live else expand_home(source)
        if not self.is_live:
            _check_file(source, Path(path))
        self._capture: cv2.VideoCapture | None
        try:
            self._capture = cv2.VideoCapture(int(path) if path.isdecimal() else path)
        except cv2.error:
            self._capture = None
        if self._capture is None or not self._capture.isOpened():
            raise DataError(
                f"--images {printable(self.name)} can't be opened as a video: check that it exists, is complete, "
                "and has a format that OpenCV reads."
            )
        count, rate = (self._capture.get(one) for one in (cv2.CAP_PROP_FRAME_COUNT, cv2.CAP_PROP_FPS))
        self.count = int(count) if 0 < count < 1e9 and not self.is_live else None
        self.rate = rate if 0 < rate <= _MAX_RATE else _DEFAULT_RATE

    @property
    def drawing(self) -> str:
        """The name of the file with drawings."""
        stem = PurePosixPath(urlsplit(self.name).path if self.is_live else self.name).stem
        return f"{stem or 'stream'}.mp4"

    def frames(self) -> Iterator[Frame]:
        """Yield the frames. Raises DataError if one is too large."""
        assert self._capture is not None
        while True:
            is_read, pixels = self._capture.read()
            if not is_read:
                break
            if pixels.shape[0] * pixels.shape[1] > MAX_PIXELS:
                raise DataError(f"{printable(self.name)} has frames of more than {MAX_PIXELS:,} pixels.")
            self.read += 1
            yield Frame(self.name, self.read - 1, cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB))
        self._capture.release()

    def messages(self) -> list[str]:
        """Return that a file ended early, if it did."""
        if self.count is None or self.read >= _ENDS_EARLY * self.count:
            return []
        return [f"{printable(self.name)} announces {self.count} frames, but {self.read} can be read; is it complete?"]


class VideoDrawing:
    """Writes frames to an MP4 file, all in the size of the first.

    Args:
        path: the file; it is complete after `close`.
        rate: frames/s.

    Attributes:
        path: the file.
    """

    def __init__(self, path: Path, rate: float):
        self.path, self._rate = path, rate
        self._writer: cv2.VideoWriter | None = None
        self._size = (0, 0)  # (width, height)

    def add(self, rgb: np.ndarray) -> None:
        """Write a frame, [h, w, 3] uint8. Raises DataError if OpenCV can't write MP4."""
        if self._writer is None:
            self._size = tuple(max(2, side // 2 * 2) for side in rgb.shape[1::-1])  # the codec needs even sides
            codec = cv2.VideoWriter.fourcc(*"mp4v")
            self._writer = cv2.VideoWriter(os.fspath(self.path), codec, self._rate, self._size)
            if not self._writer.isOpened():
                raise DataError("this build of OpenCV can't write MP4 (mp4v): set --draw False.")
        if rgb.shape[1::-1] != self._size:
            rgb = cv2.resize(rgb, self._size)
        self._writer.write(cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR))

    def close(self) -> None:
        """Complete the file; without frames there is none."""
        if self._writer is not None:
            self._writer.release()


def find_video(patterns: Sequence[str]) -> str | None:
    """Return the video of --images, or None if they are images. Raises ConfigError if there is anything beside it."""
    videos = [pattern for pattern in patterns if _is_live(pattern) or Path(pattern).suffix.lower() in SUFFIXES]
    if videos and len(patterns) > 1:
        raise ConfigError(
            f"--images has the video {printable(_public_name(videos[0]))} and more: give one video alone at a time."
        )
    return videos[0] if videos else None


def _check_file(source: str, path: Path) -> None:
    """Raise DataError unless this is a regular file."""
    try:
        kind = file_kind(path)
    except OSError as error:
        raise DataError(f"--images {printable(source)} can't be read ({printable(error.strerror)}).") from None
    if kind:
        raise DataError(f"--images {printable(source)} is {kind}, not a video.")


def _is_live(source: str) -> bool:
    """Return whether this is the number of a camera or the address of a stream."""
    return source.startswith(_STREAMS) or (source.isdecimal() and not os.path.lexists(source))


def _public_name(source: str) -> str:
    """Return a source without user and password."""
    if not source.startswith(_STREAMS):
        return source
    scheme, _, rest = source.partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"
