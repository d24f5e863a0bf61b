"""Peak memory of one training step by choice: rematerialisation, precision, accumulation, split state, loops.

    python -m benchmarks.memory --config configs/NAME.py --topology v5e:2x4 --batch 4 --height 800 --width 1344

By the compiler's own analysis of the whole step; nothing runs. With --topology here, of the devices at hand.
"""

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from jax.sharding import Mesh

from benchmarks.common import (
    Options,
    Report,
    Row,
    begin_report,
    finish_report,
    mebi,
    print_table,
    read_options_and_config,
)
from tood_jax.ahead_of_time.chips import HERE, Chip, devices_of
from tood_jax.ahead_of_time.programs import lower_train_step
from tood_jax.cli.compile_for import compile_one
from tood_jax.config import Config
from tood_jax.training.sharding import make_mesh

CHOICES: dict[str, dict[str, dict[str, object]]] = {  # what is changed of bfloat16 without any thrift
    "bfloat16": {},
    "float32": {"train": {"precision": "float32"}},
    "remat": {"train": {"remat": "blocks"}},
    "accumulate 2": {"train": {"accumulate_steps": 2}},
    "accumulate 4": {"train": {"accumulate_steps": 4}},
    "remat, accumulate 2": {"train": {"remat": "blocks", "accumulate_steps": 2}},
    "split_state": {"parallel": {"split_state": True}},
    "scan_blocks": {"train": {"scan_blocks": True}},
    "levels unpacked": {"train": {"pack_levels": "never"}},
}


@dataclass(frozen=True)
class Args(Options):
    """Options of the door."""

    topology: str = HERE
    """As for compile_for.py."""
    batch: int = 4
    """Images a chip."""
    height: int = 256
    """Canvas height, pixels, a multiple of 32."""
    width: int = 256
    """Canvas width, pixels, a multiple of 32."""
    classes: int = 80
    """C."""
    choices: tuple[str, ...] = tuple(CHOICES)
    """Which rows."""


def main(argv: Sequence[str] | None = None) -> Report:
    """Print the table and write benchmarks/results/memory.json."""
    argv = sys.argv[1:] if argv is None else argv
    args, config = read_options_and_config(Args, argv, "memory", __doc__ or "")
    report = begin_report("memory", argv, args, config)
    devices, chip = devices_of(args.topology)
    rows = []
    for name in args.choices:
        rows.append({"choice": name, **measure(chosen(config, name), args, make_mesh(devices), chip)})
        print(f"{name}: {rows[-1]['seconds']['compile']:.0f} s", flush=True)
    print_table(
        f"MiB a device at {args.batch} images of {args.height}×{args.width} each, {args.topology}",
        ["choice", "peak", "state and batch", "temporaries", "donated", "without donation", "HBM GB an image"],
        [line(row, args.batch) for row in rows],
    )
    return finish_report(report, args, results=rows)


def line(row: Row, images: int) -> list[object]:
    """A row of the table."""
    if not row["fits"]:
        return [row["choice"], "doesn't fit", *[None] * 5]
    memory = row["memory"]
    sizes = [memory[kind] for kind in ("total", "arguments", "temporaries", "aliased")]
    undonated = memory["total"] + memory["aliased"]
    return [row["choice"], *(mebi(size) for size in [*sizes, undonated]), row["work"]["hbm_bytes"] / images / 1e9]


def chosen(config: Config, name: str) -> Config:
    """The config with bfloat16 and a choice of `CHOICES`."""
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, precision="bfloat16"))
    changes = CHOICES[name]
    return dataclasses.replace(
        config, **{group: dataclasses.replace(getattr(config, group), **fields) for group, fields in changes.items()}
    )


def measure(config: Config, args: Args, mesh: Mesh, chip: Chip | None) -> Row:
    """Figures of one compilation, as `compile_for.py` has them."""
    images, canvas = args.batch * mesh.size, (args.height, args.width)
    return compile_one(lambda: lower_train_step(config, args.classes, images, canvas, mesh), mesh, chip)


if __name__ == "__main__":
    main()
