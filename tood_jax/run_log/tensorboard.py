"""TensorBoard's event file, written event by event.

tensorboardX's own writer passes events to a thread, which ends on a full disk; then its queue fills up and the run
waits forever. So only its message types and its checksum are used here. A file is a sequence of records: length (8
bytes), masked CRC32C of these, the event, masked CRC32C of it (TensorFlow's TFRecord).
"""

import os
import re
import socket
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tensorboardX.crc32c import crc32c
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary

from tood_jax.run_log.appender import Appender
from tood_jax.run_log.logger import LoggerStart, Picture
from tood_jax.untrusted.printable import printable


def open_logger(start: LoggerStart) -> "EventFile":
    """Return a new event file in the folder `tensorboard` of the run."""
    events = EventFile(start.folder / "tensorboard", start.purge_step, start.log)
    for step, values in start.repeated:
        events.scalars(step, values)
    return events


class EventFile:
    """A new event file in `folder`.

    Args:
        purge_step: TensorBoard drops what earlier files hold of this step and later ones; None: nothing.
        log: called with a warning when writing fails.
    """

    def __init__(self, folder: Path, purge_step: int | None, log: Callable[[str], None]):
        name = f"events.out.tfevents.{_number(folder):010d}.{socket.gethostname()}.{os.getpid()}"
        self._out = Appender(folder / name, log)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            log(f"warning: {folder} can't be made ({error.strerror or error})")
        self._add(Event(wall_time=time.time(), file_version="brain.Event:2"))
        if purge_step is not None:
            self._add(Event(step=purge_step, session_log=SessionLog(status=SessionLog.START)))

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Add the numbers of one step, by tag."""
        if values:
            self._summary(step, [Summary.Value(tag=_clean(tag), simple_value=x) for tag, x in values.items()])

    def picture(self, step: int, tag: str, picture: Picture) -> None:
        """Add a picture of one step, as the bytes of its file."""
        height, width, _ = picture.pixels.shape
        image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=picture.encoded)
        self._summary(step, [Summary.Value(tag=_clean(tag), image=image)])

    def close(self) -> None:
        """Do nothing: each event is on the disk already."""

    def _summary(self, step: int, values: list[Any]) -> None:
        self._add(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))

    def _add(self, event: Any) -> None:
        body = event.SerializeToString()
        length = struct.pack("<Q", len(body))
        self._out.append(length + _masked_crc(length) + body + _masked_crc(body))


def _number(folder: Path) -> int:
    """Return Unix time, or one more than the largest number in the folder: a clock may go back, and TensorBoard reads
    files in the order of their names."""
    numbers = (re.match(r"events\.out\.tfevents\.(\d{1,12})\.", file.name) for file in folder.glob("events.out.*"))
    return max(int(time.time()), *(int(found[1]) + 1 for found in numbers if found), 0)


def _clean(tag: str) -> str:
    """Return a tag of bounded length, in the letters that TensorBoard allows."""
    return printable(re.sub(r"[^-/\w.]", "_", tag))


def _masked_crc(data: bytes) -> bytes:
    crc = crc32c(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)
