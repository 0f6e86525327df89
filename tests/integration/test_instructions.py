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


@pytest.mark.slow
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


@pytest.mark.full
def test_preferences_between_conversations_are_learned(capsys: pytest.CaptureFixture[str], place: Path) -> None:
    """Half of the pairs have the prompt in its own column, half at the beginning of both sides."""
    pairs = []
    for number, (color, answer) in enumerate([*ANSWERS.items()] * 8):
        prompt = [{"role": "user", "content": f"{color} {number}"}]
        chosen, rejected = ([{"role": "assistant", "content": text}] for text in (answer, "no"))
        implicit = {"chosen": prompt + chosen, "rejected": prompt + rejected}
        pairs.append({"prompt": prompt, "chosen": chosen, "rejected": rejected} if number % 2 else implicit)
    put(place / "pairs.json", json.dumps(pairs))
    flags = words(f"{FLAGS} --data.paths pairs.json --steps 40")
    run = trained("dpo", ["dpo", *flags])
    assert losses(run)[-1] < 0.5 * losses(run)[0]
    assert_evaluates_alike(capsys, run)
    scores = call(capsys, "eval", "runs/dpo", "--task", "preferences", "--files", "pairs.json").stdout
    assert float(scores.split("accuracy")[1].split()[0]) > 0.9
    rows = call(capsys, "data", "inspect", "dpo", "--init", "runs/dpo", "--data.paths", "pairs.json", "--rows", "1").stdout
    assert "chosen" in rows and "pairs.json: record" in rows
    assert main.main(["export", "runs/dpo", "exported-dpo"]) == 0
    assert (place / "exported-dpo/chat_template.jinja").read_text().startswith("{%- for message in messages")


def test_commands_that_cannot_chat_are_refused(capsys: pytest.CaptureFixture[str], place: Path) -> None:
    sides = {name: [{"role": "user", "content": "r"}, {"role": "assistant", "content": name}] for name in ("chosen", "rejected")}
    put(place / "chosen.jsonl", [sides, {name: [turns[0] | {"content": "b"}, turns[1]] for name, turns in sides.items()}])
    put(place / "texts.jsonl", [{"prompt": f"{n}", "completion": "a", "label": n % 2 == 0} for n in range(30)])
    base, chat = words("generate runs/done --prompt a --chat"), words("train sft --data.paths chat.jsonl --init runs/done --name")
    cases = {
        "no template": (base, "runs/done: no chat template; put"),
        "beginning": ([*base, "--begin"], "--begin True: --chat takes prompts as turns of the user"),
        "choices": ([*base, "--choices", "b"], "--choices .*: --chat takes prompts as turns"),
        "no template for preferences": (
            words("train dpo --data.paths chosen.jsonl --init runs/done --name x"),
            "runs/done: no chat template; .* train with --chat.template builtin",
        ),
        "a template for texts": (
            words("train kto --data.paths texts.jsonl --init runs/done --name x --chat.template builtin"),
            "--chat.template builtin: the data has no messages, and plain texts are not rendered; remove it",
        ),
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
