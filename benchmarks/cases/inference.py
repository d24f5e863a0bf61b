"""Measure speed and memory of detection: images/s of a batch, latency of one image, and the share of post-processing.

    python -m benchmarks.cases.inference --config configs/NAME.py --batch 2 --height 256 --width 256

The program is the one that detection runs: normalisation, forward pass, top-k, NMS, K detections per image. Images are
noise and weights are scaled noise: post-processing has a fixed size, so its time does not depend on what is detected.
"""

import functools
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import jax

from benchmarks.harness.inputs import random_batch, random_predictions, random_variables
from benchmarks.harness.memory import process_memory
from benchmarks.harness.options import ModelOptions, read_options_and_config
from benchmarks.harness.programs import compile_program, device_mesh
from benchmarks.harness.report import Report, begin_report, finish_report
from benchmarks.harness.tables import format_milliseconds, print_table, to_mebibytes
from benchmarks.harness.timing import time_interleaved
from tood_jax.distributed.sharding import put_batch, replicated
from tood_jax.evaluation.predict import compile_detect_step
from tood_jax.models.build import build_model
from tood_jax.models.detector import detections

NAME = "inference"


@dataclass(frozen=True)
class Args(ModelOptions):
    """Options of the case. Besides the batch, one image alone is measured, on the first device."""


def main(argv: Sequence[str] | None = None) -> Report:
    """Measure, print the table and write the report."""
    argv = sys.argv[1:] if argv is None else argv
    args, config = read_options_and_config(Args, argv, NAME, "Time detection: a batch, one image, post-processing.")
    report = begin_report(NAME, argv, args, config)
    model = build_model(config, args.classes)
    variables = random_variables(model, args.seed)
    cases, programs = {}, {}
    for name, images, mesh in (
        ("detect", args.batch, device_mesh(args.devices)),
        ("detect, one image", 1, device_mesh(1)),
        ("post-processing alone", args.batch, device_mesh(args.devices)),
    ):
        host_batch = random_batch(
            images, args.height, args.width, objects=0, max_objects=1, classes=args.classes, seed=args.seed
        )
        batch = put_batch(host_batch, mesh)
        if name == "post-processing alone":
            pred = jax.device_put(random_predictions(host_batch, args.classes, args.seed), batch.images.sharding)
            arguments: tuple = (pred, batch)
            function = jax.jit(lambda pred, batch: detections(pred, batch, config))
        else:
            arguments = (*jax.device_put(variables, replicated(mesh)), batch)
            function = compile_detect_step(model, config, mesh)
        programs[name] = (images, compile_program(function, *arguments))
        cases[name] = functools.partial(programs[name][1].run, *arguments)
    timings = time_interleaved(cases, args.repeats)

    results = [
        {
            "case": name,
            "images": images,
            "images_per_second": images / timings[name]["median_seconds"],
            **timings[name],
            "program": program.about,
        }
        for name, (images, program) in programs.items()
    ]
    print_table(
        f"{config.name}, {args.height} × {args.width}, {config.train.precision}",
        ["case", "images", "ms: median (min–max)", "images/s", "first call, s", "compile, s", "GFLOP", "program, MiB"],
        [
            [
                r["case"],
                r["images"],
                format_milliseconds(r),
                r["images_per_second"],
                r["first_seconds"],
                r["program"]["compile_seconds"],
                r["program"]["flops"] and r["program"]["flops"] / 1e9,
                to_mebibytes(r["program"]["memory"] and r["program"]["memory"]["total"]),
            ]
            for r in results
        ],
    )
    memory = process_memory()
    print_table(
        "Peaks of the process",
        ["resident, MiB", "device, MiB"],
        [[to_mebibytes(memory["peak_resident_bytes"]), to_mebibytes(memory["peak_device_bytes"])]],
    )
    return finish_report(report, args, results=results)


if __name__ == "__main__":
    main()
