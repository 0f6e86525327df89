"""`zoo plan`: what it compiles is what a run does, and what it says of it can be checked by hand."""

import ast
import contextlib
import dataclasses
import functools
import io
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.core import result_tables, timing
from benchmarks.core.memory import bytes_per_device
from benchmarks.plan import (
    compile_program,
    find_run,
    mesh_search,
    plan_cache,
    plan_page,
    plan_record,
    plan_text,
    roofline,
    target_devices,
)
from benchmarks.plan.mesh_search import Candidate
from benchmarks.plan.plan_record import Plan
from tests.support import benchmark_steps, tiny
from tests.support.commands import call
from tests.support.processes import ROOT, clean_environment
from tests.support.small import small as tiny_model
from train import recipes
from train.config import run_config
from train.config.data_options import CausalData, DialogueData, PromptData
from train.config.distillation_options import ResponseDistillation, StoredDistillation, TripleLoss
from train.config.objectives import CausalOptions, InstructionOptions, PolicyGradientOptions
from train.config.policy_gradient_options import PolicyGradientLoss
from train.config.rollout_options import Rollout
from train.config.run_config import Mesh
from train.engine import device_mesh
from zoo import configs, models
from zoo.attention import attention
from zoo.batch import Batch
from zoo.errors import BadInput
from zoo.ops import tile_sizes
from zoo.precision import DTYPES

CPU = target_devices.parse_target("cpu:8")


@pytest.fixture(autouse=True, scope="module")
def quick() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        benchmark_steps.hurry_plans(patch)
        yield


def small(**changes: Any) -> run_config.Run:
    """Return a run of a GPT that compiles in a second."""
    run = tiny.run()
    model = dataclasses.replace(run.model, dropout=0.0, embedding_dropout=0.0, attention_dropout=0.0)
    return dataclasses.replace(run, **{"model": model, "data": CausalData(length=32, batch=16), **changes})


@functools.cache
def planned() -> Plan:
    return plan_cache.cached_plan(small(mesh=Mesh(fsdp=2, tensor=2)), "train", CPU)


@pytest.mark.full
def test_memory_of_a_device_follows_from_the_sharding() -> None:
    """Parameters by hand: split over fsdp and tensor as the table has it; AdamW's two moments twice that, and its counter."""
    model = small().model
    width, ffn, heads, layers = model.width, model.ffn, model.heads * model.head, model.layers
    rows = 384  # 300 entries, padded to a multiple of 128
    tables = rows * width // 4 + model.context * width // 2
    kernels = (3 * width * heads + heads * width + 2 * width * ffn) // 4
    biases = 3 * heads // 2 + width + ffn // 2 + width
    by_hand = 4 * (tables + layers * (kernels + biases + 4 * width) + 2 * width)
    assert planned().memory["parameters"] == by_hand
    assert planned().memory["optimizer"] == 2 * by_hand + 4
    # Tokens, targets and weights of 4 rows, and their numbers.
    assert planned().memory["batch"] == 4 * (3 * 32 + 1) * 4
    assert planned().total == pytest.approx(sum(plan_text.memory_parts(planned()).values()), abs=64)


@pytest.mark.full
def test_forward_and_decoding_are_planned_too() -> None:
    forward = plan_cache.cached_plan(small(), "forward", CPU)
    decode = plan_cache.cached_plan(small(mesh=Mesh(tensor=2)), "decode", CPU)
    assert "optimizer" not in forward.memory and forward.products is not None
    # The table's padding is multiplied too, 384 rows for 300.
    assert forward.products == pytest.approx(forward.model_flops / 8, rel=0.1)
    model = small().model
    # Keys and values of 32 tokens of 4 rows and half of the heads, and their segments and positions.
    assert decode.memory["cache"] == 2 * model.layers * 4 * 32 * 2 * model.head * 4 + 2 * 4 * 32 * 4 + 4
    assert decode.products == pytest.approx(decode.model_flops / 8, rel=0.1)


def test_frozen_layers_are_arguments_without_optimizer_state() -> None:
    """Together with the trained parameters they have the bytes of all."""

    def sizes(run: run_config.Run) -> dict[str, int]:
        mesh = device_mesh.make_mesh(run.mesh)
        arguments = compile_program._batch_program(run, mesh, train=True)[1]
        return {name: bytes_per_device(tree) for name, tree in arguments.items()}

    frozen = run_config.Optim(freeze_layers=1, freeze_embeddings=True)
    plain, partial = sizes(small(precision="float32")), sizes(small(precision="float32", optim=frozen))
    assert partial["parameters"] + partial["frozen parameters"] == plain["parameters"]
    assert partial["optimizer"] == 2 * partial["parameters"] + 4 and "frozen parameters" not in plain


@pytest.mark.parametrize(
    ("family", "precision", "beta", "slots"),
    # A decoder's prompt has 24 - 8 tokens, and the last of 8 tokens of a response is not stored; an encoder-decoder also stores
    # the keys and values of its source.
    [("gpt", "float32", 0.0, 16 + 7), ("gpt", "bfloat16", 0.1, 16 + 7), ("t5", "float32", 0.0, 1 + 7 + 24)],
)
def test_a_rollout_is_planned_beside_its_step(family: str, precision: Any, beta: float, slots: int) -> None:
    net = tiny_model(family)
    options = PolicyGradientOptions(policy_gradient=PolicyGradientLoss(beta=beta), rollout=Rollout(samples=4, tokens=8))
    data = PromptData(length=24, batch=32)
    fields: dict[str, Any] = {"options": options, "data": data, "mesh": Mesh(data=4, tensor=2), "precision": precision}
    run = run_config.Run(recipe="tiny", model=net.config, **fields)
    mesh = device_mesh.make_mesh(run.mesh)
    bytes_of = {name: bytes_per_device(tree) for name, tree in compile_program.rollout_arguments(run, mesh).items()}
    size = np.dtype(DTYPES[precision]).itemsize
    layers = getattr(net.config, "decoder_layers", net.config.layers)
    # Keys and values of 8 rows and of half of the heads on a device.
    keys_and_values = 2 * layers * 8 * slots * net.config.heads * net.config.head // 2 * size
    assert keys_and_values <= bytes_of["cache"] < keys_and_values * 1.3
    # In float32 on several devices, the responses are sampled with the weights of the step.
    assert bytes_of.keys() == {"cache", *(["weights"] if precision == "bfloat16" else [])}
    shown = plan_text.rollout_table(dataclasses.replace(planned(), rollout=bytes_of)).rows
    if family == "gpt":
        # The step has no array with all weights of a model with frozen layers.
        partial = dataclasses.replace(run, optim=run_config.Optim(freeze_layers=1))
        assert "weights" in compile_program.rollout_arguments(partial, mesh)
        # So does a student that samples its own responses.
        student = ResponseDistillation(teacher="x", targets=0.0, on_policy=0.5, response_tokens=8)
        fields |= {"options": InstructionOptions(distillation=student), "data": DialogueData(length=24, batch=32)}
        sampled = compile_program.rollout_arguments(run_config.Run(recipe="tiny", model=net.config, **fields), mesh)
        assert {name: bytes_per_device(tree) for name, tree in sampled.items()} == bytes_of
    total = sum(bytes_of.values()) + planned().memory["parameters"] + planned().memory["optimizer"]
    assert list(shown)[-1] == ("total", plan_text.format_bytes(total))
    assert dataclasses.replace(planned(), rollout={"cache": planned().total}).largest > planned().total == planned().largest
    reference = compile_program.reference_model(run, mesh)
    assert list(reference) == (["reference model"] if beta else [])
    assert compile_program.rollout_arguments(small(), mesh) == compile_program.reference_model(small(), mesh) == {}


def test_plans_are_cached_only_for_the_same_request(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The question is the run, target, settings, libraries, processor, tuned tiles, and the numbers of a named teacher."""
    run, before, gpu = small(mesh=Mesh(fsdp=2, tensor=2)), planned(), target_devices.parse_target("h100:8")
    assert Plan.of(json.loads(json.dumps(before.plain()))) == before
    monkeypatch.setattr(compile_program, "compile_run", lambda *_: pytest.fail("compiled again"))
    assert plan_cache.cached_plan(run, "train", CPU) == before

    def key(run: run_config.Run = run, mode: compile_program.Mode = "train", target: target_devices.Target = CPU) -> str:
        return plan_cache.plan_key(run, mode, target)

    assert key() == key(dataclasses.replace(run, name="another"))
    keys = [key(), key(mode="forward"), key(target=target_devices.parse_target("cpu:4"))]
    model = dataclasses.replace(run.model, layers=4)
    for changes in ({"mesh": Mesh(fsdp=4, tensor=2)}, {"precision": "bfloat16"}, {"model": model}):
        keys.append(key(dataclasses.replace(run, **changes)))
    for name in ("LIBTPU_INIT_ARGS", "JAX_DEFAULT_MATMUL_PRECISION"):
        monkeypatch.setenv(name, "highest")
        keys.append(key())
    keys.append(elsewhere := key(target=gpu))
    monkeypatch.setattr(plan_cache.jax_setup, "processor_digest", lambda: "another")
    keys.append(key())
    assert key(target=gpu) == elsewhere
    metadata = plan_cache.plan_record.importlib.metadata
    version = metadata.version
    for package in ("optax", "flax"):
        changed = {package: "9.9"}
        monkeypatch.setattr(metadata, "version", lambda name, new=changed: new.get(name) or version(name))
        keys.append(key())
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path))
    tuning = tile_sizes.stored_path(CPU.kind, CPU.platform)
    tuning.parent.mkdir()
    tuning.write_text('{"device": "cpu", "versions": {}, "rows": []}')
    keys.append(key())
    teacher = tmp_path / "bert-nano"
    student = tiny.with_options(recipes.find_recipe("distilbert-nano")(), distillation=TripleLoss(teacher=str(teacher)))
    keys.append(key(student))
    teacher.mkdir()
    (teacher / "config.json").write_text(json.dumps({"model_type": "bert", "vocab_size": 300, "num_hidden_layers": 3}))
    keys.append(key(student))
    assert len(set(keys)) == len(keys)


def test_text_and_page_say_what_was_planned(capsys: pytest.CaptureFixture[str]) -> None:
    """Also what is not counted, and what is only an estimate."""

    def printed(plan: Plan) -> str:
        result_tables.print_blocks(plan_page.plan_blocks(plan))
        return capsys.readouterr().out

    times = roofline.Times(compute=1e-3, memory=2e-3, interconnect=3e-3)
    numbers = {"device_memory": 80 * 10**9, "times": times, "bound": 0.25, "products": 1e12, "bytes": 6e9}
    described = {"target": "h100:8", "precision": "bfloat16", "unknown": ["strange_kernel"], "warnings": ["all is well"]}
    rated = dataclasses.replace(planned(), **numbers, **described)
    text, drawn = printed(rated), plan_page.render_plan(rated)
    assert "MFU is 25.0% at most, limited by interconnect, if compute, memory and links overlap." in text
    assert "<script" not in drawn
    for line in ("the FLOPs of strange_kernel are not counted", "all is well", "at least 1 ms", "about 2 ms", "at least 3 ms"):
        assert line in text and line in drawn
    on_host = dataclasses.replace(rated, times=dataclasses.replace(times, host=5e-3), to_host=1e9)
    assert "limited by the link to the host, if" in " ".join(printed(on_host).split())
    assert f"{plan_text.format_decimal(1e12 / 5e-3)}FLOP/s" in plan_page.render_plan(on_host)
    uncached = dataclasses.replace(rated, times=dataclasses.replace(times, memory=4e-3), ceiling=0.5)
    overlap = "if compute, memory and links overlap and nothing is cached, and 50.0% at most."
    sentence = f"MFU is about 25.0%, limited by memory traffic, {overlap}"
    assert sentence in " ".join(printed(uncached).split())
    assert "MFU has no bound here" in printed(planned()) and "<svg" in plan_page.render_plan(planned())


@pytest.mark.full
def test_every_size_is_trained_as_the_nearest_recipe_of_its_family() -> None:
    near = {
        "gpt3-xl": "gpt2",
        "gpt3-13b": "gpt3-175b",
        "bert-large-uncased": "bert",
        "xlnet-large-cased": "xlnet",
        "t5-11b": "t5",
    }
    for size, recipe in near.items():
        run, like = find_run.find_run(size), recipes.find_recipe(recipe)()
        assert (run.options, run.optim) == (like.options, like.optim), size
        # A plan is of the complete batch.
        assert dataclasses.replace(run.data, length=like.data.length, ramp=like.data.ramp) == like.data, size
        assert run.recipe == size and configs.published_name(run.model) == size and run.mesh == Mesh()
    assert find_run.find_run("gpt3-175b").mesh.fsdp == 64
    for family in configs.families():
        for size in configs.family(family).SIZES:
            assert configs.body_fields(find_run.run_of_size(size).model) == configs.body_fields(
                configs.find_size(size)[1].config
            ), size


def test_the_plan_names_no_family_and_no_implementation() -> None:
    """Adding one adds no line there."""
    names = {*models.families(), *configs.families(), *attention.IMPLEMENTATIONS}
    for file in (ROOT / "benchmarks/plan").glob("*.py"):
        strings = {node.value for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Constant)}
        assert names.isdisjoint(strings), file


PAIRS = (("save_qkv", "save_mlp"), ("save_mlp", "save_qkv"))
BOUND_BY_COMPUTE = roofline.Times(compute=3.0, memory=2.0, interconnect=1.0)


def test_candidates_that_cannot_be_better_are_skipped() -> None:
    def can_skip(tried: dict[str, Any], plan: Plan, **changes: Any) -> bool:
        base = {"data": 2, "fsdp": 2, "tensor": 2, "sequence": 1, "remat": "attention", "accumulate": 4}
        return mesh_search.can_skip(Candidate(**base | changes), Candidate(**base | tried), plan)

    large = dataclasses.replace(planned(), fits=False)
    assert can_skip({}, large, remat="none", accumulate=2) and can_skip({}, large, remat="none")
    assert not can_skip({}, large, remat="full") and not can_skip({}, large, accumulate=8)
    # Of two remat policies that each save what the other does not, neither needs more memory and computes less in all families.
    assert can_skip({"remat": "save_qkv"}, large, remat="save_dots") and not can_skip(
        {"remat": "save_qkv"}, large, remat="save_out"
    )
    assert not any(can_skip({"remat": first}, large, remat=second) for first, second in PAIRS)
    # One that sums no gradients of micro-batches needs no place for the sum.
    assert not can_skip({}, large, accumulate=1) and can_skip({"accumulate": 1}, large, remat="none", accumulate=1)
    fits = dataclasses.replace(planned(), times=BOUND_BY_COMPUTE)
    assert can_skip({}, fits, remat="full", accumulate=8)
    assert not can_skip({}, fits, remat="none", accumulate=8) and not can_skip({}, fits, data=4, tensor=1, accumulate=2)
    # One that reads and writes less may be better than what its memory bounds, or what nothing is known of.
    for memory in (4.0, None):
        slow = dataclasses.replace(fits, times=dataclasses.replace(fits.times, memory=memory))
        assert not can_skip({}, slow, remat="full", accumulate=8)


def test_a_search_counts_what_was_tried_refused_and_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    fits = dataclasses.replace(planned(), times=BOUND_BY_COMPUTE, bound=0.5)

    def plan(run: run_config.Run, *_: object, **__: object) -> Plan:
        if run.mesh.tensor > 1:
            raise BadInput("--target cpu:8: the compiler refused the program")
        return fits

    monkeypatch.setattr(plan_cache, "cached_plan", plan)
    result = mesh_search.search_meshes(small(), "train", CPU, seconds=600.0).summary
    counts = re.search(r"(\d+) of (\d+) candidates .*, (\d+) skipped, .*; (\d+) refused, .* --target", result)
    assert counts
    tried, count, needless, refused = map(int, counts.groups())
    candidates = list(mesh_search.mesh_candidates(small(), "train", CPU))
    assert refused == len([each for each in candidates if each.tensor > 1])
    assert (count, tried + needless + refused) == (len(candidates), len(candidates))
    tight = dataclasses.replace(planned(), fits=False, device_memory=1 << 20)
    monkeypatch.setattr(plan_cache, "cached_plan", lambda *_, **__: tight)
    with pytest.raises(BadInput, match=r"--target cpu:8: none of \d+ tried fits 1.0 MiB; the least, .*, needs .*: choose more"):
        mesh_search.search_meshes(small(), "train", CPU, seconds=600.0)


def test_a_search_tries_less_memory_for_moments_where_nothing_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of each mesh the candidate that needs the least memory, with the least change first; a fit ends it."""
    optims: list[tuple[Mesh, str]] = []
    tight = dataclasses.replace(planned(), fits=False, total=2000, device_memory=1900, memory={"optimizer": 300})
    fits = dataclasses.replace(tight, fits=True, optimizer="bfloat16 moments")

    def plan(run: run_config.Run, *_: object, **__: object) -> Plan:
        optims.append((run.mesh, run.optim.moments))
        return fits if run.optim.moments == "bfloat16" and run.mesh.tensor == 2 else tight

    monkeypatch.setattr(plan_cache, "cached_plan", plan)
    result = mesh_search.search_meshes(small(), "train", CPU, seconds=600.0)
    assert {entry.optimizer for entry in result.ranked} == {"bfloat16 moments"}
    retried = [mesh for mesh, moments in optims if moments == "bfloat16"]
    assert len(retried) == len(set(retried)) == len({mesh for mesh, _ in optims})
    blocks = io.StringIO()
    with contextlib.redirect_stdout(blocks):
        result_tables.print_blocks(plan_text.search_blocks(result, 10))
    assert "optimizer" in blocks.getvalue() and "bfloat16 moments" in blocks.getvalue()


def test_moments_that_cannot_save_enough_are_not_tried() -> None:
    gpu, run = dataclasses.replace(CPU, platform="gpu"), small()
    candidate = next(mesh_search.mesh_candidates(run, "train", CPU))

    def policies(lacking: int, target: Any = gpu, **optim: Any) -> list[tuple[str, bool]]:
        plan = dataclasses.replace(planned(), total=2000 + lacking, rollout={}, device_memory=2000, memory={"optimizer": 300})
        smaller = dataclasses.replace(run, optim=dataclasses.replace(run.optim, **optim))
        result = mesh_search.smaller_candidates([(candidate, plan)], smaller, target)
        return [(each.moments, each.offload) for each in result]

    assert policies(150) == [("bfloat16", False), ("float32", True), ("bfloat16", True)]
    assert policies(300) == [("float32", True), ("bfloat16", True)] and policies(301) == []
    # What the job saves already is kept.
    assert policies(150, moments="bfloat16") == policies(150, offload=True) == [("bfloat16", True)]
    # A CPU has one memory, and Adafactor's moments are small.
    assert policies(150, CPU) == policies(150, name="adafactor") == [("bfloat16", False)]


def test_a_search_keeps_the_axes_that_the_user_named(monkeypatch: pytest.MonkeyPatch) -> None:
    meshes: set[tuple[int, int, int]] = set()
    fits = planned()

    def plan(run: run_config.Run, *_: object, **__: object) -> Plan:
        meshes.add((run.mesh.data, run.mesh.fsdp, run.mesh.tensor))
        return fits

    monkeypatch.setattr(plan_cache, "cached_plan", plan)
    mesh_search.search_meshes(small(mesh=Mesh(fsdp=4)), "train", CPU, named=("data", "fsdp"), seconds=600.0)
    # (1, 4, 1) has two devices along the positions.
    assert meshes == {(2, 4, 1), (1, 4, 2), (1, 4, 1)}
    with pytest.raises(BadInput, match=r"no mesh of cpu:8 with --mesh.fsdp 3 divides the rows and the heads"):
        mesh_search.search_meshes(small(mesh=Mesh(fsdp=3)), "train", CPU, named=("fsdp",), seconds=600.0)
    oss = dataclasses.replace(recipes.find_recipe("gpt-oss-nano")(), mesh=Mesh(expert=2))
    with pytest.raises(BadInput, match=r"--mesh\.expert 2: a search divides no experts; leave out --search, or"):
        mesh_search.search_meshes(oss, "train", CPU, named=("expert",), seconds=600.0)


def test_candidates_are_meshes_that_divide() -> None:
    result = set(mesh_search.mesh_candidates(small(), "train", CPU))
    sizes = {(d, f, t, 8 // (d * f * t)) for d in (1, 2, 4, 8) for f in (1, 2, 4, 8) for t in (1, 2, 4) if d * f * t <= 8}
    meshes = {Mesh(data=d, fsdp=f, tensor=t, sequence=s) for d, f, t, s in sizes}
    # Devices that do not divide the four heads are a ring.
    assert {each.mesh for each in result} == meshes
    assert {each.accumulate for each in result if each.mesh == Mesh(data=2, fsdp=2, tensor=2)} == {1, 2, 4}
    # Positions are divided where a device has one row at a time.
    assert {each.accumulate for each in result if each.mesh == Mesh(data=2, fsdp=2, sequence=2)} == {4}
    assert {each.accumulate for each in mesh_search.mesh_candidates(small(), "decode", CPU)} == {1}


@pytest.mark.full
def test_a_search_continues_where_it_was(capsys: pytest.CaptureFixture[str]) -> None:
    """With no time at all it compiles one, and the next search has that one kept."""
    result = mesh_search.search_meshes(small(), "train", CPU, seconds=0.0)
    assert len(result.ranked) == 1 and "1 tried, 1 fit" in capsys.readouterr().err and "--minutes goes on" in result.summary
    assert mesh_search.search_meshes(small(), "train", CPU, seconds=0.0).ranked == result.ranked
    result_tables.print_blocks(plan_text.search_blocks(result, 10))
    assert "the best of 1 that fit" in capsys.readouterr().out


NOBODY = TripleLoss(teacher="runs/nobody")
REFUSED: list[tuple[Callable[[], run_config.Run], compile_program.Mode, str]] = [
    (lambda: small(mesh=Mesh(data=3)), "train", "--mesh data=3 fsdp=1 tensor=1: does not multiply to the 8 devices"),
    (lambda: small(engine="pmap"), "train", "--engine pmap: .*; choose jit"),
    (lambda: recipes.find_recipe("bert-nano")(), "decode", "bert does not generate text"),
    (lambda: tiny.with_options(recipes.find_recipe("distilbert-nano")(), distillation=NOBODY), "train", "teacher runs/nobody"),
    (lambda: small_with(attention="cudnn"), "train", "attention 'cudnn' cannot do this: it runs on gpu, and this is cpu"),
]


def test_a_stored_teacher_is_planned_on_disk_and_not_in_memory() -> None:
    """Of each of 32 positions, 5 ids of two bytes and 6 log-probabilities; the batch has them with ids of four bytes."""
    stored = CausalOptions(distillation=StoredDistillation(teacher="absent", top_k=5))
    plan, alone = (
        plan_record.make_plan(compile_program.compile_run(run, "train", CPU), "x") for run in (small(options=stored), small())
    )
    assert (plan.stored, alone.stored) == (32 * (5 * 2 + 6 * 4), 0) and plan.memory.keys() == alone.memory.keys()
    assert plan.memory["batch"] - alone.memory["batch"] == 16 // 8 * 32 * (5 * 4 + 6 * 4)
    assert plan_text.plan_inputs(plan)["teacher"] == "stored, 1,088 bytes on disk for each training row"


def small_with(**compute: Any) -> run_config.Run:
    return small(model=dataclasses.replace(small().model, compute=configs.Compute(**compute)))


def test_requests_that_contradict_each_other_are_refused() -> None:
    for make, mode, expected in REFUSED:
        with pytest.raises(BadInput, match=expected):
            compile_program.compile_run(make(), mode, CPU)


def test_errors_of_the_compiler_are_one_line() -> None:
    """The message names the last file of ours that an error passed; that a slice is too small is no error but a plan."""
    with pytest.raises(ValueError, match="rows of 99 tokens") as error:
        models.family("gpt").apply(small().model, {}, Batch(tokens=np.zeros((1, 99), np.int32)))
    message = compile_program.one_line_error(error.value)
    assert re.fullmatch(r"the compiler refused the program: rows of 99 tokens .*\(zoo/nn/kv_cache\.py:\d+\)", message)
    assert compile_program.bytes_needed("INVALID_ARGUMENT: something else") is None


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Text and a page of one job, then JSON; the second time nothing is compiled."""
    job = ("plan", "gpt-nano", *tiny.FLAGS, "--target", "cpu:8", "--mesh.fsdp", "4")
    # The command turns the cache of compiled programs off in this process; this turns it on again.
    with timing.without_compilation_cache(), pytest.MonkeyPatch.context() as patch:
        first = call(capsys, *job, "--page", str(tmp_path / "plan.html"))
        assert first.code == 0 and "data=2 x fsdp=4" in first.stdout, first
        assert "Memory of a device" in (tmp_path / "plan.html").read_text()
        patch.setattr(compile_program, "compile_run", lambda *_: pytest.fail("compiled again"))
        assert json.loads(call(capsys, *job, "--json").stdout)["mesh"]["fsdp"] == 4
    with timing.without_compilation_cache():
        # The axis that is not named is fitted, and JSON says so too.
        fitted = call(capsys, *job[:-2], "--mesh.data", "2", "--json")
        notice = "--mesh.fsdp 1 of gpt-nano does not fit --mesh.data 2 on 8 devices; --mesh.fsdp 4 instead"
        assert fitted.stderr == f"! {notice}\n" and json.loads(fitted.stdout)["warnings"][0] == notice
        assert json.loads(fitted.stdout)["mesh"] == {"data": 2, "fsdp": 4, "tensor": 1, "sequence": 1, "expert": 1}
        refused = call(capsys, *job, "--batch", "6")
    assert refused.code == 2 and len(refused.stderr.splitlines()) == 1
    assert re.match(r"zoo: --batch 6: .* choose a multiple of 8", refused.stderr)


MEASURE = """
import dataclasses, sys, time
from zoo.runtime import jax_setup
jax_setup.prepare_jax(8)
import jax, numpy as np
from benchmarks.plan import compile_program, target_devices
from train import objectives, recipes
from train.config import run_config
from train.engine import device_mesh, state_init
from train.step.assembly import assemble
from zoo.models import model

run = dataclasses.replace(recipes.find_recipe(sys.argv[1])(), mesh=run_config.Mesh(fsdp=2, tensor=2))
target = target_devices.parse_target("cpu:8")
planned = compile_program.compile_run(run, "train", target)
run, mesh = compile_program.resolve_run(run, target), device_mesh.make_mesh(run.mesh)
net, goal = model(run.model), objectives.objective(run.objective).bind(run, mesh)
made = assemble(run, goal, mesh)
state = made.engine.shard(state_init.init_state(run, net, made.tx, mesh))
host = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), planned.arguments["batch"])

def resident(field):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(field))

def step(state):
    state, metrics = made.engine.step(state, made.engine.shard_batch(host), {})
    # A step that is skipped does not update, and might do with less.
    assert float(metrics["finite"]) == 1, metrics
    jax.block_until_ready((state, metrics))
    return state

state = step(step(state))
live = sum(shard.data.nbytes for array in jax.live_arrays() for shard in array.addressable_shards)
grown = []
for _ in range(5):
    # A device's thread gives temporaries back after its results are there.
    time.sleep(0.5)
    before = resident("VmRSS")
    with open("/proc/self/clear_refs", "w") as clear:
        clear.write("5")
    state = step(state)
    grown.append(resident("VmHWM") - before)
print(8 * planned.total, live + float(np.median(grown)))
"""


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["gpt-nano", "bert-nano", "t5-nano", "xlnet-nano"])
def test_memory_is_what_a_real_run_takes(recipe: str) -> None:
    """A recipe's step on eight simulated devices, against all of them together in the plan.

    Measured is what arrays are alive, and by how much the process grows beyond that at the step's peak (VmHWM, reset before each
    of five steps, the median). Large blocks go straight to the kernel and back, so that no freed memory is taken again unseen.
    """
    limits = dict.fromkeys(("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"), "65536")
    environment = clean_environment() | limits | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", MEASURE, recipe], env=environment, capture_output=True, text=True, check=True)
    expected, measured = map(float, done.stdout.split())
    assert expected == pytest.approx(measured, rel=0.1), (expected, measured)
