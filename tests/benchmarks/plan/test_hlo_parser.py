"""Compiled programs, read from their text: how often what is in a loop runs, along which axes is sent, what is multiplied."""

import pytest

from benchmarks.flops import flops_and_bytes
from benchmarks.hlo import hlo_parser as hlo
from benchmarks.plan import collectives
from benchmarks.plan.collectives import replica_groups

SIZES = {"data": 2, "fsdp": 2, "tensor": 2, "sequence": 1}

# A loop of five in a loop whose count, three, only its condition has; and every way of writing down what is sent.
PROGRAM = """
%fused (param_0: f32[5,16,16], param_1: s32[]) -> f32[16,16] {
  %param_0 = f32[5,16,16]{2,1,0} parameter(0)
  %param_1 = s32[] parameter(1)
  %zero = s32[] constant(0)
  %slice = f32[1,16,16]{2,1,0} dynamic-slice(%param_0, %param_1, %zero, %zero), dynamic_slice_sizes={1,16,16}
  ROOT %bitcast.2 = f32[16,16]{1,0} bitcast(%slice)
}

%inner_body (p: (s32[], f32[8,16], f32[5,16,16])) -> (s32[], f32[8,16], f32[5,16,16]) {
  %p = (s32[], f32[8,16]{1,0}, f32[5,16,16]{2,1,0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %x = f32[8,16]{1,0} get-tuple-element(%p), index=1
  %w = f32[5,16,16]{2,1,0} get-tuple-element(%p), index=2
  %layer = f32[16,16]{1,0} fusion(%w, %i), kind=kLoop, calls=%fused
  %dot.1 = f32[8,16]{1,0} dot(%x, %layer), lhs_contracting_dims={1}, rhs_contracting_dims={0}, metadata={op_name="jit(step)/dot"}
  %all-reduce.1 = f32[8,16]{1,0} all-reduce(%dot.1), channel_id=1, replica_groups=[4,2]<=[8], to_apply=%add
  %one = s32[] constant(1)
  %i.2 = s32[] add(%i, %one)
  ROOT %t = (s32[], f32[8,16]{1,0}, f32[5,16,16]{2,1,0}) tuple(%i.2, %all-reduce.1, %w)
}

%inner_condition (p.1: (s32[], f32[8,16], f32[5,16,16])) -> pred[] {
  %p.1 = (s32[], f32[8,16]{1,0}, f32[5,16,16]{2,1,0}) parameter(0)
  %i.1 = s32[] get-tuple-element(%p.1), index=0
  %n = s32[] constant(7)
  ROOT %less = pred[] compare(%i.1, %n), direction=LT
}

%outer_body (q: (s32[], f32[8,16], f32[5,16,16])) -> (s32[], f32[8,16], f32[5,16,16]) {
  %q = (s32[], f32[8,16]{1,0}, f32[5,16,16]{2,1,0}) parameter(0)
  %j.1 = s32[] get-tuple-element(%q), index=0
  %w.1 = f32[5,16,16]{2,1,0} get-tuple-element(%q), index=2
  %inner = (s32[], f32[8,16]{1,0}, f32[5,16,16]{2,1,0}) while(%q), condition=%inner_condition, body=%inner_body, \
backend_config={"known_trip_count":{"n":"5"}}
  %x.1 = f32[8,16]{1,0} get-tuple-element(%inner), index=1
  %more = s32[] constant(1)
  %j.2 = s32[] add(%j.1, %more)
  ROOT %t.1 = (s32[], f32[8,16]{1,0}, f32[5,16,16]{2,1,0}) tuple(%j.2, %x.1, %w.1)
}

%outer_condition (q.1: (s32[], f32[8,16], f32[5,16,16])) -> pred[] {
  %q.1 = (s32[], f32[8,16]{1,0}, f32[5,16,16]{2,1,0}) parameter(0)
  %j = s32[] get-tuple-element(%q.1), index=0
  %three = s32[] constant(3)
  ROOT %under = pred[] compare(%j, %three), direction=LT
}

ENTRY %main (arg: f32[8,16], stack: f32[5,16,16]) -> f32[8,16] {
  %arg = f32[8,16]{1,0} parameter(0)
  %stack = f32[5,16,16]{2,1,0} parameter(1)
  %zero.1 = s32[] constant(0)
  %start = (f32[4,16]{1,0}, f32[8,16]{1,0}) all-gather-start(%arg), channel_id=2, replica_groups={{0,4},{1,5},{2,6},{3,7}}, \
dimensions={0}
  %done = f32[8,16]{1,0} all-gather-done(%start)
  %shift = f32[8,16]{1,0} collective-permute(%done), source_target_pairs={{0,2},{2,0},{1,3},{3,1},{4,6},{6,4},{5,7},{7,5}}
  %in = (s32[], f32[8,16]{1,0}, f32[5,16,16]{2,1,0}) tuple(%zero.1, %shift, %stack)
  %outer = (s32[], f32[8,16]{1,0}, f32[5,16,16]{2,1,0}) while(%in), condition=%outer_condition, body=%outer_body
  ROOT %out = f32[8,16]{1,0} get-tuple-element(%outer), index=1
}
"""


def loop_runs(text: str) -> float | int | None:
    """Return how often the outer loop runs."""
    module = hlo.parse_program(text)
    return module.trip_count(module.instructions["outer"])


def test_instructions_in_a_loop_count_as_often_as_it_runs() -> None:
    """Times the counts of nested loops, from XLA's note or the condition; a loop of unknown count counts once and is reported."""
    module = hlo.parse_program(PROGRAM)
    times = {run.instruction.name: run.times for run in module.runs()}
    assert (times["dot.1"], times["all-reduce.1"], times["start"]) == (15, 15, 1)
    assert flops_and_bytes.device_work(module, [], 8).products == 15 * 2 * 8 * 16 * 16 and module.unknown_loops() == []
    text = PROGRAM.replace("%three = s32[] constant(3)", "%three = s32[] get-tuple-element(%q.1), index=0")
    module = hlo.parse_program(text.replace("body=%outer_body", 'body=%outer_body, metadata={op_name="jit(step)/while"}'))
    assert module.unknown_loops() == ["jit(step)/while"]
    assert {run.instruction.name: run.times for run in module.runs()}["dot.1"] == 5
    with pytest.raises(ValueError, match="it has no entry"):
        hlo.parse_program("HloModule nothing\n")


def test_a_loop_runs_from_where_its_counter_begins() -> None:
    """The loops of `blocked` begin at the first block that has a visible key."""
    unknown = 'custom-call(%stack), custom_call_target="first"'
    for start, times in (("constant(0)", 3), ("constant(1)", 2), ("constant(7)", 0), (unknown, None)):
        text = PROGRAM.replace("%zero.1 = s32[] constant(0)", f"%zero.1 = s32[] {start}")
        assert loop_runs(text) == times and hlo.parse_program(text).unknown_loops() == ([] if times is not None else ["outer"])


def test_a_counter_may_go_up_by_more_than_one() -> None:
    """As in the loops of a TPU that gather an operand while they multiply, two of its parts at a time; or down."""
    for step, start, last, direction, times in (
        (2, 0, 4, "LT", 2),
        (2, 0, 5, "LT", 3),
        (2, 0, 4, "LE", 3),
        (-1, 4, 1, "GT", 3),
        (-2, 4, 0, "NE", 2),
        (2, 0, 5, "NE", None),
        (-1, 4, 1, "LT", None),
        (0, 0, 4, "LT", None),
    ):
        text = PROGRAM.replace("%more = s32[] constant(1)", f"%more = s32[] constant({step})")
        text = text.replace("%zero.1 = s32[] constant(0)", f"%zero.1 = s32[] constant({start})")
        text = text.replace("%three = s32[] constant(3)", f"%three = s32[] constant({last})")
        text = text.replace("compare(%j, %three), direction=LT", f"compare(%j, %three), direction={direction}")
        assert loop_runs(text) == times, (step, start, last, direction)
        mirrored = {"LT": "GT", "GT": "LT", "LE": "GE", "NE": "NE"}[direction]
        text = text.replace(f"compare(%j, %three), direction={direction}", f"compare(%three, %j), direction={mirrored}")
        assert loop_runs(text) == times, (step, start, last, mirrored)
    # An update that is no fixed step.
    assert loop_runs(PROGRAM.replace("add(%j.1, %more)", "add(%j.1, %j.1)")) is None


def test_the_numbers_of_a_loop_may_come_from_its_state_and_from_fusions() -> None:
    """The compiler for TPUs moves constants into the state of a loop, which passes them on, and fuses the update of a counter."""
    fused = """%update (a.3: s32[], b.3: s32[]) -> s32[] {
  %a.3 = s32[] parameter(0)
  %b.3 = s32[] parameter(1)
  ROOT %sum.3 = s32[] add(%b.3, %a.3)
}

%outer_body"""
    text = PROGRAM.replace("%outer_body (q", fused + " (q", 1)
    text = text.replace("%j.2 = s32[] add(%j.1, %more)", "%j.2 = s32[] fusion(%more, %j.1), kind=kLoop, calls=%update")
    assert loop_runs(text) == 3
    state, longer = "(s32[], f32[8,16]{1,0}, f32[5,16,16]{2,1,0})", "(s32[], f32[8,16]{1,0}, f32[5,16,16]{2,1,0}, s32[])"
    text = text.replace("%three = s32[] constant(3)", "%three = s32[] get-tuple-element(%q.1), index=3").replace(state, longer)
    text = text.replace("tuple(%j.2, %x.1, %w.1)", "tuple(%j.2, %x.1, %w.1, %end)").replace(
        "  %more =", "  %end = s32[] get-tuple-element(%q), index=3\n  %more ="
    )
    text = text.replace("tuple(%zero.1, %shift, %stack)", "tuple(%zero.1, %shift, %stack, %limit)").replace(
        "  %zero.1 =", "  %limit = s32[] constant(6)\n  %zero.1 ="
    )
    assert loop_runs(text) == 6
    assert loop_runs(text.replace("%end = s32[] get-tuple-element(%q), index=3", "%end = s32[] add(%j.1, %j.1)")) is None


def test_attributes_may_have_line_breaks() -> None:
    """As the metadata of a Pallas kernel, whose last line begins like the end of a computation; what follows is read."""
    metadata = 'frontend_attributes={kernel_metadata={\n"xprof_metadata":"{}"\n}}, metadata={op_name="jit(step)/attention0/f"}'
    kernel = f'%kernel = f32[8,16]{{1,0}} custom-call(%x), custom_call_target="tpu_custom_call", {metadata}'
    module = hlo.parse_program(PROGRAM.replace("  %dot.1 =", f"  {kernel}\n  %dot.1 ="))
    assert flops_and_bytes.device_work(module, [], 8).products == 15 * 2 * 8 * 16 * 16
    assert module.instructions["kernel"].op_name == "jit(step)/attention0/f"


@pytest.mark.planted
def test_a_name_that_is_not_defined_is_an_error() -> None:
    """Lines that the parser does not read would otherwise be work that is not counted."""
    for before, after, missing in (("%x = ", "%y = ", "x"), ("%inner_body (", "%other_body (", "inner_body")):
        with pytest.raises(ValueError, match=f"has {missing}, which no line above it defines"):
            hlo.parse_program(PROGRAM.replace(before, after, 1))


def test_the_condition_of_a_loop_may_be_fused() -> None:
    """With the constant inside or outside; a counter that is compared with anything else has no known count."""
    fused = """%smaller (a.2: s32[], b.2: s32[]) -> pred[] {
  %a.2 = s32[] parameter(0)
  %b.2 = s32[] parameter(1)
  ROOT %smaller.1 = pred[] compare(%b.2, %a.2), direction=LT
}

%outer_condition"""
    compare = "ROOT %under = pred[] compare(%j, %three), direction=LT"
    text = PROGRAM.replace("%outer_condition (q", fused + " (q", 1)
    for operands, times in (("%three, %j", 3), ("%j, %three", None)):
        fusion = f"ROOT %under = pred[] fusion({operands}), kind=kLoop, calls=%smaller"
        assert loop_runs(text.replace(compare, fusion)) == times


def test_collectives_have_their_kind_axis_and_groups() -> None:
    sent = collectives.find_collectives(hlo.parse_program(PROGRAM), SIZES)
    rows = {row.kind: row for row in collectives.total_by_axes(sent)}
    array = 8 * 16 * 4
    assert {kind: (row.axes, row.members, row.count, row.bytes, row.bytes_sent) for kind, row in rows.items()} == {
        # Twice a half of each array.
        "all-reduce": ("tensor", 2, 15, 15 * array, 15 * array),
        # What is gathered is twice what a device has; half of that it sends.
        "all-gather": ("data", 2, 1, 2 * array, array),
        "collective-permute": ("fsdp", 2, 1, array, array),
    }
    groups = {each.kind: each.groups for each in sent}
    assert groups["all-reduce"] == ((0, 1), (2, 3), (4, 5), (6, 7))
    assert groups["all-gather"] == ((0, 4), (1, 5), (2, 6), (3, 7))
    assert groups["collective-permute"][:2] == ((0, 2), (2, 0))


def test_a_slice_of_a_stack_reads_only_its_layer() -> None:
    """And a fusion writes its result, a product reads both operands and writes one; nothing else moves."""
    layer, array = 16 * 16 * 4, 8 * 16 * 4
    # The index of the layer is read too, and the counters of both loops go up.
    counter = 3 * 4
    each = (layer + 4 + layer) + (array + layer + array) + counter
    assert flops_and_bytes.device_work(hlo.parse_program(PROGRAM), [], 8).bytes == 15 * each + 3 * counter


GROUPS = {
    "replica_groups={{0,1},{2,3}}": [[0, 1], [2, 3]],
    "replica_groups={}": [[0, 1, 2, 3]],
    "replica_groups=[2,2]<=[4]": [[0, 1], [2, 3]],
    "replica_groups=[2,2]<=[2,2]T(1,0)": [[0, 2], [1, 3]],
    "replica_groups=mesh['a'=2,'b'=2] {'b'}, dimensions={1}": [[0, 1], [2, 3]],
    "replica_groups=mesh['a'=2,'b'=2] {'a'}": [[0, 2], [1, 3]],
    "replica_groups=mesh['a'=1,'b'=2,'c'=2], device_ids=([2,2]T(1,0)) {'b'}, x=1": [[0, 1], [2, 3]],
    "replica_groups=mesh['a'=4] {'a':(2)2}": [[0, 1], [2, 3]],
    "replica_groups=mesh['a'=4] {'a':(1)2}": [[0, 2], [1, 3]],
    "replica_groups=mesh['a'=2,'b'=2] {'a','b'}": [[0, 1, 2, 3]],
}


def test_groups_are_read_however_they_are_written() -> None:
    for text, groups in GROUPS.items():
        assert replica_groups(text, 4) == frozenset(map(frozenset, groups)), text


CONVOLUTION = """
ENTRY %main (x: {x}, y: {y}) -> {result} {{
  %x = {x}{{2,1,0}} parameter(0)
  %y = {y}{{2,1,0}} parameter(1)
  ROOT %c = {result}{{2,1,0}} convolution(%x, %y), {how}
}}
"""


def test_a_convolution_counts_as_its_products() -> None:
    """A batch of products as a TPU writes it: the batch is a dimension of the window, spread out so that only equal places meet.
    Padding is not counted."""
    window = "window={size=6 stride=5 pad=0_0 lhs_dilate=6}, dim_labels=0bf_0io->0bf"
    text = CONVOLUTION.format(x="f32[6,32,8]", y="f32[6,8,16]", result="f32[6,32,16]", how=window)
    assert flops_and_bytes.device_work(hlo.parse_program(text), [], 1).products == 2 * 6 * 32 * 8 * 16
    window = "window={size=3 pad=1_1}, dim_labels=b0f_0io->b0f"
    text = CONVOLUTION.format(x="f32[2,10,8]", y="f32[3,8,16]", result="f32[2,10,16]", how=window)
    assert flops_and_bytes.device_work(hlo.parse_program(text), [], 1).products == 2 * 2 * 8 * 16 * (9 + 10 + 9)


TPU = """
%scatter (a: f32[8,16]) -> f32[4,16] {
  %a = f32[8,16]{1,0} parameter(0)
  %sum = f32[8,16]{1,0} all-reduce(%a), channel_id=1, replica_groups={{0,1}}, to_apply=%add
  %half = s32[] constant(4)
  %none = s32[] constant(0)
  ROOT %own = f32[4,16]{1,0} dynamic-slice(%sum, %half, %none), dynamic_slice_sizes={4,16}
}

%begin (b: f32[4,16]) -> f32[8,16] {
  %b = f32[4,16]{1,0:T(8,128)S(1)} parameter(0)
  ROOT %g = f32[8,16]{1,0:T(8,128)S(1)} all-gather(%b), channel_id=7, replica_groups={{0,1}}, frontend_attributes={chain_id="0"}
}

%go_on (c: f32[4,16]) -> f32[8,16] {
  %c = f32[4,16]{1,0:T(8,128)S(1)} parameter(0)
  ROOT %g.1 = f32[8,16]{1,0:T(8,128)S(1)} all-gather(%c), channel_id=7, replica_groups={{0,1}}, frontend_attributes={chain_id="0"}
}

ENTRY %main (x: f32[8,16]) -> f32[8,16] {
  %x = f32[8,16]{1,0:T(8,128)} parameter(0)
  %part = f32[4,16]{1,0:T(8,128)S(1)} fusion(%x), kind=kCustom, calls=%scatter
  %first = f32[8,16]{1,0:T(8,128)S(1)} fusion(%part), kind=kCustom, calls=%begin
  %fetch = (f32[8,16]{1,0:T(8,128)S(1)}, f32[8,16]{1,0:T(8,128)}, u32[]{:S(2)}) copy-start(%x)
  %fetched = f32[8,16]{1,0:T(8,128)S(1)} copy-done(%fetch)
  %take = ((f32[8,16]{1,0:T(8,128)}), f32[1,16]{1,0:T(8,128)S(1)}, s32[]{:S(2)}) slice-start(%x), slice={[7:8], [0:16]}
  %taken = f32[1,16]{1,0:T(8,128)S(1)} slice-done(%take)
  %room = f32[8,16]{1,0:T(8,128)} custom-call(), custom_call_target="AllocateBuffer"
  %rows = f32[2,16]{1,0:T(8,128)S(1)} slice(%x), slice={[0:2], [0:16]}
  %again = f32[1,16]{1,0:T(8,128)S(1)} slice(%rows), slice={[0:1], [0:16]}
  ROOT %second = f32[8,16]{1,0:T(8,128)S(1)} fusion(%part), kind=kCustom, calls=%go_on
}
"""


def test_collectives_in_the_form_of_a_tpu_are_recognized() -> None:
    """A sum of which each device keeps its part is a scatter; a gather that several fusions go on with is one gather."""
    rows = {
        row.kind: (row.count, row.bytes)
        for row in collectives.total_by_axes(collectives.find_collectives(hlo.parse_program(TPU), {"fsdp": 2}))
    }
    assert rows == {"reduce-scatter": (1, 8 * 16 * 4), "all-gather": (1, 8 * 16 * 4)}


def test_data_that_stays_on_the_chip_is_not_counted() -> None:
    """Of a TPU; elsewhere another memory is the device's too. What is fetched onto the chip is read once, a slice as it is."""
    module, row = hlo.parse_program(TPU), 16 * 4
    fused, fetched, sliced = 8 * row, 8 * row, (1 + 2) * row
    assert flops_and_bytes.device_work(module, [], 2, on_chip=True).bytes == fused + fetched + sliced
    # Both fusions that gather read a half and write a whole; here everything is written too, and the slice of the slice read.
    assert (
        flops_and_bytes.device_work(module, [], 2).bytes == (8 + 4) * row + 2 * (4 + 8) * row + 2 * fetched + 2 * sliced + 2 * row
    )


def test_an_asynchronous_scatter_is_counted_once() -> None:
    """As a GPU prints it; what waits for it sends nothing."""
    text = """
ENTRY %main (x: f32[8]) -> f32[4] {
  %x = f32[8]{0} parameter(0)
  %begun = ((f32[8]{0}), f32[4]{0}) reduce-scatter-start(%x), replica_groups={{0,1}}, dimensions={0}, to_apply=%add
  ROOT %ended = f32[4]{0} reduce-scatter-done(%begun)
}
"""
    (row,) = collectives.total_by_axes(collectives.find_collectives(hlo.parse_program(text), {"fsdp": 2}))
    assert (row.kind, row.count, row.bytes, row.bytes_sent) == ("reduce-scatter", 1, 32, 16)


def test_a_collective_that_another_processor_of_a_chip_executes_is_counted() -> None:
    """As a TPU7x prints it: its SparseCores call a computation with the collective."""
    text = """
%offloaded (p: f32[8], q: token[]) -> f32[4] {
  %p = f32[8]{0} parameter(0)
  %q = token[] parameter(1)
  ROOT %scatter = f32[4]{0} reduce-scatter(%p), replica_groups=mesh['a'=1,'b'=2] {'b'}, dimensions={0}, to_apply=%add
}, execution_thread="sparsecore"

ENTRY %main (x: f32[8]) -> f32[4] {
  %x = f32[8]{0} parameter(0)
  %t = token[] after-all()
  %begun = ((f32[8]{0}, token[]), f32[4]{0}) call-start(%x, %t), async_execution_thread="sparsecore", to_apply=%offloaded
  ROOT %ended = f32[4]{0} call-done(%begun)
}
"""
    (row,) = collectives.total_by_axes(collectives.find_collectives(hlo.parse_program(text), {"data": 1, "fsdp": 2}))
    assert (row.kind, row.axes, row.count, row.bytes) == ("reduce-scatter", "fsdp", 1, 32)


def test_collectives_along_a_part_of_an_axis_are_named() -> None:
    """As a TPU sums along a long axis: within halves of it, then between them."""
    text = """
ENTRY %main (x: f32[8]) -> f32[8] {
  %x = f32[8]{0} parameter(0)
  %within = f32[8]{0} all-reduce(%x), replica_groups={{0,1},{2,3},{4,5},{6,7}}
  ROOT %between = f32[8]{0} all-reduce(%within), replica_groups={{0,2},{1,3},{4,6},{5,7}}
}
"""
    (row,) = collectives.total_by_axes(collectives.find_collectives(hlo.parse_program(text), {"data": 2, "fsdp": 4}))
    assert (row.axes, row.members, row.count) == ("fsdp, part", 2, 2)
