"""Collectives, memory and traffic read from the text of compiled programs."""

from types import SimpleNamespace

import jax
import pytest

from tood_jax.distributed.sharding import make_mesh
from tood_jax.tools.compile_for.hlo_text import array_bytes
from tood_jax.tools.compile_for.operations import product_flops
from tood_jax.tools.compile_for.report import Collective, collectives_of, memory_of, sum_by_kind
from tood_jax.tools.compile_for.traffic import estimated_cycles, hbm_bytes, launches


@pytest.fixture
def mesh():
    """data 4 × space 2."""
    return make_mesh(jax.devices()[:8], 2)


@pytest.mark.parametrize(("line", "expected"), [
    ("  %a = f32[3,4]{1,0:T(8,128)} all-reduce(%x), replica_groups={{0,2,4,6},{1,3,5,7}}, to_apply=%add",
     Collective("all-reduce", "data", 48)),
    ("  %a = (f32[], bf16[2,3]{1,0}) all-reduce(%x, %y), replica_groups={{0,1},{2,3},{4,5},{6,7}}, to_apply=%add",
     Collective("all-reduce", "space", 16)),
    ("  ROOT %a = f32[8] all-reduce(f32[8] %x), replica_groups=[1,8]<=[8], use_global_device_ids=true",
     Collective("all-reduce", "data, space", 32)),
    ("  %a = bf16[16]{0} all-gather(%x), replica_groups=[2,4]<=[4,2]T(1,0), dimensions={0}",
     Collective("all-gather", "data", 32)),
    ("  %a = s32[4]{0} reduce-scatter(%x), replica_groups=[4,2]<=[8], dimensions={0}",
     Collective("reduce-scatter", "space", 16)),
    ("  %a = (f32[5]{0}, f32[5]{0}) all-reduce-start(%x, %y), replica_groups=[4,2]<=[8]",
     Collective("all-reduce", "space", 40)),
    ("  %a = f32[5]{0} all-reduce-start(%x), replica_groups={}", Collective("all-reduce", "data, space", 20)),
    ("  %a = (bf16[4]{0}, bf16[16]{0}) all-gather-start(%x), replica_groups=[2,4]<=[4,2]T(1,0), dimensions={0}",
     Collective("all-gather", "data", 32)),
    ("  %a = (f32[2,3]{1,0}, f32[2,3]{1,0}, u32[], u32[]) collective-permute-start(%x), "
     "source_target_pairs={{0,1},{2,3}}", Collective("collective-permute", "space", 24)),
    ("  %a = f32[7]{0} all-reduce(%x), replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_0'}, to_apply=%add",
     Collective("all-reduce", "data", 28)),
    ("  %a = f32[7]{0} all-reduce(%x), replica_groups=mesh['a'=4,'b'=2,'c'=1] {'b','c'}, to_apply=%add",
     Collective("all-reduce", "space", 28)),
    ("  %a = pred[7]{0} all-to-all(%x), replica_groups={{0,1,2,3,4,5,6,7}}",
     Collective("all-to-all", "data, space", 7)),
])  # fmt: skip
def test_one_collective(line, expected, mesh):
    assert collectives_of(f"ENTRY %main () -> f32[] {{\n{line}\n}}\n", mesh) == [expected]


def test_other_instructions_are_no_collectives(mesh):
    text = "  %b = f32[3] all-reduce-done(%a)\n  %c = f32[3] fusion(%all-reduce.3), kind=kLoop, calls=%all-reduce\n"
    assert collectives_of(text, mesh) == []


def test_a_single_device_has_no_axis():
    line = "  %a = f32[3] all-reduce(%x), replica_groups={{0}}, to_apply=%add"
    assert collectives_of(line, make_mesh(jax.devices()[:1])) == [Collective("all-reduce", "", 12)]


def test_sums_by_kind_and_axis_largest_first():
    found = [
        Collective("all-reduce", "data", 4),
        Collective("all-gather", "data", 9),
        Collective("all-reduce", "data", 8),
    ]
    assert sum_by_kind(found) == [(Collective("all-reduce", "data", 12), 2), (Collective("all-gather", "data", 9), 1)]


def test_donated_arguments_count_once():
    sizes = {"argument": 100, "output": 90, "alias": 80, "temp": 7, "generated_code": 3}
    analysis = SimpleNamespace(**{f"{name}_size_in_bytes": size for name, size in sizes.items()})
    assert memory_of(SimpleNamespace(memory_analysis=lambda: analysis)).total == 100 + 90 - 80 + 7 + 3


def test_bytes_of_shapes():
    assert array_bytes("(f32[3,4]{1,0:T(8,128)}, u32[], pred[5]{0}, s4[8], bf16[2]{0:T(256)S(1)})") == [48, 4, 5, 4, 4]
    assert array_bytes("(f32[3,4]{1,0:T(8,128)S(1)}, bf16[2]{0})", only_hbm=True) == [4]


PROGRAM = """HloModule jit_step

%slicing (p0: f32[10,4], p1: f32[4]) -> f32[1,4] {
  %p0 = f32[10,4]{1,0} parameter(0)
  %p1 = f32[4]{0} parameter(1)
  %taken = f32[1,4]{1,0} slice(%p0), slice={[0:1], [0:4]}
  ROOT %sum = f32[1,4]{1,0} add(%taken, %p1)
}

%writing (p0: f32[10,4], p1: f32[1,4]) -> f32[10,4] {
  %p2 = f32[10,4]{1,0} parameter(0)
  %p3 = f32[1,4]{1,0} parameter(1)
  %zero = s32[] constant(0)
  ROOT %put = f32[10,4]{1,0} dynamic-update-slice(%p2, %p3, %zero, %zero)
}

%adding (p0: f32[10,4], p1: f32[10,4]) -> f32[2,4] {
  %p4 = f32[10,4]{1,0} parameter(0)
  %p5 = f32[10,4]{1,0} parameter(1)
  %added = f32[10,4]{1,0} add(%p4, %p5)
  ROOT %two = f32[2,4]{1,0} slice(%added), slice={[0:2], [0:4]}
}

%passing (p0: f32[10,4]) -> f32[10,4] {
  %p6 = f32[10,4]{1,0} parameter(0)
  ROOT %same = f32[10,4]{1,0} bitcast(%p6)
}

%multiplying (p0: f32[10,4]) -> f32[4,4] {
  %p7 = f32[10,4]{1,0} parameter(0)
  %inner = f32[10,4]{1,0} fusion(%p7), kind=kLoop, calls=%passing
  ROOT %product = f32[4,4]{1,0} dot(%inner, %p7), lhs_contracting_dims={0}, rhs_contracting_dims={0}
}

%body (state: (s32[], f32[10,4])) -> (s32[], f32[10,4]) {
  %state = (s32[], f32[10,4]{1,0}) parameter(0)
  %map = f32[10,4]{1,0} get-tuple-element(%state), index=1
  %twice = f32[10,4]{1,0} add(%map, %map)
  ROOT %next = (s32[], f32[10,4]{1,0}) tuple(%state, %twice)
}

%condition (state: (s32[], f32[10,4])) -> pred[] {
  %limit = s32[] constant(3)
  %given = (s32[], f32[10,4]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%given), index=0
  ROOT %less = pred[] compare(%i, %limit), direction=LT
}

ENTRY %main (a: f32[10,4], b: f32[4]) -> f32[10,4] {
  %a = f32[10,4]{1,0} parameter(0)
  %b = f32[4]{0} parameter(1)
  LINES
}
"""


@pytest.mark.parametrize(("lines", "expected"), [
    ("%x = f32[10,4]{1,0} multiply(%a, %a)", 160 + 160),  # an operand counts once
    ("%x = f32[10,4]{1,0:S(1)} negate(%a)", 160),  # its result stays in fast memory
    ("%s = ((f32[10,4]{1,0}), f32[2,4]{1,0:S(1)}, s32[]{:S(2)}) slice-start(%a), slice={[0:2], [0:4]}", 32),
    ("%s = (f32[10,4]{1,0:S(1)}, f32[10,4]{1,0}, u32[]{:S(2)}) copy-start(%a)", 160),
    ("%s = (f32[10,4]{1,0}, f32[10,4]{1,0}, u32[]{:S(2)}) copy-start(%a)", 320),
    ("%f = f32[1,4]{1,0} fusion(%a, %b), kind=kLoop, calls=%slicing", 16 + 16 + 16),
    ("%y = f32[1,4]{1,0} broadcast(%b)\n  %f = f32[10,4]{1,0} fusion(%a, %y), kind=kLoop, calls=%writing", 32 + 32),
    ("%f = f32[2,4]{1,0} fusion(%a, %a), kind=kLoop, calls=%adding", 32 + 2 * 32),  # of a sum, what is sliced of it
    ("%f = f32[10,4]{1,0} fusion(%a), kind=kLoop, calls=%passing", 160 + 160),
    ("%f = f32[4,4]{1,0} fusion(%a), kind=kOutput, calls=%multiplying", 64 + 160),  # through a fusion in the fusion
    ('%c = f32[10,4]{1,0} custom-call(%a), custom_call_target="ConcatBitcast"', 0),
    ("%t = (s32[], f32[10,4]{1,0}) tuple(%a)\n  %w = (s32[], f32[10,4]{1,0}) while(%t), condition=%condition, "
     "body=%body", 3 * (160 + 160)),
    ("%t = (s32[], f32[10,4]{1,0}) tuple(%a)\n  %w = (s32[], f32[10,4]{1,0}) while(%t), condition=%unclear, "
     'body=%body, backend_config={"known_trip_count":{"n":"9"}}', 9 * (160 + 160)),
])  # fmt: skip
def test_traffic(lines, expected):
    assert hbm_bytes(PROGRAM.replace("LINES", lines)) == expected


def test_cycles_are_the_sum_of_the_compilers_estimates_with_loops():
    def noted(cycles):
        return f'backend_config={{"window_config":{{}},"estimated_cycles":"{cycles}"}}'

    lines = (
        f"%x = f32[10,4]{{1,0}} multiply(%a, %a), {noted(7)}\n  %t = (s32[], f32[10,4]{{1,0}}) tuple(%a)\n"
        f"  %w = (s32[], f32[10,4]{{1,0}}) while(%t), condition=%condition, body=%body, {noted(1000)}"
    )
    program = PROGRAM.replace("add(%map, %map)", f"add(%map, %map), {noted(5)}")
    assert estimated_cycles(program.replace("LINES", lines)) == 7 + 3 * 5
    assert estimated_cycles(PROGRAM.replace("LINES", "%x = f32[4]{0} negate(%b)")) == 0


def test_kernels_of_loops_count_as_often_as_they_run():
    lines = (
        "%x = f32[10,4]{1,0} multiply(%a, %a)\n  %t = (s32[], f32[10,4]{1,0}) tuple(%x)\n"
        "  %w = (s32[], f32[10,4]{1,0}) while(%t), condition=%condition, body=%body"
    )
    assert launches(PROGRAM.replace("LINES", lines)) == 1 + 3


CUDNN = 'custom-call({}), window={{size=3x3}}, dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$conv{}"'


@pytest.mark.parametrize(("line", "multiply_adds"), [
    ("%d = f32[5,4]{1,0} dot(%m, %n), lhs_contracting_dims={1,2}, rhs_contracting_dims={0,1}", 5 * 4 * 6),
    ("%c = (bf16[1,8,9,16]{3,2,1,0}, u8[0]{0}) " + CUDNN.format("%x, %k, %b", "BiasActivationForward"),
     8 * 9 * 16 * 9 * 32),
    ("%c = (bf16[1,8,9,32]{3,2,1,0}, u8[0]{0}) " + CUDNN.format("%y, %k", "BackwardInput"), 8 * 9 * 16 * 9 * 32),
    ("%c = (bf16[16,3,3,32]{3,2,1,0}, u8[0]{0}) " + CUDNN.format("%x, %y", "BackwardFilter"), 8 * 9 * 16 * 9 * 32),
    ("%c = bf16[1,8,9,16]{3,2,1,0} convolution(%x, %h), window={size=3x3}, dim_labels=b01f_01io->b01f",
     8 * 9 * 16 * 9 * 32),
    ("%c = bf16[1,8,9,32]{3,2,1,0} custom-call(%x), custom_call_target=\"TopK\"", 0),
])  # fmt: skip
def test_operations_of_products(line, multiply_adds):
    text = f"""HloModule m

ENTRY %main () -> f32[] {{
  %m = f32[5,2,3]{{2,1,0}} parameter(0)
  %n = f32[2,3,4]{{2,1,0}} parameter(1)
  %x = bf16[1,8,9,32]{{3,2,1,0}} parameter(2)
  %k = bf16[16,3,3,32]{{3,2,1,0}} parameter(3)
  %h = bf16[3,3,32,16]{{3,2,1,0}} parameter(4)
  %y = bf16[1,8,9,16]{{3,2,1,0}} parameter(5)
  %b = bf16[16]{{0}} parameter(6)
  {line}
}}
"""
    assert product_flops(text) == 2 * multiply_adds


def test_traffic_of_a_real_program():
    """x + 1 of a million numbers: read once, written once."""
    x = jax.ShapeDtypeStruct((1000, 1000), "float32")
    text = jax.jit(lambda x: x + 1).lower(x).compile().as_text()
    assert hbm_bytes(text) == pytest.approx(8e6, rel=0.01)
