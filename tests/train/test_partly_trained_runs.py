"""Runs that train adapters, or have frozen layers or embeddings: what is saved, and what everything that reads a run gets."""

import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.support import encoders, tiny
from tests.support.commands import in_folder, printed, write_gpt2
from train.checkpoints.manifest import by_path
from train.config import run_config
from train.engine import device_mesh
from train.run.run_dir import RunDir
from train.weights import frozen_layers
from train.weights.load import load_average, load_model, restore_trained
from zoo.cli import main
from zoo.errors import BadInput
from zoo.lora import peft_files

TRAIN = ["train", "gpt-nano", *tiny.FLAGS, "--steps", "6", "--checkpoint.every", "2", "--data.paths", "book.txt"]
TRAIN += ["--checkpoint.keep", "9", "--model.dropout", "0.1", "--init", "gpt2", "--optim.lr", "1e-2"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a text, the published model `gpt2`, and a run that trained adapters on it."""
    folder = tmp_path_factory.mktemp("place")
    write_gpt2(folder)
    with in_folder(folder):
        assert main.main([*TRAIN, "--name", "run", "--lora.rank", "4", "--lora.alpha", "6"]) == 0
        yield folder


PARTIAL = {
    "run": ["--lora.rank", "4", "--lora.alpha", "6"],
    "frozen": ["--optim.freeze-layers", "1", "--optim.freeze-embeddings", "--optim.layer-decay", "0.9", "--selection.best"],
}
"""Options of runs with frozen parameters, by name; the first is that of `place`."""


def trained_leaves(run: str) -> dict[str, np.ndarray]:
    folder = RunDir(run)
    config = run_config_of(run)
    return by_path(jax.device_get(restore_trained(folder.path, config, device_mesh.make_mesh(run_config.Mesh()), None)[0]))


def run_config_of(run: str) -> run_config.Run:
    from train.run.run_dir import read_config

    return read_config(run)


def same_bits(one: Any, other: Any) -> bool:
    one, other = by_path(jax.device_get(one)), by_path(jax.device_get(other))
    return one.keys() == other.keys() and all(one[path].tobytes() == other[path].tobytes() for path in one)


def test_everything_that_reads_a_run_gets_the_sum(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    merged, base = load_model("runs/run"), load_model("gpt2")
    names = {path for path, leaf in by_path(merged.params).items() if not np.array_equal(leaf, by_path(base.params)[path])}
    assert names == {"layers/attention/qkv/kernel"}
    score = json.loads(RunDir("runs/run").scores.read_text())
    assert f"loss           {score['loss']:.6f}" in printed(capsys, "eval", "runs/run")

    printed(capsys, "export", "runs/run", "out")
    assert same_bits(load_model("out").params, merged.params)
    assert "adapters of rank 4 on c_attn, step 6" in printed(capsys, "export", "runs/run", "adapter", "--adapter")
    assert same_bits(load_model("gpt2", adapter="adapter").params, merged.params)
    prompt = ["--prompt", "The 7th whale", "--limit", "4", "--temperature", "0", "--json"]
    texts = [
        json.loads(printed(capsys, "generate", *source, *prompt))["text"]
        for source in (["runs/run"], ["out"], ["gpt2", "--adapter", "adapter"])
    ]
    assert len(set(texts)) == 1
    task = ["--task", "perplexity", "--files", "book.txt", "--limit", "1", "--json"]
    scores = [
        json.loads(printed(capsys, "eval", *source, *task))["metrics"] for source in (["out"], ["gpt2", "--adapter", "adapter"])
    ]
    assert scores[0] == scores[1]

    # Another run begins with the adapter, its form and its dropout, and ends with its own.
    config = place / "adapter" / "adapter_config.json"
    config.write_text(config.read_text().replace('"lora_dropout": 0.0', '"lora_dropout": 0.1'))
    printed(capsys, *TRAIN, "--adapter", "adapter", "--optim.lr", "1e-9", "--name", "next")
    before, after = trained_leaves("runs/run"), trained_leaves("runs/next")
    assert all(np.allclose(before[path], after[path], atol=1e-7) for path in before)
    of_adapter = dataclasses.replace(run_config_of("runs/run").lora, targets=("c_attn",), dropout=0.1)
    assert run_config_of("runs/next").lora == of_adapter
    stored = load_file(place / "adapter" / peft_files.WEIGHTS)
    assert sum(tensor.size for tensor in stored.values()) == sum(leaf.size for leaf in before.values())


def test_everything_that_reads_a_run_with_frozen_layers_gets_all_parameters(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The frozen ones have the bits of --init, and no checkpoint contains them."""
    printed(capsys, *TRAIN, *PARTIAL["frozen"], "--name", "frozen")
    trained, base = trained_leaves("runs/frozen"), by_path(load_model("gpt2").params)
    read, newest = (by_path(load_model("runs/frozen", step=step).params) for step in (None, -1))
    assert trained.keys() == {path for path in base if not path.startswith("embed/")}
    for path, leaf in read.items():
        cut = {"embed": len(leaf), "layers": 1}.get(path.split("/")[0], 0)
        assert np.array_equal(leaf[:cut], base[path][:cut]) and (cut == len(leaf) or not np.array_equal(leaf, base[path]))
        assert path not in trained or trained[path].shape == leaf[cut:].shape
    mean = load_average("runs/frozen", device_mesh.make_mesh(run_config.Mesh()), 1)
    assert same_bits(mean.params, newest)
    score = json.loads(RunDir("runs/frozen").scores.read_text())
    assert f"loss           {score['loss']:.6f}" in printed(capsys, "eval", "runs/frozen")
    printed(capsys, "export", "runs/frozen", "out-frozen")
    assert same_bits(load_model("out-frozen").params, read)
    facts = json.loads(RunDir("runs/frozen").starts.read_text().splitlines()[0])
    assert "1 layer and the embeddings are frozen" in str(facts)


@pytest.mark.full
@pytest.mark.planted
def test_a_run_whose_checkpoints_contain_its_frozen_parameters_is_refused(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As runs did before the frozen parameters were saved apart."""
    for name, options in {"layers": ["--optim.freeze-layers", "1"], "embeddings": ["--optim.freeze-embeddings"]}.items():
        argv = [*TRAIN, *options, "--steps", "2", "--name", name]
        with monkeypatch.context() as patch:
            patch.setattr(frozen_layers, "param_parts", lambda run: None)
            printed(capsys, *argv)
        RunDir(f"runs/{name}").scores.unlink()
        for command in (["eval", f"runs/{name}"], argv):
            message = printed(capsys, *command, code=2)
            assert "has another state: " in message or "base: missing; " in message


@pytest.mark.slow
@pytest.mark.planted(2)
@pytest.mark.parametrize("source", PARTIAL)
def test_a_run_resumes_with_the_same_bits_and_with_its_own_base(
    source: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also if what it began from is gone, but not on another base."""
    options = PARTIAL[source]
    if not Path("runs", source).exists():
        printed(capsys, *TRAIN, *options, "--name", source)
    for name in ("resumed", "robbed", "mixed", "other"):
        shutil.rmtree(Path("runs", name), ignore_errors=True)
    for name in ("resumed", "robbed", "mixed"):
        ignored = shutil.ignore_patterns("scores.json", "report.html", "00000006", "00000004", "best")
        shutil.copytree(Path("runs", source), f"runs/{name}", ignore=ignored)
    shutil.move("gpt2", "moved")
    try:
        printed(capsys, *TRAIN, *options, "--name", "resumed")
    finally:
        shutil.move("moved", "gpt2")
    one, other = trained_leaves(f"runs/{source}"), trained_leaves("runs/resumed")
    assert not [path for path in one if one[path].tobytes() != other[path].tobytes()]
    assert RunDir(f"runs/{source}").scores.read_text() == RunDir("runs/resumed").scores.read_text()

    shutil.rmtree("runs/robbed/base")
    assert "runs/robbed/base: missing; it has the parameters" in printed(capsys, *TRAIN, *options, "--name", "robbed", code=2)
    printed(capsys, *TRAIN, *options, "--steps", "1", "--seed", "5", "--name", "other")
    shutil.rmtree("runs/mixed/base")
    shutil.copytree("runs/other/base", "runs/mixed/base")
    assert "runs/mixed/base: not the parameters that" in printed(capsys, "eval", "runs/mixed", code=2)


REFUSED = {
    "--lora.rank 4 --lora.targets wte": "--lora.targets wte: a table of embeddings",
    "--lora.rank 4 --optim.layer-decay 0.5": "--optim.layer-decay 0.5: only adapters are trained",
    "--lora.rank 4 --optim.freeze-layers 1": "--optim.freeze-layers 1: only adapters are trained",
    "--lora.rank 4 --optim.freeze-embeddings": "--optim.freeze-embeddings True: only adapters are trained",
    "--lora.rank 4 --lora.dropout 1": "--lora.dropout 1.0: choose 0 (no dropout) or a rate below 1",
    "--lora.dropout 0.1": "--lora.dropout 0.1: it needs adapters; add --lora.rank 8",
    "--lora.alpha 4": "--lora.alpha 4.0: it needs adapters; add --lora.rank 8",
    "--lora.rank -1": "--lora.rank -1: choose 0",
    "--lora.rank 4 --init=": "--lora.rank: only a run that begins with the parameters of a model has it; name one with --init",
    "--adapter nowhere": "--adapter nowhere: no adapter_config.json there",
    "--adapter damaged": "adapter_model.safetensors cannot be read",
    "--adapter damaged --lora.rank 3": "adapter_model.safetensors",
}


@pytest.mark.parametrize("options", REFUSED)
def test_what_does_not_fit_is_refused_before_anything_is_written(
    options: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    form = {"peft_type": "LORA", "r": 4, "lora_alpha": 6, "target_modules": ["c_attn"]}
    (place / "damaged").mkdir(exist_ok=True)
    (place / "damaged" / "adapter_config.json").write_text(json.dumps(form))
    assert REFUSED[options].split()[-1] in printed(capsys, *TRAIN, *options.split(), "--name", "never", code=2)
    assert not (place / "runs" / "never").exists()


def test_only_a_run_with_adapters_exports_them(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--adapter: gpt2 is not a run" in printed(capsys, "export", "gpt2", "out2", "--adapter", code=2)
    with pytest.raises(BadInput, match="out2: no such folder"):
        load_model("out2")


@pytest.mark.full
def test_a_fine_tuned_head_is_trained_with_the_adapters(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is new, all of it is saved and exported, and the adapter needs a base with such a head."""
    encoders.folder(place / "tiny", "bert")
    (place / "a.tsv").write_text("text\tlabel\n" + "".join(f"the {'whale' if n % 2 else 'ship'}\t{n % 2}\n" for n in range(64)))
    options = (
        "--init tiny --data.paths a.tsv --data.length 16 --steps 30 --optim.lr 1e-2 --optim.warmup 4 --data.validation-share 0"
    )
    printed(capsys, "train", "finetune-classification", *options.split(), "--lora.rank", "2", "--name", "labelled")
    assert json.loads(RunDir("runs/labelled").scores.read_text())["accuracy"] == 1
    paths = trained_leaves("runs/labelled").keys()
    assert paths == {f"layers/attention/qkv/lora/{part}" for part in "ab"} | {f"classifier/{part}" for part in ("kernel", "bias")}
    kernel = trained_leaves("runs/labelled")["classifier/kernel"]
    counts = f"of adapters of rank 2 on query, value, {kernel.size + 2} of the head, step 30"
    assert counts in printed(capsys, "export", "runs/labelled", "labelled", "--adapter")
    config = json.loads((place / "labelled" / "adapter_config.json").read_text())
    assert (config["task_type"], config["modules_to_save"], config["r"]) == ("SEQ_CLS", ["classifier"], 2)
    printed(capsys, "export", "runs/labelled", "labelled-merged")
    assert same_bits(load_model("labelled-merged").params, load_model("runs/labelled").params)
    with pytest.raises(BadInput, match=r"base_model\.model\.classifier\.bias is unexpected"):
        load_model("tiny", adapter="labelled")
