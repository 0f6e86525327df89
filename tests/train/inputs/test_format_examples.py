"""The examples of docs/formats.md: each is written to a file of its name and read with each of its recipes."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

from tests.support import preferences
from tests.support.chat import chat_tokenizer
from tests.support.processes import ROOT
from train import recipes
from train.config.rollout_options import Rollout
from train.config.run_config import Run
from train.config.run_config import Tokenizer as TokenizerOptions
from train.inputs import run_inputs
from train.inputs.example_inputs import ExampleInputs
from train.inputs.labelled_inputs import LabelledInputs
from train.run.run_dir import RunDir
from zoo import configs
from zoo.errors import BadInput

EXAMPLE = re.compile(r"^`([\w.]+)` for ((?:[^\n]+\n)+)\n```\n(.*?)^```", re.MULTILINE | re.DOTALL)
"""A paragraph with the name of a file and its recipes, and the content of the file."""
PAGE = (ROOT / "docs/formats.md").read_text(encoding="utf-8")
EXAMPLES = {
    f"{file}-{recipe}": (file, recipe, "multi-label" in heading, content)
    for file, heading, content in EXAMPLE.findall(PAGE)
    for recipe in re.findall(r"`([a-z]+(?:-[a-z]+)*)`", heading)
    if recipe in recipes.recipes()
}


def read(folder: Path, file: str, recipe: str, content: str, *, multi_label: bool) -> Any:
    """Return the inputs of a run of a recipe on a file, which is both halves of the data."""
    for half in ("training", "held_out"):
        (folder / half).mkdir(exist_ok=True)
        (folder / half / file).write_text(content, encoding="utf-8")
    run = recipes.recipe_run(recipe, "")
    family = configs.family_of(run.model)
    (folder / "tokenizer").mkdir(exist_ok=True)
    (chat_tokenizer() if family == "gpt" else preferences.tokenizer(family)).save(folder / "tokenizer")
    paths = {"paths": (str(folder / "training" / file),), "valid_paths": (str(folder / "held_out" / file),)}
    changes: dict[str, Any] = {"data": dataclasses.replace(run.data, **paths, length=256, batch=8)}
    changes |= {"tokenizer": TokenizerOptions(path=str(folder / "tokenizer")), "out": str(folder / "runs")}
    if multi_label or hasattr(run.options, "rollout"):
        group = {"labelled": dataclasses.replace(run.options.labelled, multi_label=True)} if multi_label else {}
        group |= {} if multi_label else {"rollout": Rollout(samples=2, tokens=8)}
        changes["options"] = dataclasses.replace(run.options, **group)
    run: Run = dataclasses.replace(run, **changes)
    run = run_inputs.resolve_config(run)
    return run_inputs.read_inputs(run, RunDir(folder / "run"), folder, quiet=True)


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_of_the_page_is_read_with_its_recipe(name: str, tmp_path: Path) -> None:
    file, recipe, multi_label, content = EXAMPLES[name]
    data = read(tmp_path, file, recipe, content, multi_label=multi_label)
    has_two = isinstance(data, ExampleInputs) and not isinstance(data, LabelledInputs)
    assert len(data.training.examples) == 2 if has_two else len(data.rows) > 0


def test_every_block_of_the_page_is_an_example() -> None:
    assert len(re.findall(r"^```$", PAGE, re.MULTILINE)) == 2 * len({file for file, *_ in EXAMPLES.values()})
    assert {recipe for _, recipe, *_ in EXAMPLES.values()} >= {"sft", "dpo", "kto", "reward-model", "grpo", "rloo", "ppo"}


@pytest.mark.planted
def test_an_example_that_no_recipe_reads_is_noticed(tmp_path: Path) -> None:
    file, recipe, _, content = EXAMPLES["sharegpt.json-sft"]
    with pytest.raises(BadInput, match=r"sharegpt\.json: record 1: message 1: from \"tool\"; choose system, human, user, gpt"):
        read(tmp_path, file, recipe, content.replace('"human"', '"tool"', 1), multi_label=False)
