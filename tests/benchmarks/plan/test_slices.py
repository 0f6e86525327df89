"""What a step sends within slices and between them, in programs of both forms, and how long that takes."""

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from benchmarks.flops.flops_and_bytes import Work
from benchmarks.hlo import hlo_parser
from benchmarks.hlo.hlo_parser import ExecutedInstruction
from benchmarks.hlo.instructions import Instruction
from benchmarks.plan import (
    collectives,
    compile_program,
    memory_advice,
    mesh_search,
    plan_page,
    plan_record,
    plan_text,
    roofline,
    target_devices,
)
from benchmarks.plan.collectives import Collective
from tests.support import benchmark_steps, tiny
from train.config.data_options import CausalData
from train.config.run_config import Mesh, Run
from zoo.configs import Compute
from zoo.errors import BadInput
from zoo.mesh_axes import AXES

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all")


@pytest.fixture(autouse=True, scope="module")
def quick() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        benchmark_steps.hurry_plans(patch)
        yield


def sending(kind: str, axes: str, groups: Sequence[Sequence[int]], size: float) -> Collective:
    run = ExecutedInstruction(Instruction("x", kind, "", (), "", ""), "c", 1.0, "")
    listed = tuple(map(tuple, groups))
    return Collective(run, kind, axes, max(map(len, listed)), size, (), listed)


def crossing_by_parts(kind: str, slices: int, own: int, size: int) -> float:
    """Return the bytes that a device sends to other slices, counted message by message.

    Each of slices x own devices has `size` bytes, of a gather its part of them. First each device sums or gathers a part of its
    slice's arrays, so that none is sent twice. Between slices, that part goes round a ring, one share of it in each turn.
    """
    turns = {"all-reduce": 2 * (slices - 1), "all-to-all": 0}.get(kind, slices - 1)
    sent = sum(size / own / slices for _ in range(turns))
    if kind == "all-to-all":
        members = list(itertools.product(range(slices), range(own)))
        sent = sum(size / len(members) for slice_, _ in members if slice_ != 0)
    return sent


@pytest.mark.planted
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("slices", "own"), [(2, 1), (2, 4), (4, 2), (3, 3)])
def test_bytes_between_slices_are_those_of_a_ring_of_slices(kind: str, slices: int, own: int) -> None:
    """The mistake: a group across slices counts as one on the outer network alone, with all its bytes on each device."""
    sizes, outer = {"data": slices * own, "tensor": 2}, {"data": slices, "tensor": 1}
    groups = np.arange(2 * slices * own).reshape(slices * own, 2).T
    one = sending(kind, "data", groups.tolist(), 960.0)
    parts = collectives.divide_by_slices([one], sizes, outer)
    (between,) = [part for part in parts if part.between_slices]
    assert (between.kind, between.axes, between.members) == (kind, "data", slices)
    assert between.groups == (tuple(range(slices)),)
    assert between.bytes_sent == pytest.approx(crossing_by_parts(kind, slices, own, 960))
    inside = [part for part in parts if not part.between_slices]
    assert len(inside) == (own > 1)
    for part in inside:
        assert part.members == own and part.axes == "data"
        assert all(len({member // (2 * own) for member in group}) == 1 for group in part.groups)
        assert sorted(sum(part.groups, ())) == sorted(groups.flatten().tolist())
    if own > 1 and kind != "all-to-all":
        assert one.bytes_sent > 1.2 * between.bytes_sent


def test_what_stays_in_a_slice_is_not_changed() -> None:
    sizes, outer = {"data": 4, "fsdp": 2, "tensor": 2}, {"data": 2, "fsdp": 1, "tensor": 1}
    numbers = np.arange(16).reshape(4, 2, 2)
    own = [
        sending("all-gather", "fsdp", np.moveaxis(numbers, 1, -1).reshape(-1, 2).tolist(), 8.0),
        sending("all-reduce", "data, part", [[0, 4], [1, 5], [8, 12]], 8.0),
        sending("collective-permute", "tensor", [(0, 1), (1, 0)], 8.0),
    ]
    assert collectives.divide_by_slices(own, sizes, outer) == own


def test_a_permutation_is_divided_by_its_pairs() -> None:
    """A shift along data: of four places on two slices, half of the pairs are in a slice."""
    sizes, outer = {"data": 4, "tensor": 2}, {"data": 2, "tensor": 1}
    shift = sending("collective-permute", "data", [(place, (place + 2) % 8) for place in range(8)], 64.0)
    inside, between = collectives.divide_by_slices([shift], sizes, outer)
    assert inside.groups == ((0, 2), (1, 3), (4, 6), (5, 7)) and not inside.between_slices
    assert between.groups == ((0, 1), (1, 0)) and between.between_slices
    assert {(part.axes, part.bytes_sent) for part in (inside, between)} == {("data", 64.0)}


MEGASCALE = """
ENTRY %main (x: f32[8,128], y: bf16[4,128]) -> f32[8,128] {
  %x = f32[8,128]{1,0} parameter(0)
  %y = bf16[4,128]{1,0} parameter(1)
  %t = token[] after-all()
SENDS
  %other = (f32[8,128]{1,0}, u32[], token[]) send(%x, %t), channel_id=90, is_host_transfer=true
  ROOT %sum = f32[8,128]{1,0} all-reduce(%x), replica_groups={{0,2},{1,3}}, to_apply=%add
}
"""
SEND = (
    "  %s{n} = ({type}{{1,0}}, u32[], token[]) send(%{operand}, %t), channel_id={n}, is_host_transfer=true, frontend_attributes="
    '{{_xla_host_transfer_handler_name="xla_megascale_runtime",_xla_megascale_target={target},'
    '_xla_megascale_transfer_type="{kind}"}}, backend_config={{"flag_configs":[]}}'
)
ALL, FSDP = '"{1,2,3,4}x{0:3}"', "{{100000,200000},{100001,200001},{300000,400000},{300001,400001}}"
DATA = "{{100000,300000},{100001,300001},{200000,400000},{200001,400001}}"
TRANSFERS = {
    ("ALL_REDUCE", "x", ALL): ("all-reduce", "data x fsdp", 4, 4096.0, 2 * 4096 * 3 / 4),
    ("ALL_REDUCE", "y", FSDP): ("all-reduce", "fsdp", 2, 1024.0, 1024.0),
    # Each device sends its part to all others.
    ("ALL_GATHER", "y", ALL): ("all-gather", "data x fsdp", 4, 4096.0, 3 * 1024.0),
    ("ALL_GATHER", "y", DATA): ("all-gather", "data", 2, 2048.0, 1024.0),
    ("REDUCE_SCATTER", "x", ALL): ("reduce-scatter", "data x fsdp", 4, 4096.0, 4096 * 3 / 4),
    # Devices of two places in each slice: half of what a device has is for other slices.
    ("ALL_TO_ALL", "x", "{{100000,100003,200000,200003},{300000,300003,400000,400003}}"): (
        "all-to-all",
        "fsdp",
        2,
        4096.0,
        2048.0,
    ),
    ("ONE_TO_ONE", "x", "{{100003->200000},{200003->100000},{300003->400000}}"): (
        "collective-permute",
        "fsdp",
        2,
        4096.0,
        4096.0,
    ),
    ("LATER_KIND", "x", "{{100000,400000}}"): ("LATER_KIND", "other", 2, 4096.0, 2048.0),
}
"""Kind, operand and target of a transfer, as libtpu 0.0.42 writes them -> (kind, axes, slices, bytes, bytes sent)."""


@pytest.mark.planted
@pytest.mark.parametrize("case", TRANSFERS)
def test_transfers_of_a_tpu_are_read(case: tuple[str, str, str]) -> None:
    """A transfer to the host for another reason is none. The mistake: axes of a program that were all of the mesh's."""
    kind, operand, target = case
    types = {"x": "f32[8,128]", "y": "bf16[4,128]"}
    send = SEND.format(n=1, type=types[operand], operand=operand, target=target, kind=kind)
    module = hlo_parser.parse_program(MEGASCALE.replace("SENDS", send))
    sizes, slices = {"data": 2, "fsdp": 4, "tensor": 2}, {"data": 2, "fsdp": 2, "tensor": 1}
    within, between = collectives.sent_by_program(module, sizes, slices, of_slice=True)
    assert (between.kind, between.axes, between.members, between.bytes, between.bytes_sent) == TRANSFERS[case]
    assert between.between_slices and not within.between_slices
    assert (within.kind, within.axes, within.members) == ("all-reduce", "fsdp", 2)
    (wrong,) = collectives.find_collectives(module, sizes)
    assert wrong.axes != "fsdp"


def gpt(**mesh: int) -> Run:
    """Return a run of a GPT without dropout, whose layers divide over eight devices."""
    run = tiny.run()
    numbers = {"width": 64, "heads": 8, "head": 8, "ffn": 256, "layers": 2, "vocab": 512, "context": 32}
    rates = dict.fromkeys(("dropout", "embedding_dropout", "attention_dropout"), 0.0)
    model = dataclasses.replace(run.model, **numbers, **rates, compute=Compute(attention="xla"))
    return dataclasses.replace(run, model=model, mesh=Mesh(**mesh), data=CausalData(length=32, batch=16))


@functools.cache
def planned() -> plan_record.Plan:
    """Return the plan of a step with data alone, on two slices of four devices."""
    program = compile_program.compile_run(gpt(data=8), "train", target_devices.parse_target("cpu:4*2"))
    return plan_record.make_plan(program, "gpt")


def sent(mesh: Mapping[str, int], target: str) -> list[Collective]:
    program = compile_program.compile_run(gpt(**mesh), "train", target_devices.parse_target(target))
    slices = plan_record.mesh_sizes.slice_sizes(program.run.mesh, program.mesh.shape, program.target.slices)
    return collectives.sent_by_program(hlo_parser.parse_program(program.text), dict(program.mesh.shape), slices, of_slice=False)


def test_a_step_sends_each_gradient_between_slices_once() -> None:
    """A quarter of the gradients on each of four devices of a slice; a tied table has two of them."""
    plan, model = planned(), gpt().model
    assert plan.slices == dict.fromkeys(AXES, 1) | {"data": 2} and plan.slice_count == 2
    gradients = plan.memory["parameters"] + 4 * model.vocab * model.width
    assert plan_text.bytes_sent(plan, between_slices=True) == pytest.approx(gradients / 4, rel=0.05)
    # Within a slice, each device sends 3/4 of them twice.
    assert plan_text.bytes_sent(plan, between_slices=False) == pytest.approx(2 * gradients * 3 / 4, rel=0.05)
    assert plan_text.plan_inputs(plan)["slices"] == "2, over data=2"
    assert plan_record.Plan.of(plan.plain()) == plan
    table_of_times = [row[0] for row in plan_text.times_table(plan).rows]
    assert table_of_times == ["compute", "memory", "interconnect", "between slices"]
    assert {row[1] for row in plan_text.collectives_table(plan).rows} == {"within a slice", "between slices"}
    page = plan_page.render_plan(plan)
    assert "2, over data=2" in page and "within a slice" in page


@pytest.mark.full
def test_only_data_and_fsdp_go_between_slices() -> None:
    for mesh in ({"data": 2, "fsdp": 2, "tensor": 2}, {"data": 1, "fsdp": 4, "tensor": 2}):
        parts = sent(mesh, "cpu:4*2")
        axis = "data" if mesh["data"] > 1 else "fsdp"
        assert {part.axes for part in parts if part.between_slices} == {axis}
        # Nothing of what one slice sends is lost.
        undivided = sent(mesh, "cpu:8")
        assert sum(one.run.times for one in undivided if axis in one.axes.split(" x ")) == sum(
            part.run.times for part in parts if part.between_slices
        )


NOTHING = Work(products=0.0, kernels=0.0, bytes=0.0, unknown=())


def test_each_network_has_its_rate() -> None:
    """Of 1 GB between slices, v5e chips send 0.5 GB at 3.125 GB/s. For GPUs no rate is published, which leaves the others."""
    one = dataclasses.replace(sending("all-gather", "data", [(0, 1)], 1e9), between_slices=True)
    for name, seconds in (("v5e:2x4*2", 0.5 / 3.125), ("v5p:2x2x1*2", 0.5 / 6.25), ("v6e:2x4*2", 0.5 / 12.5), ("h100:8*2", None)):
        target = target_devices.parse_target(name)
        times = roofline.times_of_step(NOTHING, [one], np.array([None]), target, "bfloat16")
        assert (times.between_slices, times.interconnect) == (seconds and pytest.approx(seconds), 0.0)
        assert times.longest == (pytest.approx(seconds) if seconds else 0.0)
        assert times.slowest == ("between_slices" if seconds else "compute")
    alone = roofline.times_of_step(NOTHING, [], np.array([None]), target_devices.parse_target("h100:8*2"), "bfloat16")
    assert alone.between_slices == 0.0


def test_a_group_of_four_gpus_is_a_host() -> None:
    """Devices 0 to 3 and 4 to 7 are two slices, so that a gather of each does not leave its host."""
    devices = np.array([type("Device", (), {"id": number})() for number in range(8)], object)
    gather = sending("all-gather", "fsdp", [range(4), range(4, 8)], 1e9)
    for name in ("h100:4*2", "h100:8"):
        times = roofline.times_of_step(NOTHING, [gather], devices, target_devices.parse_target(name), "bfloat16")
        assert times.interconnect == pytest.approx(3 / 4 / 450)


def test_targets_have_slices() -> None:
    v5p, h100 = (target_devices.parse_target(name) for name in ("v5p:8x8x8*4", "h100:64*2"))
    assert (v5p.chip, v5p.size, v5p.slices) == ("v5p", "8x8x8", 4)
    assert (h100.chip, h100.size, h100.slices) == ("h100", "64", 2)
    assert target_devices._description(v5p) == {"platform": "tpu", "topology_name": "v5p:8x8x8", "num_slices": 4}
    assert target_devices._description(h100)["topology"] == "2x8x8"
    assert target_devices.parse_target("v5e:2x2").slices == 1
    for name in ("v5e:2x2*", "h100:8*0", "cpu:4*two", "v5p:2x2x1*2*2"):
        with pytest.raises(BadInput, match=r"--target .*: write the number of slices after \*, 1 to 999, for example "):
            target_devices.parse_target(name)


def test_another_number_of_slices_than_the_targets_is_refused() -> None:
    for slices, target, message in (
        (4, "cpu:4*2", "--mesh.slices 4: --target cpu:4[*]2 is 2 slices; leave out the option, or write --target cpu:4[*]4 for"),
        (2, "cpu:8", "--mesh.slices 2: --target cpu:8 is 1 slice; leave out"),
    ):
        with pytest.raises(BadInput, match=message):
            compile_program.resolve_run(gpt(slices=slices), target_devices.parse_target(target))


def test_a_search_tries_the_meshes_that_slices_divide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the candidates for one slice, those whose rows four slices divide; the likely ones first have data across slices."""
    every, divided = (
        list(mesh_search.mesh_candidates(gpt(), "train", target_devices.parse_target(name))) for name in ("cpu:8", "cpu:2*4")
    )
    assert divided == [one for one in every if one.data * one.fsdp % 4 == 0] and len(divided) < len(every)
    v5e = target_devices.parse_target("v5e:2x2*2")
    monkeypatch.setattr(target_devices, "devices_of_target", lambda target: (None,) * 8)
    ordered = mesh_search.ordered_candidates(gpt(), "train", v5e)
    places = {
        (each.data, each.fsdp): place for place, each in reversed([*enumerate(ordered)]) if each.tensor == each.sequence == 1
    }
    # Devices send the least between slices if each has a quarter of the gradients of its slice, and no parameters.
    assert places[2, 4] < places[4, 2] < places[8, 1]
    assert places[2, 4] < places[1, 8]
    # Gradients are summed over data in every micro-batch, as often as fsdp gathers layers.
    ordered = mesh_search.ordered_candidates(gpt(), "train", target_devices.parse_target("v5e:2x4"))
    names = [(one.data, one.fsdp, one.accumulate) for one in ordered if one.remat == "none"]
    assert names.index((1, 8, 1)) < names.index((8, 1, 2))


def test_a_search_shows_bytes_where_no_rate_is_published() -> None:
    """A bound that leaves a link out has a note; without a bound there is none."""

    def blocks(**changes: Any) -> Any:
        plan = dataclasses.replace(planned(), **changes)
        return plan_text.search_blocks(plan_record.SearchResult(ranked=[plan], summary="done"), 4)

    _, table, summary = blocks()
    assert summary == "done"
    _, table, note, summary = blocks(bound=0.5)
    assert "between slices" in table.head and table.rows[0][list(table.head).index("between slices")].endswith("kB")
    assert note.startswith("No rate of the network between slices is published") and summary == "done"
    times = dataclasses.replace(planned().times, between_slices=0.0, host=None)
    assert blocks(bound=0.5, times=times)[2].startswith("No rate of the link to the memory of the host is published")


def test_the_memory_of_a_host_has_the_devices_of_one_slice() -> None:
    for target, count in (("h100:4*2", 4), ("h100:8", 8), ("h100:16", 8)):
        slices = planned().slices if "*" in target else dict.fromkeys(AXES, 1)
        devices = 8 if target != "h100:16" else 16
        plan = dataclasses.replace(planned(), target=target, devices=devices, slices=slices, host=1 << 30)
        assert f"1.0 GiB of each device, {count}.0 GiB for the {count} devices of a host" in plan_text.host_sentence(plan)


def test_slices_of_copies_are_not_advised_to_divide_parameters() -> None:
    """The slower network then sends gradients only: `data` is as large as the number of slices."""
    program = compile_program.compile_run(gpt(data=8), "train", target_devices.parse_target("cpu:4*2"))
    for data, end in ((8, "--mesh.data 2 --mesh.fsdp 4 would divide them"), (2, None)):
        sizes = dict(program.mesh.shape) | {"data": data}
        lines = plan_record.replication_warnings(program.arguments, sizes, 1, slices=2)
        assert [line.partition("; ")[2] for line in lines if "copied over data" in line] == ([end] if end else [])
    advice = [one.options for one in memory_advice.memory_advice(program, [], 1 << 20)]
    assert "--mesh.data 2 --mesh.fsdp 4" in advice and not any("--mesh.data 1" in options for options in advice)


@pytest.mark.planted(1)
def test_a_gather_of_a_stack_over_slices_is_warned_of_once() -> None:
    """Its parts within slices and between them are one gather, of the devices of all slices."""
    program = compile_program.compile_run(gpt(data=1, fsdp=8), "train", target_devices.parse_target("cpu:4*2"))
    text = """
ENTRY %main (w: f32[2,8,256]) -> f32[2,64,256] {
  %w = f32[2,8,256]{2,1,0} parameter(0)
  ROOT %g = f32[2,64,256]{2,1,0} all-gather(%w), replica_groups=[1,8]<=[8], dimensions={1}
}
"""
    sizes = dict(program.mesh.shape)
    outer = plan_record.mesh_sizes.slice_sizes(program.run.mesh, sizes, 2)
    parts = collectives.sent_by_program(hlo_parser.parse_program(text), sizes, outer, of_slice=False)
    assert len(parts) == 2
    (line,) = plan_record.gather_warnings(parts, program)
    assert "layers/mlp/up/kernel" in line and line.endswith(f"{4 * 2 * 64 * 256 / 2**20:,.1f} MiB")
