"""Options from files: the same run from a file as from a command line, lines of what is wrong, and trust."""

import dataclasses
import json
import re
from pathlib import Path

import pytest

from tests.support.commands import call, in_folder
from train import recipes
from train.run.run_dir import as_json
from zoo import trust
from zoo.cli.commands.train import parse_options
from zoo.cli.config_option import key_lines, take_config
from zoo.errors import BadInput

FORMS = {
    "a.toml": 'recipe = "bert-nano"\nsteps = 7\nselection.best = true\n\n[optim]\nlr = 1e-3\n'
    '[data]\npaths = ["a.txt", "b.txt"]\n',
    "a.yaml": "recipe: bert-nano\nsteps: 7\nselection: {best: true}\noptim:\n  lr: 0.001\ndata:\n  paths: [a.txt, b.txt]\n",
    "a.json": '{"recipe": "bert-nano", "steps": 7, "selection": {"best": true},\n'
    ' "optim": {"lr": 0.001}, "data": {"paths": ["a.txt", "b.txt"]}}',
}
SAME = ["--steps", "7", "--selection.best", "--optim.lr", "1e-3", "--data.paths", "a.txt", "b.txt"]
REFUSED = {
    (
        "a.toml",
        "steps = 3\n[optim]\n# 1\nwamrup = 3\n",
    ): "a.toml line 4: there is no option --optim.wamrup; the nearest",
    ("a.yaml", "steps: 3\noptim:\n  lr: -1.0\n"): "a.yaml line 3: --optim.lr -1.0: choose a learning rate",
    ("a.json", '{"log": {"steps": 1},\n "steps": "x"}'): "a.json line 1: there is no option --log.steps",
    ("b.json", '{"steps":\n "x"}'): "b.json line 1: --steps: x is not a whole number",
    ("a.toml", "steps = \n"): "--config a.toml: not valid TOML",
    ("a.yaml", "a: &b 1\nc: *b\n"): r"--config a.yaml: not valid YAML \(it has an alias",
    ("a.json", "[1]"): "--config a.json: expected options by name",
    ("a.ini", "steps = 3"): "--config a.ini: choose a file that ends in .toml, .yaml or .json",
    ("config.json", '{"model_type": "gpt2"}'): "--config config.json: it belongs to published weights",
}


def config_words(*args: str) -> tuple[list[str], dict[str, str]]:
    trust.begin_command(args)
    return take_config(args[0], args[1:])


@pytest.mark.parametrize("name", FORMS)
def test_a_file_gives_the_run_of_the_same_options(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(FORMS[name])
    with in_folder(tmp_path):
        words, places = config_words("train", "--config", name)
        assert words[0] == "bert-nano"
        assert parse_options(words[0], words[1:]) == parse_options("bert-nano", SAME)
        assert places["steps"] == f"{name} line {1 if name == 'a.json' else 2}"
        # What the command line names is not read.
        words, _ = config_words(
            "train", "gpt-nano", f"--config={name}", "--steps", "9", "--selection.no-best", "--data.paths", "c"
        )
        run = parse_options(words[0], words[1:])
        assert (run.recipe, run.steps, run.selection.best, run.data.paths, run.optim.lr) == ("gpt-nano", 9, False, ("c",), 1e-3)


@pytest.mark.parametrize("recipe", ["gpt-nano", "bert-nano", "t5-nano", "xlnet-nano", "embed-contrastive"])
def test_the_config_of_a_run_gives_the_run(recipe: str, tmp_path: Path) -> None:
    run = dataclasses.replace(recipes.recipe_run(recipe, ""), steps=17, precision="float32", seed=3)
    run = dataclasses.replace(run, optim=dataclasses.replace(run.optim, lr=0.0123, clip=0.5), name="other")
    (tmp_path / "config.json").write_text(json.dumps(as_json(run)))
    words, _ = config_words("train", "--config", str(tmp_path / "config.json"))
    assert words[0] == recipe and len(words) == 1 + len(["steps", "precision", "seed", "lr", "clip", "name"])
    assert parse_options(words[0], words[1:]) == run


@pytest.mark.parametrize(("file", "text"), REFUSED)
def test_what_is_wrong_in_a_file_is_named(file: str, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / file).write_text(text)
    with in_folder(tmp_path):
        ended = call(capsys, "train", "gpt-nano", "--config", file, "--check")
    assert (ended.code, ended.stdout, ended.stderr.count("\n")) == (2, "", 1)
    assert re.match(f"zoo: {REFUSED[file, text]}", ended.stderr)


def test_an_option_without_a_file_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with in_folder(tmp_path):
        for args, message in {
            ("--config",): "--config: has no value",
            ("--config", "no.toml"): "--config no.toml: cannot be read (No such file or directory)",
            ("--config", "."): "--config .: is a folder",
            ("--config=a.toml", "--config=b.toml"): "--config b.toml: named twice",
        }.items():
            ended = call(capsys, "train", "gpt-nano", *args)
            assert ended.code == 2 and message in ended.stderr


@pytest.mark.planted
def test_a_file_names_no_code_without_trust(tmp_path: Path) -> None:
    """The names would otherwise be the user's own, as those of a command line are."""
    (tmp_path / "evil.py").write_text("def reward(texts): raise SystemExit(7)\n")
    (tmp_path / "a.toml").write_text('[rollout]\nreward = ["evil:reward"]\n')
    with in_folder(tmp_path):
        with pytest.raises(BadInput, match=r"a.toml: its a.toml names code that is not part of the zoo: .*evil:reward"):
            config_words("train", "grpo", "--config", "a.toml")
        words, _ = config_words("train", "grpo", "--config", "a.toml", "--rollout.reward", "evil:reward")
        assert words == ["grpo", "--rollout.reward", "evil:reward"]


def test_lines_of_keys() -> None:
    toml = 'a = 1\n"b".c = 2\n[d.e]\nf-g = 3 # h = 4\n'
    assert key_lines(toml, ".toml") == {"a": 1, "b.c": 2, "d.e": 3, "d.e.f_g": 4}
    text = '{"a": {"b": "c: {",\n "d": [1, 2]},\n "b": 3}'
    assert key_lines(text, ".json") == {"a": 1, "a.b": 1, "a.d": 2, "b": 3}
    assert key_lines(text, ".yaml") == key_lines(text, ".json")
