"""Speed and memory of detection: images/s at a batch, latency of one image, and the share of post-processing.

    python -m benchmarks.inference --config configs/NAME.py --batch 2 --height 256 --width 256

The program is the product's own: normalisation, forward pass, top-k, NMS, one image's K detections out. Images are
noise and weights are scaled noise: post-processing is of fixed size, so its time doesn't depend on what is found.

Axes: B images · N cells · C classes.
"""

import functools
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import jax

from benchmarks.common import (
    ModelOptions,
    Report,
    begin_report,
    compile_program,
    filled_variables,
    finish_report,
    interleaved,
    mebi,
    mesh_of,
    ms,
    print_table,
    process_memory,
    random_batch,
    random_predictions,
    read_options_and_config,
)
from tood_jax.build import build_model
from tood_jax.detectors.detector import detections
from tood_jax.evaluation.predict import compile_detect_step
from tood_jax.training.sharding import put_batch, replicated

NAME = "inference"


@dataclass(frozen=True)
class Args(ModelOptions):
    """One image alone is measured besides the batch, on the first device."""


def main(argv: Sequence[str] | None = None) -> Report:
    """Measure, print, write."""
    argv = sys.argv[1:] if argv is None else argv
    args, config = read_options_and_config(Args, argv, NAME, "Time detection: a batch, one image, post-processing.")
    report = begin_report(NAME, argv, args, config)
    model = build_model(config, args.classes)
    variables = filled_variables(model, args.seed)
    cases, programs = {}, {}
    for name, images, mesh in (
        ("detect", args.batch, mesh_of(args.devices)),
        ("detect, one image", 1, mesh_of(1)),
        ("post-processing alone", args.batch, mesh_of(args.devices)),
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
            function = compile_detect_step(model, config, mesh)  # type: ignore[assignment]
        programs[name] = (images, compile_program(function, *arguments))
        cases[name] = functools.partial(programs[name][1].run, *arguments)
    timings = interleaved(cases, args.repeats)

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
                ms(r),
                r["images_per_second"],
                r["first_seconds"],
                r["program"]["compile_seconds"],
                r["program"]["flops"] and r["program"]["flops"] / 1e9,
                mebi(r["program"]["memory"] and r["program"]["memory"]["total"]),
            ]
            for r in results
        ],
    )
    memory = process_memory()
    print_table(
        "Peaks of the process",
        ["resident, MiB", "device, MiB"],
        [[mebi(memory["peak_resident_bytes"]), mebi(memory["peak_device_bytes"])]],
    )
    return finish_report(report, args, results=results)


if __name__ == "__main__":
    main()
