"""`zoo import`, `zoo export` and `--init`: whole folders, as a user has them."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest
from huggingface_hub import ModelCard
from safetensors.numpy import load_file, save_file

from tests.support import encoders, published, tiny
from tests.support.commands import GPT2, in_folder, printed, write_gpt2
from tests.support.processes import run_python
from tests.support.runs import PATIENCE, small_files
from train.config import run_config
from train.engine import device_mesh
from train.run.run_dir import RunDir
from train.weights.load import load_model
from zoo.errors import BadInput
from zoo.hf import hub, safetensors_dir

TRAIN = ["train", "gpt-nano", *tiny.FLAGS, "--steps", "2", "--data.paths", "book.txt"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder to work in, with a text and the published model `gpt2`."""
    folder = tmp_path_factory.mktemp("place")
    write_gpt2(folder)
    with in_folder(folder):
        yield folder


def test_weights_are_imported_trained_and_exported(place: Path, capsys: pytest.CaptureFixture[str]):
    settings = '{"eos_token_id": [7, 9], "max_length": 50, "top_k": null}'
    (place / "gpt2" / "generation_config.json").write_text(settings)
    assert "300" in printed(capsys, "import", "gpt2")
    assert (place / "models" / "gpt2" / "generation_config.json").read_text() == settings
    stored = load_file(place / "gpt2" / safetensors_dir.SINGLE)
    kept = load_file(place / "models" / "gpt2" / safetensors_dir.SINGLE)
    assert kept.keys() == stored.keys()
    assert all(np.array_equal(kept[name], stored[name]) for name in stored)

    # The folder says which model of the hub it is a copy of, as after an import from there.
    hub.write_origin(place / "models" / "gpt2", "hub:openai/gpt2@main", Path("snapshots", "c0ffee"))
    # Steps too small to matter show what the run began with.
    printed(capsys, *TRAIN, "--init", "models/gpt2", "--optim.lr", "1e-9", "--name", "goes-on")
    assert "step 2" in printed(capsys, "export", "runs/goes-on", "out")
    card = ModelCard.load(place / "out" / "README.md")
    assert card.data.base_model == "openai/gpt2" and "at the commit `c0ffee`" in card.text
    after = load_file(place / "out" / safetensors_dir.SINGLE)
    assert all(np.allclose(after[name], stored[name], atol=1e-6) for name in stored)
    assert json.loads((place / "out" / "config.json").read_text())["architectures"] == ["GPT2LMHeadModel"]
    # The run keeps the settings of generation, and training has taught its tokenizer's end of a text.
    own = json.loads((place / "runs" / "goes-on" / "generation_config.json").read_text())
    assert own == {"eos_token_id": [7, 9], "max_length": 50}
    end = json.loads((place / "out" / "config.json").read_text())["eos_token_id"]
    exported = json.loads((place / "out" / "generation_config.json").read_text())
    assert exported == own | {"eos_token_id": [7, 9, end], "bos_token_id": end}

    # The run goes on without what it began from, but not with another beginning.
    shutil.move("models/gpt2", "moved")
    assert "is finished" in printed(capsys, *TRAIN, "--init", "models/gpt2", "--optim.lr", "1e-9", "--name", "goes-on")
    assert "init" in printed(capsys, *TRAIN, "--init", "moved", "--optim.lr", "1e-9", "--name", "goes-on", code=2)

    loaded = load_model("out")
    assert loaded.run is None and loaded.generation is not None and loaded.generation.values == exported
    with pytest.raises(BadInput, match="not a run, so it has no checkpoints"):
        load_model("out", step=2)
    from_run = load_model("runs/goes-on", device_mesh.make_mesh(run_config.Mesh(fsdp=2, tensor=2)))
    assert from_run.step == 2
    same = jax.tree.map(lambda a, b: bool((np.asarray(a) == np.asarray(b)).all()), loaded.params, from_run.params)
    assert jax.tree.all(same)
    assert from_run.params["norm"]["scale"].sharding.mesh.shape["tensor"] == 2


BAD = {
    "import a/b/c": "a/b/c: not a hub id",
    "import pickled": "pickled/pytorch_model.bin: only safetensors and flax_model.msgpack are read",
    "import words": "words: its tokenizer has 300 entries and its model a vocabulary of 299",
    "import unspoken": "unspoken: holds no tokenizer.json and no vocab.json",
    "import garbled": "garbled/vocab.json: merges.txt:3: not two pieces",
    "import jumbled": "jumbled/vocab.json: not a vocabulary that matches merges.txt",
    "import gpt2 --out .": "gpt2: already exists",
    "import unfinished": "unfinished: a run, not published weights",
    "export unfinished out2": "unfinished/checkpoints: no checkpoint yet",
    "import gpt2 --processes 2": "--processes 2: this command runs in one process",
    "export gpt2 out2 --step 3": "--step 3: gpt2 is not a run",
    "export gpt2 book.txt/out2": "book.txt/out2: cannot be written",
}


@pytest.mark.planted
def test_a_model_pads_as_its_tokenizer_does(tmp_path: Path) -> None:
    """RoBERTa's positions begin after the id of the padding: with another one, every position would be off."""
    folder = encoders.folder(tmp_path / "roberta", "roberta")
    load_model(folder)
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(content | {"pad_token_id": 0}))
    with pytest.raises(BadInput, match="pad_token_id is 0; its tokenizer pads with 1; use the files of one model"):
        load_model(folder)


@pytest.fixture(scope="module")
def broken(place: Path) -> Path:
    """Folders beside `gpt2` with something wrong each."""
    (place / "pickled").mkdir()
    shutil.copytree(place / "gpt2", place / "lacking")
    weights = load_file(place / "lacking" / safetensors_dir.SINGLE)
    del weights["transformer.ln_f.bias"]
    save_file(weights, place / "lacking" / safetensors_dir.SINGLE)
    shutil.copy(place / "gpt2" / "config.json", place / "pickled")
    (place / "pickled" / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch ran'\ntR.")
    published.write(place / "words", GPT2 | {"vocab_size": 299})
    shutil.copy(place / "gpt2" / "tokenizer.json", place / "words")
    published.write(place / "unspoken", GPT2)
    RunDir(place / "unfinished").path.mkdir()
    RunDir(place / "unfinished").write_config(tiny.run())
    for name, line in {"garbled": "a b c", "jumbled": "zz qq"}.items():
        published.write(place / name, GPT2)
        shutil.copy(place / "gpt2" / "vocab.json", place / name)
        first, *lines = (place / "gpt2" / "merges.txt").read_text().splitlines()
        (place / name / "merges.txt").write_text("\n".join([first, lines[0], line, *lines[1:]]))
    return place


@pytest.mark.parametrize(
    "line", [pytest.param(line, marks=pytest.mark.planted) if line.endswith(("garbled", "jumbled")) else line for line in BAD]
)
def test_bad_input_is_one_line_and_leaves_nothing(line: str, broken: Path, capsys: pytest.CaptureFixture[str]):
    """No folder around the one that is not made, either."""
    shutil.rmtree(broken / "models", ignore_errors=True)
    before = sorted(broken.rglob("*"))
    assert printed(capsys, *line.split(), code=2).startswith(f"zoo: {BAD[line]}")
    assert sorted(broken.rglob("*")) == before


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--init", "gpt2", "--model.layers", "1"], "--init gpt2: another model: layers 2 there and 1 here"),
        pytest.param(
            ["--init", "lacking"],
            "lacking: not the weights of its config.json: transformer.ln_f.bias is missing",
            marks=pytest.mark.planted,
        ),
    ],
)
def test_sources_that_cannot_be_a_beginning_are_refused_before_training(
    broken: Path, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
):
    assert message in printed(capsys, *TRAIN, *flags, "--name", "never", code=2)
    assert not (broken / "runs" / "never").exists()


def test_a_full_disk_leaves_nothing(place: Path, capsys: pytest.CaptureFixture[str]):
    with small_files(40_000):
        assert re.match(r"zoo: full: cannot be written \(.*\); make room", printed(capsys, "export", "gpt2", "full", code=2))
    assert not any("full" in path.name for path in place.iterdir())
    # Nor does a process that is killed meanwhile: the folder gets its name last.
    with safetensors_dir.new_folder(place / "named") as made:
        (made / "file").touch()
        assert not (place / "named").exists()
    assert [file.name for file in (place / "named").iterdir()] == ["file"]


@pytest.mark.full
def test_a_hub_id_comes_from_the_local_cache(place: Path, tmp_path: Path):
    """Offline, as a fresh process finds it; and one that is not there is refused at once."""
    snapshot, part = (tmp_path / f"hub/models--someone--{name}/snapshots" / ("0" * 40) for name in ("small", "part"))
    shutil.copytree(place / "gpt2", snapshot)
    # Another program fetched a tokenizer and no weights.
    part.mkdir(parents=True)
    shutil.copy(place / "gpt2" / "tokenizer.json", part)
    for each in (snapshot, part):
        (each.parent.parent / "refs").mkdir()
        (each.parent.parent / "refs" / "main").write_text("0" * 40)
    program = (
        "from zoo.hf import hub; from zoo.errors import BadInput\n"
        "print(hub.fetch_model('hub:someone/small'))\n"
        "for name in ('someone/large', 'someone/part'):\n"
        "    try: hub.fetch_model(name)\n"
        "    except BadInput as error: print(error)\n"
    )
    # No variable forbids the network here: a machine without one must get the same answer.
    environment = {"HF_HUB_OFFLINE": None, "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_ENDPOINT": "http://127.0.0.1:9"}
    done = run_python("-c", program, env=environment, timeout=PATIENCE)
    assert done.stdout.splitlines()[0] == str(snapshot), done.stderr
    for line, name in zip(done.stdout.splitlines()[1:], ("large", "part"), strict=True):
        assert line.startswith(f"someone/{name}: not in the local cache, and the hub does not answer")
    assert hub.folder_of(str(place / "gpt2")) == place / "gpt2"
