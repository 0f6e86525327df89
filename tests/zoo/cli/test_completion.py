"""Completion of command lines: the tables against the options that the parser accepts, and the script in a real bash."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.processes import run_python
from zoo.cli.completion import shell_scripts, word_tables
from zoo.cli.completion.word_tables import Tables

COMPLETE = """
source "$0"
while read -ra COMP_WORDS; do
    [[ ${COMP_WORDS[-1]} == @ ]] && COMP_WORDS[-1]=""
    COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
    COMPREPLY=()
    _zoo
    echo "${COMPREPLY[*]}"
done
"""
LINES = {
    "zoo tr": "train",
    "zoo train bert-n": "bert-nano",
    "zoo train gpt-nano --prec": "--precision",
    "zoo train gpt-nano --precision @": "auto float32 bfloat16",
    "zoo train gpt-nano --precision = b": "bfloat16",
    "zoo train gpt-nano --steps @": "",
    "zoo train gpt-nano --log.sinks tensorboard w": "wandb",
    "zoo train gpt-nano --masking": "",
    "zoo train bert-nano --masking.who": "--masking.whole-words",
    "zoo train gpt-nano --config text": "text.toml",
    "zoo data inspect gpt-nano --ro": "--rows",
    "zoo data i": "inspect",
    "zoo bench step --remat none att": "attention",
    "zoo generate run": "runs",
    "zoo generate runs --json --cho": "--choices",
    "zoo plan gpt2 --targ": "--target",
    "zoo completion @": "bash zsh fish",
}
"""Words before the cursor -> what they may become; @ is an empty word."""


@pytest.fixture(scope="module")
def tables() -> Tables:
    return word_tables.completion_tables()


@pytest.fixture(scope="module")
def scripts(tables: Tables, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scripts")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shell_scripts, "completion_tables", lambda: tables)
        for shell in word_tables.SHELLS:
            (folder / shell).write_text(shell_scripts.completion_script(shell))
    return folder


def test_bash_completes(scripts: Path, tmp_path: Path) -> None:
    (tmp_path / "text.toml").touch()
    (tmp_path / "runs").mkdir()
    done = subprocess.run(
        ["bash", "--norc", "-c", COMPLETE, str(scripts / "bash")],
        input="".join(f"{line}\n" for line in LINES),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    assert dict(zip(LINES, done.stdout.splitlines(), strict=True)) == LINES


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_accept_their_scripts(shell: str, scripts: Path) -> None:
    """Where the shell is installed, it checks the syntax; the words are those that bash completes."""
    text = (scripts / shell).read_text()
    assert "--learning" not in text and "--optim.lr" in text and text.count("_zoo_values") >= 2
    if program := shutil.which(shell):
        subprocess.run([program, "-n", str(scripts / shell)], check=True, capture_output=True)


def test_the_options_of_each_context_are_those_of_the_parser(tables: Tables) -> None:
    """Recipes of one kind share a list; each is compared with the help of the last recipe of its kind."""

    def names(context: str) -> set[str]:
        return {name for part in tables.options[context] for name in part}

    added = {"--config", "--trust", "--check", "--json", "--phases"}
    for recipe in ("xlnet-nano", "t5-nano", "gpt-nano", "grpo", "roberta-nano"):
        own = set(word_tables.command_options("train", recipe))
        assert len(own) > 50 and names(f"train {recipe}") == own | added
    assert names("data inspect bert-nano") >= set(word_tables.command_options("data", "inspect", "bert-nano"))
    assert names("plan bert-nano") >= set(word_tables.command_options("plan", "bert-nano"))
    assert names("train bert-nano") != names("train gpt-nano")


def test_it_needs_no_jax_and_refuses_other_shells() -> None:
    program = "import sys; from zoo.cli import main; print(main.main(['completion', 'bash']), 'jax' in sys.modules)"
    assert run_python("-P", "-c", program).stdout.splitlines()[-1] == "0 False"
    ended = run_python("-P", "-m", "zoo.cli", "completion", "tcsh")
    assert (ended.code, ended.stdout, ended.stderr) == (2, "", "zoo: completion tcsh: choose bash, zsh, fish\n")
