"""Trackio: numbers and pictures of a run, in its local store or, with TRACKIO_SPACE_ID, on the Hugging Face Hub."""

import os
import secrets
from typing import Any

from tood_jax.run_log.logger import LoggerStart, Picture, clean_tag

PROJECT = "tood_jax"


def open_logger(start: LoggerStart) -> "TrackioLogger":
    """Return a logger for the Trackio run of this run's folder."""
    return TrackioLogger(start)


class TrackioLogger:
    """A run of Trackio, which knows runs by their name."""

    def __init__(self, start: LoggerStart):
        import trackio

        self._trackio: Any = trackio
        name = start.run_id or f"{start.name}-{secrets.token_hex(4)}"
        start.keep_run_id(name)
        project = os.environ.get("TRACKIO_PROJECT", PROJECT)
        self._run: Any = trackio.init(project=project, name=name, config=dict(start.config), resume="allow")

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Add the numbers of one step, by tag."""
        self._run.log({clean_tag(tag): value for tag, value in values.items()}, step=step)

    def picture(self, step: int, tag: str, picture: Picture) -> None:
        """Add a picture of one step."""
        self._run.log({clean_tag(tag): self._trackio.Image(picture.pixels)}, step=step)

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()
