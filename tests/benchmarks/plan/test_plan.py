"""`zoo plan`: what it compiles is what a run does, and what it says of it can be checked by hand."""

import ast
import dataclasses
import functools
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.plan import kept, page, program, roofline, search, show, subject, targets
from benchmarks.plan.facts import Plan
from benchmarks.plan.search import Candidate
from tests.support import tiny
from tests.support.processes import ROOT, Ended, clean_environment
from tests.support.runs import QUICK
from train import config, recipes
from train.config import Data, Distillation, Mesh
from zoo import attention, configs, models
from zoo.batch import Batch
from zoo.errors import BadInput

CPU = targets.parse("cpu:8")


def small(**changes: Any) -> config.Run:
    """A GPT of a second's compiling."""
    run = tiny.run()
    model = dataclasses.replace(run.model, dropout=0.0, embedding_dropout=0.0, attention_dropout=0.0)
    return dataclasses.replace(run, **{"model": model, "data": Data(length=32, batch=16), **changes})


@functools.cache
def planned() -> Plan:
    return kept.plan(small(mesh=Mesh(fsdp=2, tensor=2)), "train", CPU)


def test_what_a_device_holds_is_what_the_sharding_says() -> None:
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
    assert planned().total == pytest.approx(sum(show.held(planned()).values()), abs=64)


def test_kept_plans_are_found_again_and_only_for_the_same_question(monkeypatch: pytest.MonkeyPatch) -> None:
    run, before = small(mesh=Mesh(fsdp=2, tensor=2)), planned()
    monkeypatch.setattr(program, "compiled", lambda *_: pytest.fail("compiled again"))
    assert kept.plan(run, "train", CPU) == before
    asked: list[tuple[config.Run, program.Mode, targets.Target]] = [
        (run, "train", CPU),
        (run, "forward", CPU),
        (run, "train", targets.parse("cpu:4")),
        (dataclasses.replace(run, mesh=Mesh(fsdp=4, tensor=2)), "train", CPU),
        (dataclasses.replace(run, accumulate=2), "train", CPU),
        (dataclasses.replace(run, precision="bfloat16"), "train", CPU),
        (dataclasses.replace(run, model=dataclasses.replace(run.model, layers=4)), "train", CPU),
    ]
    keys = {kept.key(*each) for each in asked}
    assert len(keys) == 7
    assert kept.key(dataclasses.replace(run, name="another"), "train", CPU) == kept.key(run, "train", CPU)
    monkeypatch.setenv("LIBTPU_INIT_ARGS", "--xla_tpu_rwb_fusion=false")
    assert kept.key(run, "train", CPU) not in keys


def test_what_a_plan_was_made_with_is_in_its_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Libraries, settings, of a simulated device the processor, and the numbers of a teacher that is only named."""
    run, gpu = small(), targets.parse("h100:8")
    seen = [kept.key(run, "train", CPU)]
    monkeypatch.setenv("JAX_DEFAULT_MATMUL_PRECISION", "highest")
    seen.append(kept.key(run, "train", CPU))
    far = kept.key(run, "train", gpu)
    monkeypatch.setattr(kept.runtime, "processor", lambda: "another")
    seen.append(kept.key(run, "train", CPU))
    assert kept.key(run, "train", gpu) == far
    version = kept.facts.importlib.metadata.version
    for package in ("optax", "flax"):
        changed = {package: "9.9"}
        monkeypatch.setattr(kept.facts.importlib.metadata, "version", lambda name, new=changed: new.get(name) or version(name))
        seen.append(kept.key(run, "train", CPU))
    assert len(set(seen)) == len(seen)
    assert {"jax-cuda13-pjrt", "jax-cuda12-pjrt"} <= set(kept.facts.GPU_PACKAGES)
    teacher = tmp_path / "bert-nano"
    student = dataclasses.replace(recipes.find("distilbert-nano")(), distillation=Distillation(teacher=str(teacher)))
    as_published = kept.key(student, "train", CPU)
    teacher.mkdir()
    numbers = {"model_type": "bert", "vocab_size": 300, "num_hidden_layers": 3}
    (teacher / "config.json").write_text(json.dumps(numbers))
    assert kept.key(student, "train", CPU) != as_published


def test_forward_and_decoding_are_planned_too() -> None:
    forward = kept.plan(small(), "forward", CPU)
    decode = kept.plan(small(mesh=Mesh(tensor=2)), "decode", CPU)
    assert "optimizer" not in forward.memory and forward.products is not None
    # The table's padding is multiplied too, 384 rows for 300.
    assert forward.products == pytest.approx(forward.model_flops / 8, rel=0.1)
    model = small().model
    # Keys and values of 32 tokens of 4 rows and half of the heads, and their segments and positions.
    assert decode.memory["cache"] == 2 * model.layers * 4 * 32 * 2 * model.head * 4 + 2 * 4 * 32 * 4 + 4
    assert decode.products == pytest.approx(decode.model_flops / 8, rel=0.1)


def test_a_plan_survives_json() -> None:
    assert Plan.of(json.loads(json.dumps(planned().plain()))) == planned()


def test_what_is_shown() -> None:
    """Every part is there, memory adds up, and a page says the same without scripts."""
    text = show.plan(planned())
    for said in (
        "tiny, train, for 8 x cpu (cpu:8)",
        "mesh       data=2 x fsdp=2 x tensor=2",
        "all-gather",
        "traced and compiled",
    ):
        assert said in text
    assert max(map(len, text.splitlines())) <= 130
    drawn = page.page(planned())
    assert "<script" not in drawn and drawn.count("<rect") >= 4 and "all-gather" in drawn
    # What is grey cannot be told apart by its colour, so it has one key.
    assert drawn.count("key muted") == 1


def test_a_page_under_a_known_roof_has_the_roofline() -> None:
    times = roofline.Times(compute=1e-3, memory=2e-3, interconnect=3e-3)
    known = dataclasses.replace(
        planned(),
        target="h100:8",
        precision="bfloat16",
        device_memory=80 * 10**9,
        times=times,
        bound=0.25,
        products=1e12,
        bytes=6e9,
    )
    assert "FLOPs a byte of memory" in page.page(known)
    assert "MFU is 25.0% at most, bound by interconnect" in show.plan(known)
    cached = dataclasses.replace(known, times=dataclasses.replace(times, memory=4e-3))
    assert "MFU is about 25.0%, nothing being cached, bound by memory" in show.plan(cached)
    for said in ("at least 1 ms", "about 2 ms", "at least 3 ms"):
        assert said in show.plan(known) and said in page.page(known)
    # However slow its links are, a step is drawn within the frame.
    slow = page.page(dataclasses.replace(known, times=dataclasses.replace(times, interconnect=1e3)))
    assert all(16 <= float(height) <= 300 for height in re.findall(r'<circle cx="[^"]*" cy="([^"]*)"', slow))


def test_what_is_not_counted_is_told_wherever_a_plan_is() -> None:
    some = dataclasses.replace(planned(), unknown=["strange_kernel"], warnings=["all is well"])
    for line in ("the FLOPs of strange_kernel are not counted", "all is well"):
        assert line in show.plan(some) and line in page.page(some)


# --- names ----------------------------------------------------------------------------------------------------------------------


def test_a_size_is_trained_as_the_nearest_recipe_of_its_family() -> None:
    near = {
        "gpt2-xl": "gpt2",
        "gpt3-13b": "gpt3-175b",
        "bert-large-uncased": "bert",
        "xlnet-large-cased": "xlnet",
        "t5-11b": "t5",
    }
    for size, recipe in near.items():
        run, like = subject.default(size), recipes.find(recipe)()
        assert (run.objective, run.optim, run.data.rows) == (like.objective, like.optim, like.data.rows), size
        assert run.recipe == size and configs.named(run.model) == size and run.mesh == Mesh()
    assert subject.default("gpt3-175b").mesh.fsdp == 64


def test_every_published_size_has_a_run() -> None:
    for family in configs.families():
        for size in configs.family(family).SIZES:
            assert configs.shape(subject.of_size(size).model) == configs.shape(configs.find(size)[1].config), size


def test_plan_names_no_family_and_no_implementation() -> None:
    """Adding one adds no line here."""
    known = {*models.families(), *attention.IMPLEMENTATIONS, *configs.families()}
    for file in (ROOT / "benchmarks/plan").glob("*.py"):
        strings = {node.value for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Constant)}
        assert not known & {each for each in strings if isinstance(each, str)}, file


# --- search ---------------------------------------------------------------------------------------------------------------------


def candidate(**changes: Any) -> Candidate:
    return Candidate(**{"data": 2, "fsdp": 2, "tensor": 2, "remat": "attention", "accumulate": 2, **changes})


def test_what_cannot_be_better_is_not_tried() -> None:
    tried, large = candidate(accumulate=4), dataclasses.replace(planned(), fits=False)
    assert search.needless(candidate(remat="none", accumulate=2), tried, large)
    assert search.needless(candidate(remat="none", accumulate=4), tried, large)
    assert not search.needless(candidate(remat="full", accumulate=4), tried, large)
    assert not search.needless(candidate(accumulate=8), tried, large)
    # One that sums no gradients of micro-batches needs no place for the sum.
    assert not search.needless(candidate(accumulate=1), tried, large)
    assert search.needless(candidate(remat="none", accumulate=1), candidate(accumulate=1), large)
    fits = dataclasses.replace(planned(), times=roofline.Times(compute=3.0, memory=2.0, interconnect=1.0))
    assert search.needless(candidate(remat="full", accumulate=8), tried, fits)
    assert not search.needless(candidate(remat="none", accumulate=8), tried, fits)
    assert not search.needless(candidate(data=4, tensor=1), tried, fits)
    # One that reads and writes less may be better than what its memory bounds, or what nothing is known of.
    for memory in (4.0, None):
        slow = dataclasses.replace(fits, times=dataclasses.replace(fits.times, memory=memory))
        assert not search.needless(candidate(remat="full", accumulate=8), tried, slow)


def test_a_search_says_what_was_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is no candidate that needed no try."""
    fits = dataclasses.replace(planned(), times=roofline.Times(compute=3.0, memory=2.0, interconnect=1.0), bound=0.5)

    def plan(run: config.Run, *_: object, **__: object) -> Plan:
        if run.mesh.tensor > 1:
            raise BadInput("--target cpu:8: the compiler refused the program")
        return fits

    monkeypatch.setattr(kept, "plan", plan)
    told = search.search(small(), "train", CPU, seconds=60.0).told
    found = re.search(
        r"(\d+) of (\d+) candidates compiled, (\d+) needed no try, .*; (\d+) refused, the last because of --target", told
    )
    assert found
    tried, count, needless, refused = map(int, found.groups())
    candidates = list(search.candidates(small(), "train", 8))
    assert refused == len([each for each in candidates if each.tensor > 1])
    assert (count, tried + needless + refused) == (len(candidates), len(candidates))


def test_candidates_are_meshes_that_divide() -> None:
    found = set(search.candidates(small(), "train", 8))
    assert {each.mesh for each in found} == {(d, f, 8 // (d * f)) for d in (1, 2, 4, 8) for f in (1, 2, 4, 8) if 2 <= d * f <= 8}
    assert {each.accumulate for each in found if each.mesh == (2, 2, 2)} == {1, 2, 4}
    assert {each.accumulate for each in search.candidates(small(), "decode", 8)} == {1}


def test_a_search_ranks_what_fits_and_goes_on_where_it_was() -> None:
    """With no time at all it compiles one, and the next search has that one kept."""
    told: list[str] = []
    found = search.search(small(), "train", CPU, seconds=0.0, tell=told.append)
    assert len(found.ranked) == 1 and "1 tried, 1 fit" in told[0] and "left for want of time" in found.told
    assert search.search(small(), "train", CPU, seconds=0.0).ranked == found.ranked
    assert "the best of 1 that fit" in show.search(found, 10)


def test_a_search_in_which_nothing_fits_says_what_needs_least(monkeypatch: pytest.MonkeyPatch) -> None:
    tight = dataclasses.replace(planned(), fits=False, device_memory=1 << 20)
    monkeypatch.setattr(kept, "plan", lambda *_, **__: tight)
    with pytest.raises(BadInput, match=r"--target cpu:8: none of \d+ tried fits 1.0 MiB; the least, .*, needs .*: choose more"):
        search.search(small(), "train", CPU, seconds=60.0)


# --- refusals -------------------------------------------------------------------------------------------------------------------

REFUSED: dict[str, tuple[Callable[[], config.Run], program.Mode, str]] = {
    "mesh": (lambda: small(mesh=Mesh(data=3)), "train", "--mesh data=3 fsdp=1 tensor=1: does not multiply to the 8 devices"),
    "batch": (lambda: small(data=Data(length=32, batch=12)), "train", "--data.batch 12: 12 rows .* choose a multiple of 8"),
    "heads": (lambda: small(mesh=Mesh(tensor=8)), "train", "--mesh.tensor 8: it does not divide the 4 heads"),
    "engine": (lambda: small(engine="pmap"), "train", "--engine pmap: pmap has no program without its devices"),
    "decode": (lambda: recipes.find("bert-nano")(), "decode", "bert does not generate text"),
    "teacher": (
        lambda: dataclasses.replace(recipes.find("distilbert-nano")(), distillation=Distillation(teacher="runs/nobody")),
        "train",
        "--distillation.teacher runs/nobody: nothing is there, and no model is called 'nobody'",
    ),
    "attention": (
        lambda: small(model=dataclasses.replace(small().model, compute=configs.Compute(attention="cudnn"))),
        "train",
        "attention 'cudnn' cannot do this: it runs on gpu, and this is cpu",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_together_is_refused(case: str) -> None:
    make, mode, expected = REFUSED[case]
    with pytest.raises(BadInput, match=expected):
        program.compiled(make(), mode, CPU)


def test_an_error_of_the_compiler_is_told_in_a_line_with_our_file() -> None:
    """The first line of what it says; the last file of ours it passed."""
    with pytest.raises(ValueError, match="rows of 99 tokens") as error:
        models.family("gpt").apply(small().model, {}, Batch(tokens=np.zeros((1, 99), np.int32)))
    told = program.told(error.value)
    assert re.fullmatch(r"the compiler refused the program: rows of 99 tokens .*\(zoo/models/gpt\.py:\d+\)", told)


def test_a_slice_too_small_is_no_error_but_a_plan() -> None:
    """As the TPU's compiler says it, in its units."""
    message = (
        "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 40.50G of 15.75G hbm. Exceeded hbm capacity by 24.75G."
    )
    assert program.exhausted(message) == int(40.5 * 2**30)
    assert program.exhausted("INVALID_ARGUMENT: something else") is None


# --- as a user starts it --------------------------------------------------------------------------------------------------------


def test_the_command(zoo: Callable[..., Ended], tmp_path: Path) -> None:
    """Text, JSON and a page of one job; the second time nothing is compiled."""
    job = ("plan", "gpt-nano", *tiny.FLAGS, "--target", "cpu:8", "--mesh.fsdp", "4")
    first = zoo(*job, "--page", "plan.html", env=QUICK)
    assert (first.code, first.stderr) == (0, ""), first
    assert "mesh       data=2 x fsdp=4" in first.stdout
    assert "Memory of a device" in (tmp_path / "plan.html").read_text()
    again = zoo(*job, "--json", env=QUICK)
    assert json.loads(again.stdout)["mesh"]["fsdp"] == 4
    refused = zoo(*job, "--batch", "6")
    assert refused.code == 2 and len(refused.stderr.splitlines()) == 1
    assert re.match(r"zoo: --batch 6: .* choose a multiple of 8", refused.stderr)


MEASURE = """
import sys, time
from zoo import runtime
runtime.prepare(8)
import jax, numpy as np
from benchmarks.plan import program, subject, targets
from train import mesh as meshes, objectives, recipes
from train.step import assemble
from zoo.models import model
import dataclasses
from train.config import Mesh

run = dataclasses.replace(recipes.find(sys.argv[1])(), mesh=Mesh(fsdp=2, tensor=2))
target = targets.parse("cpu:8")
planned = program.compiled(run, "train", target)
run, mesh = program.settled(run, target), meshes.make(run.mesh)
net, goal = model(run.model), objectives.bind(run, mesh)
made = assemble(run, net, goal, mesh)
state = made.engine.put(meshes.init_state(run, net, made.tx, mesh))
host = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), planned.arguments["batch"])

def resident(field):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(field))

def step(state):
    state, metrics = made.engine.step(state, made.engine.place(host), {})
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
    environment = clean_environment() | {
        "MALLOC_MMAP_THRESHOLD_": "65536",
        "MALLOC_TRIM_THRESHOLD_": "65536",
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run([sys.executable, "-c", MEASURE, recipe], env=environment, capture_output=True, text=True, check=True)
    expected, measured = map(float, done.stdout.split())
    print(f"{recipe}: planned {expected / 2**20:,.0f} MiB, measured {measured / 2**20:,.0f} MiB ({expected / measured - 1:+.1%})")
    assert expected == pytest.approx(measured, rel=0.1), (expected, measured)
