"""Weights & Biases: numbers and pictures of a run, online, or offline for `wandb sync`.

The variables of W&B decide where to: WANDB_MODE, WANDB_API_KEY, WANDB_BASE_URL, WANDB_ENTITY, WANDB_PROJECT.
"""

import netrc
import os
import secrets
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from tood_jax.run_log.logger import LoggerStart, Picture, clean_tag

PROJECT = "tood_jax"
_STEP = "step"  # W&B refuses steps below its own counter, such as those that a resumed run repeats


def open_logger(start: LoggerStart) -> "WandbLogger":
    """Return a logger for the W&B run of this run's folder; offline where there is no login."""
    return WandbLogger(start)


class WandbLogger:
    """A run of W&B."""

    def __init__(self, start: LoggerStart):
        import wandb

        self._wandb: Any = wandb
        run_id = start.run_id or secrets.token_hex(8)
        start.keep_run_id(run_id)
        mode = os.environ.get("WANDB_MODE")
        if mode is None and not has_login(wandb.Settings().base_url):
            mode = "offline"
            start.log(f"Note: W&B has no login, so its numbers wait in {start.folder}/wandb for `wandb sync`.")
        self._run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=start.name,
            id=run_id,
            resume="allow",
            dir=str(start.folder),
            config=dict(start.config),
            mode=mode,
            settings=wandb.Settings(silent=True, console="off"),
        )
        self._run.define_metric("*", step_metric=_STEP)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Add the numbers of one step, by tag."""
        self._run.log({_STEP: step, **{clean_tag(tag): value for tag, value in values.items()}})

    def picture(self, step: int, tag: str, picture: Picture) -> None:
        """Add a picture of one step."""
        self._run.log({_STEP: step, clean_tag(tag): self._wandb.Image(picture.pixels)})

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()


def has_login(url: str) -> bool:
    """Return whether W&B would find credentials; it asks at the terminal otherwise."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    try:
        logins = netrc.netrc(os.environ.get("NETRC") or Path.home() / ".netrc")
    except (OSError, RuntimeError, netrc.NetrcParseError):
        return False
    return logins.authenticators(urlparse(url).hostname or "") is not None
