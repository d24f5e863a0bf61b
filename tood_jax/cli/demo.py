"""tood demo: a web page on this machine on which one uploads an image and sees the detections."""

import sys
from dataclasses import dataclass
from typing import Any

import numpy as np

from tood_jax.api import TrainedDetector, load_trained_model
from tood_jax.cli.common import parse_with_checkpoint, report_errors, use_compilation_cache
from tood_jax.config import ConfigError
from tood_jax.report.analysis import DEFAULT_THRESHOLD
from tood_jax.untrusted.printable import printable
from tood_jax.untrusted.terminal import print_line

PROG = "tood demo"
MAX_UPLOAD = "64mb"
_COLUMNS = ["class", "score", "x0", "y0", "x1", "y1"]


@dataclass(frozen=True)
class Args:
    checkpoint: str = ""
    """Run folder (runs/NAME), the folder of one step, or a model of `tood push`: its folder or
    hf://USER/REPO[@REVISION]."""
    step: str = "best"
    """best (by AP), latest, or the number of a saved step."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 lets other machines use the page."""
    port: int = 7860
    """Port to listen on."""


def main(argv: list[str] | None = None, prog: str = PROG) -> None:
    """Run `tood demo` until Ctrl-C."""
    argv = sys.argv[1:] if argv is None else argv
    description = "Detect objects in images that are uploaded to a web page on this machine."
    args, config, checkpoint = parse_with_checkpoint(Args, argv, prog=prog, description=description)
    use_compilation_cache()
    with report_errors(prog):
        if not 1 <= args.port <= 65535:
            raise ConfigError(f"--port={args.port} must be a number from 1 to 65535.")
        import_gradio()  # checked before the weights are read
        page = make_page(TrainedDetector(load_trained_model(checkpoint, config), config), printable(args.checkpoint))
        print_line(f"http://{args.host}:{args.port}/ (Ctrl-C ends it)")
        page.launch(server_name=args.host, server_port=args.port, share=False, quiet=True, max_file_size=MAX_UPLOAD)


def make_page(detector: TrainedDetector, title: str) -> Any:
    """Return the page, a `gradio.Interface`.

    Raises:
        ConfigError: the package gradio is not installed.
    """
    gradio = import_gradio()

    def detect(image: np.ndarray | None, threshold: float) -> tuple[np.ndarray, list[list[Any]]]:
        if image is None:
            raise gradio.Error("Choose an image first.")
        found = detector(image, threshold=threshold)
        rows = zip(found.names, found.scores, found.boxes, strict=True)
        return found.plot(), [[str(name), round(float(score), 3), *box.round(1).tolist()] for name, score, box in rows]

    return gradio.Interface(
        detect,
        inputs=[gradio.Image(label="image"), gradio.Slider(0, 1, DEFAULT_THRESHOLD, label="smallest score")],
        outputs=[gradio.Image(label="detections", format="png"), gradio.Dataframe(headers=_COLUMNS, label="boxes")],
        title=title,
        flagging_mode="never",
        analytics_enabled=False,
    )


def import_gradio() -> Any:
    """Return the package gradio. Raises ConfigError if it is not installed."""
    try:
        import gradio
    except ImportError:
        raise ConfigError("tood demo needs the package gradio: pip install 'tood_jax[demo]'") from None
    return gradio
