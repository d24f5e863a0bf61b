"""Count parameters and multiply-adds of the paper's table 1 (T-head and parallel heads), or of every config.

    python -m benchmarks.cases.paper_table1
    python -m benchmarks.cases.paper_table1 --all

Everything is counted in the traced network: nothing is compiled or computed, so it takes seconds on any machine.

Multiply-adds are those of convolutions and matrix products. The paper used mmcv's counter, which adds one for each bias
added, two for each normalised element, one for each rectified and one for each pooled element; in its version of that
time GroupNorm counted nothing (with it, parallel ATSS would have 205.30 G instead of the paper's 205.21). The column
"paper's way" has that sum.
"""

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from benchmarks.harness.options import RESULTS, ROOT, Options, read_options
from benchmarks.harness.report import Report, begin_report, finish_report
from benchmarks.harness.tables import print_table
from tood_jax.config import Config
from tood_jax.config.files import load_config
from tood_jax.geometry.locations import level_shapes
from tood_jax.models.build import build_model
from tood_jax.tools.multiply_adds import array_of, equations, linear_operations
from tood_jax.training.optimizer import is_trained

NAME = "paper_table1"
EXPLAINED_DIFFERENCE = 0.005  # a note explains relative differences from the paper above this


@dataclass(frozen=True)
class Args(Options):
    """Options of the table; --repeats and --seed have no effect."""

    all: bool = False
    """Print every file in configs/ and configs/rivals/ instead."""
    height: int = 800
    """Image height, pixels."""
    width: int = 1280
    """Image width, pixels."""
    classes: int = 80
    """Number of classes C."""


class Row(NamedTuple):
    """One line of the paper's table: trained parameters in millions, multiply-adds in billions."""

    detector: str
    head: str
    config: str
    trained: float
    multiply_adds: float
    caffe: bool = False  # the paper's backbone is caffe's ResNet: see `caffe_savings`


ROWS = (
    Row("FoveaBox", "parallel", "fovea_r50_fpn_1x_coco", 36.20, 206.28),
    Row("FoveaBox", "T-head", "fovea_t_head_r50_fpn_1x_coco", 36.10, 202.20),
    Row("FCOS", "parallel", "fcos_r50_fpn_1x_coco", 32.02, 200.50, caffe=True),
    Row("FCOS", "T-head", "fcos_t_head_r50_fpn_1x_coco", 31.92, 196.38, caffe=True),
    Row("ATSS, anchor-based", "parallel", "atss_r50_fpn_1x_coco", 32.07, 205.21),
    Row("ATSS, anchor-based", "T-head", "atss_t_head_r50_fpn_1x_coco", 31.98, 201.13),
    Row("ATSS, anchor-free", "parallel", "atss_anchor_free_r50_fpn_1x_coco", 32.07, 205.21),
    Row("ATSS, anchor-free", "T-head", "atss_anchor_free_t_head_r50_fpn_1x_coco", 31.98, 201.13),
)
PAPERS_HEAD = {"T-head": ("4.82", "100.79")}  # the head alone: millions of parameters, billions of multiply-adds


class Counts(NamedTuple):
    """Counts of one network on one image."""

    parameters: int  # frozen ones included
    trained: int
    trained_norms: int  # scales and biases of the backbone's norms among them
    head_parameters: int
    multiply_adds: int
    head_multiply_adds: int
    besides: dict[str, int]  # what mmcv's counter adds to multiply-adds: biases, norms, relus, pools


def count(config: Config, num_classes: int, height: int, width: int) -> Counts:
    """Count parameters and multiply-adds of a config's network on one image of (height, width) pixels."""
    model, image = build_model(config, num_classes), jax.ShapeDtypeStruct((1, height, width, 3), jnp.float32)
    besides: Counter[str] = Counter(biases=0, norms=0)

    def note_operations(call, args, kwargs, context):
        out, module = call(*args, **kwargs), context.module
        if context.method_name == "__call__":
            besides["biases"] += out.size if isinstance(module, nn.Conv) and module.use_bias else 0
            besides["norms"] += 2 * out.size if isinstance(module, nn.BatchNorm) else 0
        return out

    with nn.intercept_methods(note_operations):  # initialisation calls each layer once
        variables = jax.eval_shape(model.init, jax.random.key(0), image)
    # Initialisation also runs convolutions whose parameters alone are used later, so it is not what is counted here.
    traced = jax.make_jaxpr(model.apply)(variables, image)
    for equation, _, times in equations(traced.jaxpr):
        if equation.params.get("name") == "relu":
            besides["relus"] += times * array_of(equation.outvars[0]).size
        elif equation.primitive.name == "reduce_window_max":
            besides["pools"] += times * array_of(equation.invars[0]).size

    params = variables["params"]
    sizes = {path: leaf.size for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    trained = {path: size for path, size in sizes.items() if is_trained(path, config)}
    norms = [size for path, size in trained.items() if path[0].key == "backbone" and path[-2].key == "norm"]
    levels = tuple(
        jax.ShapeDtypeStruct((1, *shape, config.neck.channels), jnp.float32) for shape in level_shapes(height, width)
    )
    head = jax.make_jaxpr(model.head.apply)({"params": params["head"]}, levels)
    return Counts(
        parameters=sum(sizes.values()),
        trained=sum(trained.values()),
        trained_norms=sum(norms),
        head_parameters=sum(size for path, size in sizes.items() if path[0].key == "head"),
        multiply_adds=sum(operation.multiply_adds for operation in linear_operations(traced.jaxpr)),
        head_multiply_adds=sum(operation.multiply_adds for operation in linear_operations(head.jaxpr)),
        besides=dict(besides),
    )


def caffe_savings(config: Config, height: int, width: int) -> tuple[int, int]:
    """Return (multiply-adds, activations) that caffe's ResNet saves: its stages stride in the first 1×1 convolution.

    The first block of stages 2–4 then reduces 2·planes channels to planes at a quarter of the locations.
    """

    def locations(stride):
        return -(-height // stride) * -(-width // stride)

    products = activations = 0
    for stage in (2, 3, 4):
        planes = config.backbone.width * 2 ** (stage - 1)
        saved = locations(2**stage) - locations(2 ** (stage + 1))
        products += 2 * planes * planes * saved
        activations += planes * saved
    return products, activations


def compare(row: Row, args: Args) -> dict[str, Any]:
    """Return one line of table 1: our counts, the paper's, the paper's way of counting, and a note on a difference."""
    config = load_config(str(ROOT / "configs" / "rivals" / f"{row.config}.py"))
    counts = count(config, args.classes, args.height, args.width)
    papers_way = counts.multiply_adds + sum(counts.besides.values())
    papers_trained = counts.trained
    products, activations = caffe_savings(config, args.height, args.width)
    if row.caffe:
        papers_way -= products + 3 * activations  # norm and ReLU of those activations
        papers_trained -= counts.trained_norms
    difference = counts.multiply_adds / (1e9 * row.multiply_adds) - 1
    note = None
    if row.caffe and abs(difference) > EXPLAINED_DIFFERENCE:
        note = (
            f"The paper's {row.detector} has caffe's ResNet-50 (as mmdetection's has), which strides in the first 1×1 "
            f"convolution of stages 2–4 (−{products / 1e9:.2f} G: {counts.multiply_adds / 1e9:.2f} → "
            f"{(counts.multiply_adds - products) / 1e9:.2f} G) and whose BatchNorm isn't trained "
            f"(−{counts.trained_norms / 1e6:.3f} M: {counts.trained / 1e6:.2f} → {papers_trained / 1e6:.2f} M). "
            f"Here it is torchvision's, as in every other row."
        )
    return {
        **row._asdict(),
        "counts": counts._asdict(),
        "papers_way": {"trained": papers_trained, "multiply_adds": papers_way},
        "difference": {"trained": counts.trained / (1e6 * row.trained) - 1, "multiply_adds": difference},
        "note": note,
    }


def main(argv: Sequence[str] | None = None) -> Report:
    """Count, print the table and write the report."""
    argv = sys.argv[1:] if argv is None else argv
    args = read_options(Args, argv, NAME, "Count parameters and multiply-adds.")
    if args.all and not args.out:  # table 1 has the default file
        args = replace(args, out=str(RESULTS / f"{NAME}_all.json"))
    report = begin_report(NAME, argv, args)
    return finish_report(report, args, results=all_configs(args) if args.all else table1(args))


def table1(args: Args) -> list[dict[str, Any]]:
    """Print the paper's table beside our counts."""
    rows = [compare(row, args) for row in ROWS]
    print_table(
        f"Trained parameters (M) and multiply-adds (G) of one {args.width} × {args.height} image",
        ["detector", "head", "M", "paper", "%", "G", "paper", "%", "paper's way, M", "paper's way, G"],
        [
            [
                *(row["detector"], row["head"]),
                *(millions(row["counts"]["trained"]), f"{row['trained']:.2f}", percent(row["difference"]["trained"])),
                *(billions(row["counts"]["multiply_adds"]), f"{row['multiply_adds']:.2f}"),
                percent(row["difference"]["multiply_adds"]),
                millions(row["papers_way"]["trained"]),
                billions(row["papers_way"]["multiply_adds"]),
            ]
            for row in rows
        ],
    )
    print_table(
        "The heads alone (the paper's T-head has 4.82 M: as FoveaBox's here, without a centerness branch)",
        ["detector", "head", "M", "G", "paper, M", "paper, G"],
        [
            [
                *(row["detector"], row["head"]),
                millions(row["counts"]["head_parameters"]),
                billions(row["counts"]["head_multiply_adds"]),
                *PAPERS_HEAD.get(row["head"], (None, None)),
            ]
            for row in rows
        ],
    )
    for row in rows:
        if row["note"]:
            print(f"\n{row['detector']}, {row['head']}: {row['note']}")
    return rows


def all_configs(args: Args) -> list[dict[str, Any]]:
    """Print the counts of every config."""
    files = [*sorted((ROOT / "configs").glob("*.py")), *sorted((ROOT / "configs" / "rivals").glob("*.py"))]
    found = {file.stem: count(load_config(str(file)), args.classes, args.height, args.width) for file in files}
    print_table(
        f"Parameters (M) and multiply-adds (G) of one {args.width} × {args.height} image, {args.classes} classes",
        ["config", "M", "trained, M", "G", "head, M", "head, G"],
        [
            [
                *(name, millions(counts.parameters), millions(counts.trained)),
                *(billions(counts.multiply_adds), millions(counts.head_parameters)),
                billions(counts.head_multiply_adds),
            ]
            for name, counts in found.items()
        ],
    )
    return [{"config": name, "counts": counts._asdict()} for name, counts in found.items()]


def millions(number: int) -> str:
    """Return a number in millions."""
    return f"{number / 1e6:.2f}"


def billions(number: int) -> str:
    """Return a number in thousands of millions."""
    return f"{number / 1e9:.2f}"


def percent(share: float) -> str:
    """Return a share in percent, with its sign."""
    return f"{100 * share:+.2f}"


if __name__ == "__main__":
    main()
