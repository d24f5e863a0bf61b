"""Compare the peak memory of one training step: rematerialisation, precision, accumulation, split state, loops.

    python -m benchmarks.cases.training_memory --config configs/NAME.py --topology v5e:2x4 --batch 4 \
        --height 800 --width 1344

The figures are the compiler's own analysis of the whole step; nothing runs. `--topology here` compiles for the devices
of this machine.
"""

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from jax.sharding import Mesh

from benchmarks.harness.options import Options, read_options_and_config
from benchmarks.harness.report import Report, Row, begin_report, finish_report
from benchmarks.harness.tables import print_table, to_mebibytes
from tood_jax.config import Config
from tood_jax.distributed.sharding import make_mesh
from tood_jax.tools.compile_for.chips import HERE, Chip, devices_of
from tood_jax.tools.compile_for.main import compile_one
from tood_jax.tools.compile_for.programs import lower_train_step

NAME = "training_memory"
CHOICES: dict[str, dict[str, dict[str, object]]] = {  # changes of the config in bfloat16 that saves no memory
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
    """Options of the case."""

    topology: str = HERE
    """As for compile_for.py."""
    batch: int = 4
    """Images per chip."""
    height: int = 256
    """Canvas height, pixels, a multiple of 32."""
    width: int = 256
    """Canvas width, pixels, a multiple of 32."""
    classes: int = 80
    """Number of classes C."""
    choices: tuple[str, ...] = tuple(CHOICES)
    """Rows of the table."""


def main(argv: Sequence[str] | None = None) -> Report:
    """Compile, print the table and write the report."""
    argv = sys.argv[1:] if argv is None else argv
    args, config = read_options_and_config(Args, argv, NAME, __doc__ or "")
    report = begin_report(NAME, argv, args, config)
    devices, chip = devices_of(args.topology)
    rows = []
    for name in args.choices:
        rows.append({"choice": name, **measure(with_choice(config, name), args, make_mesh(devices), chip)})
        print(f"{name}: {rows[-1]['seconds']['compile']:.0f} s", flush=True)
    print_table(
        f"MiB per device at {args.batch} images of {args.height}×{args.width} each, {args.topology}",
        ["choice", "peak", "state and batch", "temporaries", "donated", "without donation", "HBM GB an image"],
        [table_line(row, args.batch) for row in rows],
    )
    return finish_report(report, args, results=rows)


def table_line(row: Row, images: int) -> list[object]:
    """Return a line of the table."""
    if not row["fits"]:
        return [row["choice"], "doesn't fit", *[None] * 5]
    memory = row["memory"]
    sizes = [memory[kind] for kind in ("total", "arguments", "temporaries", "aliased")]
    undonated = memory["total"] + memory["aliased"]
    return [
        row["choice"],
        *(to_mebibytes(size) for size in [*sizes, undonated]),
        row["work"]["hbm_bytes"] / images / 1e9,
    ]


def with_choice(config: Config, name: str) -> Config:
    """Return the config with bfloat16 and a choice of `CHOICES`."""
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, precision="bfloat16"))
    changes = CHOICES[name]
    return dataclasses.replace(
        config, **{group: dataclasses.replace(getattr(config, group), **fields) for group, fields in changes.items()}
    )


def measure(config: Config, args: Args, mesh: Mesh, chip: Chip | None) -> Row:
    """Compile the training step, and return what compile_for.py reports about it."""
    images, canvas = args.batch * mesh.size, (args.height, args.width)
    return compile_one(lambda: lower_train_step(config, args.classes, images, canvas, mesh), mesh, chip)


if __name__ == "__main__":
    main()
