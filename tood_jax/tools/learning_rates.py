"""tood lr: a learning-rate range test (Smith 2017): the loss while the rate grows exponentially from step to step.

The steps are those of a run of the config, from its start: data, augmentation, batch, optimizer and first phase. Only
the curve is kept.
"""

import contextlib
import csv
import dataclasses
import io
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from tood_jax.cli.command_line import parse
from tood_jax.cli.common import report_errors, use_compilation_cache
from tood_jax.cli.outputs import check_output_folder
from tood_jax.cli.written_files import WrittenFiles
from tood_jax.config import Config, ConfigError
from tood_jax.config.ranges import Range
from tood_jax.data.dataset import Dataset, class_names
from tood_jax.data.load_dataset import filter_for_training, load_dataset
from tood_jax.data.loader import train_batches
from tood_jax.data.preprocess import canvases
from tood_jax.data.sampler import images_per_epoch
from tood_jax.distributed.sharding import check_batch, check_canvases, make_mesh, put_batch, put_whole
from tood_jax.evaluation.matches import has_report_packages
from tood_jax.models.build import build_model
from tood_jax.report.figures import draw_rates
from tood_jax.training.optimizer import make_optimizer
from tood_jax.training.plan import make_plan
from tood_jax.training.state import init_state, with_weights
from tood_jax.training.train_step import compile_train_step, train_state_shardings
from tood_jax.untrusted.printable import printable
from tood_jax.untrusted.terminal import print_line, print_warning
from tood_jax.weights.load import initial_weights

PROG = "tood lr"
TABLE, FIGURE = "lr.csv", "lr.png"
_MEMORY = 0.9  # of the smoothed loss, per step
_DIVERGED = 2.0  # times the lowest smoothed loss: the test ends
_SETTLED = 10  # steps before it may end, and at its start that the suggestion leaves out
_SAFETY = 10  # the suggestion is so many times below the rate of the lowest loss


@dataclass(frozen=True)
class Args:
    steps: Annotated[int, Range(30, 100_000)] = 200
    """Steps of the test; it ends earlier where the loss diverges."""
    low: Annotated[float, Range(0, 1_000, above=True)] = 1e-5
    """optimizer.learning_rate of the first step."""
    high: Annotated[float, Range(0, 1_000, above=True)] = 1.0
    """optimizer.learning_rate of the last step."""
    init_from: str = ""
    """Start with these weights, as tood train does."""
    out: str = ""
    """Folder of lr.csv and lr.png; empty means the folder lr of the run's folder."""


class Suggestion(NamedTuple):
    """A learning rate, and where the curve has it from; rates as optimizer.learning_rate."""

    rate: float
    lowest: float  # of the lowest smoothed loss
    loss: float  # there
    fell_from: float  # the smoothed loss where the search begins


def main(argv: list[str] | None = None, prog: str = PROG) -> None:
    """Run the test, write the curve and print a learning rate: `tood lr --config configs/NAME.py`."""
    words = sys.argv[1:] if argv is None else argv
    description = "Find a learning rate: the loss while the rate grows from step to step."
    args, config = parse(Args, words, prog=prog, description=description)
    use_compilation_cache()
    with report_errors(prog):
        if not args.low < args.high or args.steps < 3 * _SETTLED:
            raise ConfigError(f"--low={args.low:g} must be below --high={args.high:g}, and --steps at least 30.")
        folder = Path(args.out or Path(config.workdir) / "lr")
        check_output_folder("--out", folder)
        check_files(folder)
        train_set = filter_for_training(
            load_dataset(config.data.train, config.data.broken_images, for_evaluation=False), config.data
        )
        print_line(train_set.report.summary())
        rates = np.geomspace(args.low, args.high, args.steps)
        losses = measure(config, train_set, rates, args.init_from)
        smoothed = smooth(losses)
        found = suggest(rates, smoothed)
        write_curve(folder, rates, losses, smoothed, found)
        print_line(describe(found, config, len(losses), args))
        print_line(f"Written: {folder / TABLE}" + (f" and {FIGURE}" if has_report_packages() else ""))


def check_files(folder: Path) -> None:
    """Refuse a folder in which the curve would replace files of other origin. Raises ConfigError."""
    written = WrittenFiles(folder)
    for name in (TABLE, FIGURE):
        if (folder / name).exists() and not written.has(name):
            raise ConfigError(f"{printable(folder / name)} was not written by this program: name another --out.")


def measure(config: Config, train_set: Dataset, rates: np.ndarray, init_from: str = "") -> np.ndarray:
    """Return the loss of each step, the first computed before any update; fewer than `rates` where it diverges.

    Args:
        rates: [n] of the steps, as `optimizer.learning_rate`.
    """
    mesh = make_mesh(space=config.parallel.space)
    check_batch(config.train.batch_size, mesh, config.train.accumulate_steps)
    check_canvases(canvases(config.data), mesh)
    # All in the first phase: a change of the assigner changes the loss.
    phase = dataclasses.replace(config.assigner, warmup_epochs=1e6 if config.assigner.warmup_epochs else 0.0)
    config = dataclasses.replace(config, assigner=phase)
    model, optimizer = build_model(config, len(train_set.classes)), make_optimizer(config)
    scaled = jax.numpy.asarray(rates * config.train.batch_size / config.optimizer.learning_rate_batch, np.float32)
    epoch_steps = make_plan(config, images_per_epoch(train_set, config.data)).epoch_steps
    step = compile_train_step(model, config, optimizer, lambda i: scaled[i], epoch_steps, mesh)
    state = init_state(model, optimizer, seed=config.train.seed, keep_ema=config.optimizer.ema_decay is not None)
    if init_from:
        names = class_names(train_set.classes)
        load = initial_weights(init_from, config, partial(build_model, config), names, _print)
        state = with_weights(state, *load(state.params, state.batch_stats), optimizer)
    state = put_whole(state, train_state_shardings(model, config, optimizer, mesh))
    batches = train_batches(
        train_set,
        config.data,
        batch_size=config.train.batch_size,
        seed=config.train.seed,
        start_step=0,
        num_steps=len(rates),
    )

    def steps() -> Iterator[float]:
        nonlocal state
        with tqdm(total=len(rates), unit="step", disable=None, leave=False) as progress:
            for batch in batches:
                state, row = step(state, put_batch(batch, mesh))
                progress.update()
                yield float(row["loss"]) if row["finite"] else math.nan

    with contextlib.closing(batches):
        return until_it_diverges(steps())


def _print(text: str) -> None:
    print_line(text)


def until_it_diverges(losses: Iterator[float]) -> np.ndarray:
    """Return the losses up to one that is not finite, or up to where the smoothed loss is twice its lowest value."""
    found: list[float] = []
    for loss in losses:
        if not math.isfinite(loss):
            break
        found.append(loss)
        smoothed = smooth(np.asarray(found))
        if len(found) > _SETTLED and smoothed[-1] > _DIVERGED * smoothed[_SETTLED - 1 :].min():
            break
    return np.asarray(found)


def smooth(losses: np.ndarray) -> np.ndarray:
    """Return the exponential moving average of [n] losses, without the bias of its start."""
    mean, found = 0.0, []
    for count, loss in enumerate(losses, 1):
        mean = _MEMORY * mean + (1 - _MEMORY) * loss
        found.append(mean / (1 - _MEMORY**count))
    return np.asarray(found)


def suggest(rates: np.ndarray, smoothed: np.ndarray) -> Suggestion | None:
    """Return a tenth of the rate with the lowest smoothed loss; None where the loss falls at no rate.

    Args:
        rates: [n] as `optimizer.learning_rate`.
        smoothed: [m] smoothed losses, m ≤ n.
    """
    if len(smoothed) <= _SETTLED:
        return None
    lowest = _SETTLED + int(np.argmin(smoothed[_SETTLED:]))
    if lowest == _SETTLED or not smoothed[lowest] < smoothed[_SETTLED]:
        return None
    rate = float(rates[lowest])
    return Suggestion(rate / _SAFETY, rate, float(smoothed[lowest]), float(smoothed[_SETTLED]))


def describe(found: Suggestion | None, config: Config, steps: int, args: Args) -> str:
    """Return the suggestion and how it is found, in sentences."""
    if found is None:
        return (
            f"No suggestion: over {steps} of {args.steps} steps the smoothed loss falls at no rate; try a lower --low "
            "or more --steps."
        )
    options = config.optimizer
    is_at_end = found.lowest > args.high / 2
    end = " The loss still falls at the end: a higher --high may find a higher rate." if is_at_end else ""
    return (
        f"Suggested: --optimizer.learning_rate={found.rate:.2g} (per {options.learning_rate_batch} images; the config "
        f"has {options.learning_rate:g}). It is a tenth of {found.lowest:.2g}, where the smoothed loss is lowest: it "
        f"falls from {found.fell_from:.3g} to {found.loss:.3g}, over {steps} steps of {config.train.batch_size} images "
        f"from the start of a run of optimizer.kind={options.kind}.{end}"
    )


def write_curve(
    folder: Path, rates: np.ndarray, losses: np.ndarray, smoothed: np.ndarray, found: Suggestion | None
) -> None:
    """Write lr.csv, and lr.png where the extra `report` is installed."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(("step", "learning_rate", "loss", "smoothed_loss"))
    rows: Sequence[tuple[float, ...]] = [*zip(rates, losses, smoothed, strict=False)]
    writer.writerows((step, *(f"{value:.6g}" for value in row)) for step, row in enumerate(rows, 1))
    folder.mkdir(parents=True, exist_ok=True)
    written = WrittenFiles(folder)
    written.write(TABLE, out.getvalue().encode())
    if has_report_packages():
        written.write(FIGURE, draw_rates(rates[: len(losses)], losses, smoothed, found.rate if found else None))
    else:
        print_warning(f"Note: {FIGURE} needs the packages of tood_jax[report] (pip install hotcoco matplotlib).")
