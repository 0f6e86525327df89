"""`zoo export` writes a card that the hub's own parser reads, and a command in it that trains the same run."""

import dataclasses
import json
import shlex
from pathlib import Path

import pytest
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from tests.support.commands import call, finished, in_folder, printed
from train.run.run_dir import read_config
from train.run.run_identity import run_identity
from train.weights.load import load_model
from zoo.cli.commands.train import parse_options
from zoo.cli.run_options import train_command


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory):
    """A folder to work in, with the run `runs/done` and its export `out`."""
    folder = tmp_path_factory.mktemp("place")
    finished(folder)
    with in_folder(folder):
        yield folder


def test_the_card_of_a_run(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed(capsys, "export", "runs/done", "out", "--license", "mit")
    card, run = ModelCard.load(place / "out" / "README.md"), read_config("runs/done")
    data = card.data
    assert (data.license, data.library_name, data.pipeline_tag) == ("mit", "transformers", "text-generation")
    assert (data.base_model, data.datasets, data.tags) == (None, None, ["transformer-zoo", "gpt", "causal"])
    assert ModelCardData(**data.to_dict()).to_dict() == data.to_dict()
    scores = json.loads(Path("runs/done/scores.json").read_text())
    assert data.model_name == "out" and all(isinstance(result, EvalResult) for result in data.eval_results)
    assert {result.metric_type: result.metric_value for result in data.eval_results} == {
        name: scores[name] for name in ("bits_per_byte", "perplexity", "loss")
    }
    for words in ("27,776 parameters", "SHA-256 of the training rows", "](curve.png)", "95% interval", "## Limits", "jax "):
        assert words in card.text, words
    start = json.loads(Path("runs/done/starts.jsonl").read_text().splitlines()[-1])
    assert start["provenance"]["host"] not in card.text.split()
    assert start["provenance"]["commit"] is None or start["provenance"]["commit"] in card.text

    # The command, as a shell reads it, gives the options of the run.
    block = card.text.split("```sh\n")[1].split("```")[0]
    zoo, train, recipe, *options = shlex.split(block.replace("\\\n", ""))
    assert (zoo, train) == ("zoo", "train")
    assert run_identity(parse_options(recipe, options)) == run_identity(run)

    # What is beside the weights does not hinder an import.
    assert "27,776 parameters" in printed(capsys, "import", "out", "--name", "again")
    assert (load_model("out").params["norm"]["scale"] == load_model("runs/done").params["norm"]["scale"]).all()


def test_a_card_without_a_licence_asks_for_one(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed(capsys, "export", "runs/done", "second", "--license", "mit")
    ended = call(capsys, "export", "second", "third")
    line = "! third/README.md names no licence, which the hub asks for; --license ID gives one"
    assert line in ended.stderr.splitlines()
    card = ModelCard.load(place / "third" / "README.md")
    assert card.data.license is None and "No licence was given" in card.text
    assert "converted by transformer-zoo from published weights" in card.text and "## Training" not in card.text


@pytest.mark.planted
def test_a_command_is_that_of_its_run_or_none(place: Path) -> None:
    run = read_config("runs/done")
    assert train_command(run)[:3] == ["zoo", "train", "gpt-nano"]
    assert train_command(dataclasses.replace(run, recipe="gone")) == []
