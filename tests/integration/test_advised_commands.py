"""A command that a message advises is one that can be run: it is not refused because of how it is written."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import encoders
from tests.support.commands import call, finished, in_folder, words

NAMES = {"RUN|DIR": "runs/done", "[RECIPE|RUN]": "gpt-nano", "DIR|HUB_ID": "bert", "RUN": "runs/done", "RECIPE": "gpt-nano"}
NAMES |= {"TEXT": "whale", "DIR": "out", "[DIR]": "sums"}
"""Placeholder in a command -> what a user writes for it."""
AFTER = {"--prompt": "whale", "--text": "[MASK]", "--files": "book.txt", "--data.paths": "book.txt"}
"""Option before "..." -> what a user writes for the dots."""
ADVICE = re.compile(r"`(zoo [^`]+)`|(zoo (?:[a-z-]+|--version)(?: (?!lists|again|describes|trains|or |for )[^\s;,()`]+)*)")
USAGE = re.compile(
    r"there is no (option|command)|belongs to no option|is missing: |is not given|its value is missing|choose one of attention|"
    r"write zoo data|name a size|to compare: zoo compare|cannot be parsed"
)
"""Messages about how a command is written, and not about the files or the model that it names."""
CHECK = ("--check",)
HELP = ("--help",)
ROWS: dict[str, tuple[str, ...]] = {
    "train gpt-nano --stpes 3": (),
    "train gpt-nano --xyzzy 1": (),
    "train gpt-nano --log.ledger=yes": (),
    "train --recipe gpt-nano": CHECK,
    "train sft --init runs/gpt-nano": CHECK,
    "train distilbert-nano": CHECK,
    "eval --xyzzy 3": (),
    "eval --step 3": (),
    "eval --run runs/done": (),
    "eval missing": CHECK,
    "eval runs": CHECK,
    "compare missing": CHECK,
    "compare": (),
    "compare runs/done --metric perplexity/loss": (),
    "generate --model runs/done --prompt a": (),
    "generate bert --prompt a": (),
    "fill-mask runs/done --text a": (),
    "embed runs/done --text a": (),
    "predict runs/done --text a": (),
    "export": (),
    "import runs/done": (),
    "data": (),
    "data look": (),
    "bench": HELP,
    "bench growth --layers 1.5": (),
    "bench step": (),
    "doctor now": (),
    "plan": (),
    "plan gpt-9": (),
    "models gpt-9": (),
    "eval bert --task preferences --files pairs.jsonl": CHECK,
    "eval scaled --task perplexity --files book.txt": (),
    "predict runs/done whale": (),
    "predict bert whale": CHECK,
}
"""Refused command -> what is added to the commands in its message, so that they end early."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("place")
    finished(folder)
    (folder / "pairs.jsonl").write_text('{"prompt": "a", "chosen": " b", "rejected": " c"}\n' * 2)
    encoders.folder(folder / "bert", "bert")
    shutil.copytree(folder / "runs" / "done", folder / "scaled")
    (folder / "scaled" / "reward_scale.json").write_text("{")
    with in_folder(folder):
        yield folder


def filled(command: str) -> list[str]:
    """Return the arguments of a command in a message, with a user's names in place of its placeholders."""
    argv: list[str] = []
    for word in words(command)[1:]:
        if word == "...":
            argv.append(AFTER[argv[-1]])
        else:
            argv.append(NAMES.get(word, word))
    return argv


@pytest.mark.parametrize("line", ROWS)
def test_an_advised_command_is_not_refused_for_how_it_is_written(
    line: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refused = call(capsys, *words(line))
    # Lines before it say what the command was doing.
    message = refused.stderr.splitlines()[-1]
    assert refused.code == 2 and message.startswith("zoo: ")
    commands = [quoted or bare for quoted, bare in ADVICE.findall(message)]
    assert commands, refused.stderr
    for command in commands:
        ended = call(capsys, *filled(command), *ROWS[line])
        assert ended.code in (0, 2) and not USAGE.search(ended.stderr), (command, ended.stderr)


@pytest.mark.planted
def test_a_command_without_its_arguments_is_refused_for_how_it_is_written(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for line in ("export", "eval --task rewards", "generate runs/done", "train gpt-nano --wrong", "bench", "data"):
        assert USAGE.search(call(capsys, *words(line)).stderr), line
