"""The folder of a run: its lock ends with its block, its files are whole or absent, its configuration comes back exactly."""

import dataclasses
import json
import socket
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.processes import ROOT
from tests.support.runs import small_files
from train.checkpoints import disk_space
from train.config.data_options import CausalData, EncoderData
from train.config.distillation_options import TripleLoss
from train.config.find_objective import with_objective
from train.config.lora_options import Lora
from train.config.objectives import OPTIONS, CausalOptions, DistilledOptions
from train.config.option_groups import Masking, Selection, Spikes
from train.config.run_config import (
    Checkpoint,
    Log,
    Mesh,
    Optim,
    Run,
    Tokenizer,
    TrainingMachine,
)
from train.run.result_files import check_same_run, remove_stale_files
from train.run.run_dir import (
    RunDir,
    as_json,
    read_config,
    write_json,
    write_text,
)
from train.run.run_identity import identity_differences
from zoo import configs
from zoo.errors import BadInput
from zoo.file_access import partial_path

NANO = configs.find_size("gpt-nano")[1].config
RUN = Run(recipe="gpt-nano", model=NANO, options=CausalOptions(), data=CausalData())


def test_a_claim_of_process_0_ends_with_its_block_and_also_by_an_exception(tmp_path: Path) -> None:
    folder = RunDir(tmp_path / "run")
    with folder.claim(process=1):
        assert not folder.path.exists()
    with pytest.raises(KeyError), folder.claim():
        raise KeyError
    with folder.claim(), pytest.raises(BadInput, match="in use"), folder.claim():
        pass


def test_a_claim_removes_what_a_killed_process_left_of_the_files_under_its_lock(tmp_path: Path) -> None:
    folder = RunDir(tmp_path / "run")
    folder.rollouts.mkdir(parents=True)
    rollout = folder.rollouts / "00000001.jsonl"
    kept = [folder.config, rollout, partial_path(folder.evaluations)]
    for file in (*kept, partial_path(folder.config), partial_path(rollout)):
        file.write_text("{")
    with folder.claim():
        assert {file for file in folder.path.rglob("*") if file.is_file()} == {*kept, folder.path / "run.lock"}


HOLD = """
import sys
from train.run.run_dir import RunDir
with RunDir(sys.argv[1]).lock_results():
    print(flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("received", [True, False])
def test_a_lock_of_results_is_waited_for_and_its_holder_named(
    received: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, notices = RunDir(tmp_path), list[str]()
    with folder.lock_results(pytest.fail):
        pass
    command = [sys.executable, "-c", HOLD, tmp_path]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT) as holder:
        assert holder.stdin is not None and holder.stdout is not None
        holder.stdout.readline()
        threading.Timer(2, holder.stdin.close).start()
        with folder.lock_results(notices.append if received else None):
            pass
    line = f"the results in {tmp_path} are in use by process {holder.pid} on {socket.gethostname()}; this command waits for it"
    assert (notices, capsys.readouterr().err) == (([line], "") if received else ([], f"! {line}\n"))


def test_a_run_lies_below_out_under_its_name_or_its_recipe(tmp_path: Path) -> None:
    def folder(**changes: str) -> Path:
        return RunDir.of(dataclasses.replace(RUN, **{"out": str(tmp_path), **changes})).path

    assert folder() == tmp_path / "gpt-nano"
    assert folder(name="A.1_b-c") == tmp_path / "A.1_b-c"
    for name in ("../other", "a/b", ".hidden", "-x", "a" * 101, "a\n", "ä", ".."):
        with pytest.raises(BadInput, match="--name"):
            folder(name=name)


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"a": float("nan")})
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "x" * 100_000 + "\ud800")
    with small_files(3), pytest.raises(BadInput, match=r"file.json cannot be written \(File too large\); make room"):
        write_json(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("family", configs.families())
def test_the_configuration_of_every_size_comes_back(family: str, tmp_path: Path) -> None:
    for name, size in configs.family(family).SIZES.items():
        kind, length = OPTIONS[size.objective], getattr(size.config, "context", 256)
        run = Run(recipe=name, model=size.config, options=kind(), data=kind.data(length=length))
        assert round_trip(run, tmp_path) == run


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=9)


@settings(max_examples=30, deadline=None)
@given(text=TEXT, paths=st.lists(TEXT, max_size=3), whole=st.integers(257, 1 << 20), share=st.floats(0.01, 0.89))
def test_every_configuration_comes_back(
    text: str, paths: list[str], whole: int, share: float, tmp_path_factory: pytest.TempPathFactory
) -> None:
    parts: dict[str, Any] = dict(
        data=CausalData(paths=tuple(paths), valid_fraction=share), mesh=Mesh(data=whole), log=Log(ledger=True)
    )
    parts |= dict(tokenizer=Tokenizer(vocab=whole, path=text), optim=Optim(lr=share / whole, clip=1e300 * share))
    run = dataclasses.replace(RUN, recipe=text, seed=whole, precision="bfloat16", label_smoothing=share, **parts)
    assert round_trip(run, tmp_path_factory.mktemp("run")) == run


def round_trip(run: Run, folder: Path) -> Run:
    RunDir(folder).write_config(run)
    return read_config(folder)


STORED = json.loads(json.dumps(as_json(RUN)))


def model(**changed: Any) -> dict[str, Any]:
    return STORED | {"model": STORED["model"] | changed}


def without(key: str) -> dict[str, Any]:
    return {name: value for name, value in STORED.items() if name != key}


DAMAGED = {
    "half a file": ('{"family": "gpt", "rec', "is not valid JSON: Unterminated string"),
    "nested beyond reason": ("[" * 100_000, "is not valid JSON: "),
    "a list": ("[]", "expected an object"),
}
WRONG = {
    "another family": (STORED | {"family": "../gpt"}, r"family '../gpt': expected one of .*gpt.*; correct it in config.json"),
    "unknown key": (model(layres=3), "model.layres 3: unknown key"),
    "missing key": (without("model"), "model: missing; add it, or restore config.json from a copy"),
    "options of another objective": (STORED | {"masking": {}}, "masking {}: unknown key; if another version wrote it, .*train"),
    "data of another objective": (STORED | {"data": {"pack": True}}, "data.pack true: unknown key"),
    "another objective": (
        STORED | {"objective": ["causal"]},
        r'objective \["causal"\]: expected one of causal, .*; correct it',
    ),
    "bool for int": (STORED | {"steps": True}, "steps true: expected int; correct it in config.json"),
    "bool for float": (STORED | {"label_smoothing": False}, "label_smoothing false: expected float"),
    "null for a name": (STORED | {"objective": None}, "objective null: expected one of causal, "),
    "unknown name": (STORED | {"objective": "next"}, "--objective next: choose causal, .*; the nearest is "),
    "NaN": (STORED | {"label_smoothing": float("nan")}, "label_smoothing NaN: expected float"),
    "value for object": (STORED | {"data": 3}, "data 3: expected an object; correct it in config.json"),
    "string for tuple": (model(pattern="full"), 'model.pattern "full": expected tuple'),
    "wrong item": (model(pattern=["full", "half"]), r'model.pattern\[1\] "half": expected one of full, window; '),
    "out of range": (STORED | {"steps": 0}, "--steps 0: choose 1 to"),
}
BROKEN = [pytest.param(*case, marks=pytest.mark.planted, id=name) for name, case in DAMAGED.items()]
BROKEN += [pytest.param(json.dumps(values), message, id=name) for name, (values, message) in WRONG.items()]


@pytest.mark.parametrize(("content", "message"), BROKEN)
def test_a_broken_configuration_is_named_in_one_line(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(BadInput, match=f"config.json:? {message}") as refused:
        read_config(tmp_path)
    assert "\n" not in str(refused.value)


def test_an_absent_key_has_its_default(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(without("max_skipped")))
    assert read_config(tmp_path) == RUN


@pytest.mark.parametrize("objective", OPTIONS)
def test_the_options_of_every_objective_come_back_without_those_of_others(objective: str, tmp_path: Path) -> None:
    kind = OPTIONS[objective]
    run = Run(recipe="a", model=NANO, options=kind(), data=kind.data(batch=2))
    assert round_trip(run, tmp_path) == run
    groups = {"masking", "denoising", "permutation", "pairs", "distillation", "labelled", "chat"}
    assert groups & json.loads((tmp_path / "config.json").read_text()).keys() == groups & vars(run.options).keys()
    for other in OPTIONS:
        changed = with_objective(run, other)
        assert changed.objective == other and changed.data.batch == 2 and with_objective(changed, other) == changed


def test_another_objective_keeps_the_options_that_both_have() -> None:
    options = DistilledOptions(masking=Masking(rate=0.3), distillation=TripleLoss(soft=1.0), loss_chunk=8)
    run = Run(recipe="a", model=NANO, options=options, data=EncoderData(rows="doc_sentences", field="a"))
    masked = with_objective(run, "masked")
    assert (masked.options.masking, masked.options.loss_chunk, masked.data) == (options.masking, 8, run.data)
    assert with_objective(run, "causal").data == CausalData(field="a")
    with pytest.raises(TypeError, match="causal needs CausalData, not EncoderData"):
        dataclasses.replace(run, options=CausalOptions())


OTHER = dataclasses.replace(RUN, seed=1)
CHECKPOINTS = ("checkpoints/00000002", "checkpoints/00000002.corrupt-1", "best/00000002")


@pytest.mark.parametrize("result", ["scores.json", *(f"{folder}/COMMIT.json" for folder in CHECKPOINTS)])
def test_a_run_with_results_holds_its_name(result: str, tmp_path: Path) -> None:
    folder = RunDir(tmp_path)
    folder.write_config(RUN)
    (tmp_path / result).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / result).touch()
    check_same_run(folder, RUN)
    with pytest.raises(BadInput, match="holds another run: seed: 0 before, 1 now; choose"):
        check_same_run(folder, OTHER)
    renamed = dataclasses.replace(RUN, data=dataclasses.replace(RUN.data, paths=("a.txt", "b.txt")))
    with pytest.raises(BadInput, match=r"holds another run: data\.paths: none before, a\.txt b\.txt now; choose"):
        check_same_run(folder, renamed)
    check_same_run(folder, OTHER, undecided=("seed",))
    assert not remove_stale_files(folder, OTHER)


@pytest.mark.parametrize("config", [None, "{"])
def test_a_run_without_results_gives_its_name_to_another(config: str | None, tmp_path: Path) -> None:
    """Also one whose config.json is damaged: there is nothing to protect."""
    folder = RunDir(tmp_path)
    assert not remove_stale_files(folder, OTHER)
    folder.write_config(RUN)
    folder.metrics.touch()
    assert not remove_stale_files(folder, RUN) and folder.metrics.exists()
    if config:
        folder.config.write_text(config)
    check_same_run(folder, OTHER)
    assert remove_stale_files(folder, OTHER) and not folder.metrics.exists()


@pytest.mark.parametrize(("first", "least"), [(0, 1200), (20, 400), (30, 0)])
def test_disk_space_is_checked_before_training(first: int, least: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of checkpoints of 400 bytes, three at a time; one that is there is replaced."""
    run = dataclasses.replace(RUN, steps=30, checkpoint=Checkpoint(every=10, keep=2))
    state = {"w": np.zeros((10, 10), np.float32)}
    for step in range(10, first + 1, 10):
        (tmp_path / "checkpoints" / f"{step:08d}").mkdir(parents=True)
        (tmp_path / "checkpoints" / f"{step:08d}" / "data").write_bytes(bytes(400))
    monkeypatch.setattr(disk_space.shutil, "disk_usage", lambda _: SimpleNamespace(free=least))
    disk_space.check_disk_space(RunDir(tmp_path), run, state, first)
    short = least - 1
    monkeypatch.setattr(disk_space.shutil, "disk_usage", lambda _: SimpleNamespace(free=short))
    if least:
        with pytest.raises(BadInput, match=rf"--checkpoint.keep 2: checkpoints of 400 bytes .* has {short:,} free; make room"):
            disk_space.check_disk_space(RunDir(tmp_path), run, state, first)


MAY_CHANGE = {
    "name": "other",
    "out": "elsewhere",
    "engine": "pmap",
    "accumulate": 4,
    "options": CausalOptions(loss_chunk=64),
    "max_skipped": 3,
    "mesh": Mesh(fsdp=4),
    "machine": TrainingMachine(devices=8, processes=2),
    "extended_from": (5,),
    "log": Log(every=1, ledger=True),
    "checkpoint": Checkpoint(every=7),
    "model": dataclasses.replace(NANO, compute=configs.Compute(remat="full", unroll=2)),
}
MAKES_ANOTHER: list[tuple[str, Any, str]] = [
    ("steps", 900, "steps: 1000 before, 900 now"),
    ("seed", 1, "seed: 0 before, 1 now"),
    ("width_transfer", "96", "width_transfer: none before, 96 now"),
    ("precision", "bfloat16", "precision: auto before, bfloat16 now"),
    ("label_smoothing", 0.1, "label_smoothing: 0.0 before, 0.1 now"),
    ("z_loss", 1e-4, "z_loss: 0.0 before, 0.0001 now"),
    ("data", CausalData(batch=32), "data.batch: 16 before, 32 now"),
    ("tokenizer", Tokenizer(vocab=512), "tokenizer.vocab: 2048 before, 512 now"),
    ("optim", Optim(lr=2e-3), "optim.lr: 0.001 before, 0.002 now"),
    ("selection", Selection(best=True), "selection.best: False before, True now"),
    ("spikes", Spikes(sigmas=6.0), "spikes.sigmas: 0.0 before, 6.0 now"),
    ("model", dataclasses.replace(NANO, layers=6), "model.layers: 4 before, 6 now"),
]


def test_where_and_how_a_run_is_computed_may_change_and_everything_else_makes_another() -> None:
    """Every field is in one of the tables, so that a new one has to be: forgetting it can only refuse too much."""
    for field, value in MAY_CHANGE.items():
        assert identity_differences(RUN, dataclasses.replace(RUN, **{field: value})) == []
    for field, value, line in MAKES_ANOTHER:
        assert identity_differences(RUN, dataclasses.replace(RUN, **{field: value})) == [line]
    student = dataclasses.replace(RUN, options=(options := DistilledOptions()), data=options.data())
    other = dataclasses.replace(options, masking=Masking(rate=0.3), distillation=TripleLoss(soft=1.0))
    lines = ["masking.rate: 0.15 before, 0.3 now", "distillation.soft: 5.0 before, 1.0 now"]
    assert identity_differences(student, dataclasses.replace(student, options=other)) == lines
    assert "objective: causal before, distilled now" in identity_differences(RUN, student)
    base = dataclasses.replace(RUN, init="base")
    adapted = dataclasses.replace(base, lora=Lora(rank=4), adapter="a")
    assert identity_differences(base, adapted) == ["adapter: none before, a now", "lora.rank: 0 before, 4 now"]
    longer = dataclasses.replace(base, init_positions="interpolate")
    assert identity_differences(base, longer) == ["init_positions: same before, interpolate now"]
    forked = dataclasses.replace(base, fork=1)
    assert identity_differences(base, forked) == ["fork: 0 before, 1 now"]
    compared = {field for field, _, _ in MAKES_ANOTHER} | {"init", "init_positions", "fork", "adapter", "lora"}
    assert {field.name for field in dataclasses.fields(Run)} == compared | set(MAY_CHANGE) | {"recipe"}
