"""Compiled programs: their cost and memory as the compiler reports them, and the devices that they are compiled for."""

import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh, SingleDeviceSharding

from tood_jax.config import ConfigError
from tood_jax.distributed.sharding import make_mesh
from tood_jax.tools.compile_for.chips import devices_of
from tood_jax.tools.compile_for.traffic import estimated_cycles, hbm_bytes


class Program(NamedTuple):
    """A compiled function and what its compiler reports about it."""

    run: jax.stages.Compiled
    about: dict[str, Any]  # trace_seconds, compile_seconds, flops, bytes_accessed, memory (bytes of each kind)


def compile_program(function: Any, *arguments: Any) -> Program:
    """Compile a jitted function for these arguments.

    `flops` and `bytes_accessed` are XLA's own counts, with both sides of a branch; None where it gives none.
    `memory` is what the program takes on the device: `total` = arguments + outputs + temporaries − reused arguments.
    """
    start = time.perf_counter()
    lowered = function.lower(*arguments)
    traced = time.perf_counter()
    compiled = lowered.compile()
    about: dict[str, Any] = {"trace_seconds": traced - start, "compile_seconds": time.perf_counter() - traced}
    cost = compiled.cost_analysis() or {}
    about |= {"flops": cost.get("flops"), "bytes_accessed": cost.get("bytes accessed")}
    return Program(compiled, {**about, "memory": _program_memory(compiled.memory_analysis())})


def compile_call(function: Any, *arguments: Any) -> tuple[Callable[[], Any], Program]:
    """Compile a jitted function for these arguments; return a function that calls it with them, and the program."""
    program = compile_program(function, *arguments)
    return functools.partial(program.run, *arguments), program


def compiler_estimates(program: Program) -> dict[str, Any]:
    """Return what a compiled program reports without running: "hbm_bytes", "cycles" and "compile_seconds".

    See tood_jax/tools/compile_for/traffic.py for the first two.
    """
    text = program_text(program)
    estimates = {"hbm_bytes": hbm_bytes(text), "cycles": estimated_cycles(text)}
    return estimates | {"compile_seconds": program.about["compile_seconds"]}


def program_text(program: Program) -> str:
    """Return the optimised HLO text of a compiled program."""
    text = program.run.as_text()
    assert text is not None, "this backend gives no text of a compiled program"
    return text


def device_mesh(devices: int) -> Mesh:
    """Return the mesh of the first `devices` devices; 0 means all."""
    return make_mesh(jax.devices()[: devices or None])


def chip_sharding(topology: str) -> SingleDeviceSharding:
    """Return the first chip of a topology, "v5e:2x2" for instance, to compile for without having it.

    Raises:
        SystemExit: its compiler is not installed; the message names the package.
    """
    try:
        return SingleDeviceSharding(devices_of(topology)[0][0])
    except ConfigError as error:
        raise SystemExit(str(error)) from None


def _program_memory(analysis: Any) -> dict[str, int] | None:
    if analysis is None:
        return None
    sizes = {
        "arguments": analysis.argument_size_in_bytes,
        "outputs": analysis.output_size_in_bytes,
        "temporaries": analysis.temp_size_in_bytes,
        "reused_arguments": analysis.alias_size_in_bytes,
    }
    return {**sizes, "total": sum(sizes.values()) - 2 * sizes["reused_arguments"]}
