"""The least work of a step, and the multiply-adds that it is counted from."""

import jax
import jax.numpy as jnp
import pytest

from benchmarks.cases import paper_table1, roofline
from benchmarks.harness.options import R50, ROOT
from benchmarks.harness.roofline import traffic_by_stage
from tood_jax.config.files import load_config
from tood_jax.tools.multiply_adds import linear_operations


def test_least_work_of_each_stage(measured, capsys):
    rows = measured(roofline, "--height=64", "--width=96", "--classes=4", "--batch=2")["results"]
    found = {(row["program"], row["stage"]): row for row in rows}
    counts = paper_table1.count(load_config(str(ROOT / R50)), 4, 64, 96)
    assert found["inference", "all"]["multiply_adds"] == counts.multiply_adds
    locations = 8 * 12 + 4 * 6 + 2 * 3 + 1 * 2 + 1 * 1
    maps, kernels = 6 * 256 * locations, 6 * (9 * 256 * 256 + 2 * 256)  # 256 channels; a norm's scale and bias
    inference, training = (found[program, "interactive convolutions"] for program in ("inference", "training"))
    assert inference["multiply_adds"] == locations * 6 * 9 * 256 * 256
    assert inference["bytes"] == 2 * (2 * maps + kernels / 2)  # two images share a read of the kernels
    assert training["multiply_adds"] == 3 * inference["multiply_adds"]
    assert training["bytes"] == 2 * (5 * maps + 2 * kernels / 2)  # and back: input, gradients of output and input
    assert [found["training", stage]["multiply_adds"] for stage in ("stem", "c2")] == [
        found["inference", stage]["multiply_adds"] for stage in ("stem", "c2")
    ]  # frozen
    seconds = found["training", "optimizer"]["seconds"]["TPU v5e"]
    assert seconds == pytest.approx(5 * 4 * counts.trained / 2 / 819e9)
    assert "images/s" in capsys.readouterr().out


def test_traffic_by_stage():
    origins = [
        "jit(step)/jvp(Detector)/head/inter_0/conv",
        "jit(step)/transpose(jvp(Detector))/head/mul",
        "jit(step)/add",
    ]
    lines = [f'  %x{i} = f32[8,2]{{1,0}} negate(%a), metadata={{op_name="{name}"}}' for i, name in enumerate(origins)]
    text = "\n".join([
        "HloModule jit_step", "", "ENTRY %main (a: f32[8,2]) -> f32[8,2] {", "  %a = f32[8,2]{1,0} parameter(0)",
        *lines, "  %c = f32[8,2]{1,0} copy(%a)", "}",
    ])  # fmt: skip
    moved = {stage: size for stage, size in traffic_by_stage(text, images=2).items() if size}
    assert moved == {
        "interactive convolutions": 64,
        "head, all else: norms, sampling": 64,
        "optimizer, all else": 64,
        "copies of unknown origin": 64,
    }


def test_multiply_adds_by_hand():
    def network(x, kernel, matrix):
        x = jax.lax.conv_general_dilated(
            x, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=2
        )
        return jax.lax.scan(lambda x, _: (jax.jit(jnp.matmul)(x, matrix), None), x, length=3)[0]

    shapes = ((1, 8, 10, 6), (3, 3, 3, 4), (4, 4))
    traced = jax.make_jaxpr(network)(*(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes))
    assert [one.multiply_adds for one in linear_operations(traced.jaxpr)] == [4 * 5 * 4 * (9 * 3), *3 * [4 * 5 * 4 * 4]]
    assert {(one.input, one.output) for one in linear_operations(traced.jaxpr)} == {(8 * 10 * 6, 80), (80, 80)}
    with_while_loop = jax.make_jaxpr(lambda x: jax.lax.while_loop(lambda x: x > 0, lambda x: x - 1, x))(1)
    with pytest.raises(ValueError, match="while"):
        list(linear_operations(with_while_loop.jaxpr))
