"""Instructions from the command line: a model is fine-tuned on conversations, answers them, and answers the same exported."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.commands import assert_evaluates_alike, assert_refused, call, finished, in_folder, losses, trained, words
from tests.support.labelled_files import put
from zoo.cli import main

ANSWERS = {"r": "rose", "b": "sea", "g": "tree"}
FLAGS = "--init runs/done --chat.template builtin --data.batch 8 --optim.lr 2e-2 --checkpoint.every 160"
FLAGS += " --log.every 5 --log.samples 2"


@pytest.fixture(scope="module", autouse=True)
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("instructions")
    finished(folder)
    asked = [("user", color, "assistant", answer) for color, answer in ANSWERS.items()]
    chats = [{"messages": [{"role": a, "content": b}, {"role": c, "content": d}]} for a, b, c, d in asked * 8]
    put(folder / "chat.jsonl", chats)
    with in_folder(folder):
        yield folder


@pytest.mark.full
def test_conversations_are_learned_and_answered(capsys: pytest.CaptureFixture[str], place: Path) -> None:
    run = trained("sft", words(f"sft {FLAGS} --data.paths chat.jsonl --steps 160"))
    assert losses(run)[-1] < 0.2 * losses(run)[0]
    assert_evaluates_alike(capsys, run)
    samples = json.loads((run / "samples.json").read_text())["samples"]
    assert all(sample["text"].strip() in ANSWERS.values() and sample["truth"].endswith("<|endoftext|>") for sample in samples), (
        samples
    )
    asked = words("--chat --temperature 0 --limit 8 --prompt")
    assert main.main(["export", "runs/sft", "exported"]) == 0
    for source in ("runs/sft", "exported"):
        ended = call(capsys, "generate", source, *asked, *ANSWERS, "--json")
        rows = [json.loads(line) for line in ended.stdout.splitlines()]
        assert [(row["text"], row["ended"]) for row in rows] == [(answer, "end of text") for answer in ANSWERS.values()]
    assert call(capsys, "generate", "exported", *asked, "r").stdout == "rose\n"


def test_commands_that_cannot_chat_are_refused(capsys: pytest.CaptureFixture[str], place: Path) -> None:
    base, chat = words("generate runs/done --prompt a --chat"), words("train sft --data.paths chat.jsonl --init runs/done --name")
    cases = {
        "no template": (base, "runs/done: no chat template; put"),
        "beginning": ([*base, "--begin"], "--begin True: --chat takes prompts as turns of the user"),
        "choices": ([*base, "--choices", "b"], "--choices .*: --chat takes prompts as turns"),
        "no template to learn": ([*chat, "x"], "runs/done: no chat template; .* train with --chat.template builtin"),
        "no file": (
            [*chat, "x", "--chat.template", "a.jinja"],
            r"--chat.template a.jinja: no such file; name a chat_template.jinja",
        ),
        "causal": (
            words("train gpt-nano --chat.turns last"),
            "there is no option --chat.turns for the objective causal; it belongs to",
        ),
    }
    assert_refused(capsys, place, {name: ([*argv], pattern) for name, (argv, pattern) in cases.items()})
