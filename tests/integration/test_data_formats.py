"""The commands of docs/data.md, on small files in the formats of the data sets that they are for."""

import csv
import io
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import encoders
from tests.support.commands import call, in_folder, words
from tests.support.labelled_files import put
from tests.support.text_tasks import subject
from train import trainer
from train.config.run_config import Run
from train.inputs import run_inputs
from train.run.run_dir import RunDir
from train.tokenizers import hf_files
from zoo import published_weights

PAGE = Path(__file__).parents[2] / "docs/data.md"
COMMANDS = [line.replace("\\\n", "").split() for line in re.findall(r"^zoo ((?:.*\\\n)*.*)$", PAGE.read_text(), re.MULTILINE)]
TRAINED = [command for command in COMMANDS if command[0] == "train"]
REPEATED = {"cola", "polarity", "reviews", "xquad/xquad.de.json"}
"""Words of commands that do the same as others on another file, which is read in any case."""
ONE_OF_EACH = [command for command in COMMANDS if not REPEATED & {*command}]
FEW = "--steps 4 --data.length 40 --data.batch 8 --log.every 2 --log.validate-every 2 --optim.warmup 1"
SMALL = words(f"{FEW} --labelled.truncate")
SPAN = words("--labelled.stride 8")
SENTENCES = [
    f"{who} {does} {what}"
    for who in ("the whale", "the old men", "a sailor")
    for does in ("sees", "follows", "fears")
    for what in ("the capital of France", "Paris", "a white ship", "the sea")
]
ASKED = {
    "en": ("Anna lives in Rome. Her brother Ben has a ship.", [("Where does Anna live?", "Rome"), ("Who has a ship?", "Ben")]),
    "de": ("Anna wohnt in Rom. Ihr Bruder Ben hat ein Schiff.", [("Wo wohnt Anna?", "Rom"), ("Wer hat ein Schiff?", "Ben")]),
    "zh": ("安娜住在罗马。她的哥哥本有一艘船。", [("安娜住在哪里", "罗马"), ("谁有一艘船", "本")]),
}
READ: dict[str, tuple[int, int, tuple[str, ...]]] = {
    "cola": (24, 12, ("0", "1")),
    "polarity": (32, 4, ("0", "1")),
    "wnut": (24, 12, ("B-location", "O")),
    "xquad": (10, 2, ()),
    "reviews": (32, 4, ("1", "2", "3")),
    "topics": (32, 4, ("people", "place", "whale")),
}
"""Name of the run -> training and held-out examples, and labels."""
BEGINNINGS = {
    "polarity": "a cold , naïve film : the",
    "reviews": 'They said "the whale sees the capital of France",\nand no',
}


def write_files(folder: Path) -> None:
    """Write a few examples for each data set, in its own format and encoding."""
    for name in ("cola", "polarity", "wnut", "xquad", "lambada"):
        (folder / name).mkdir()
    rows = []
    for number, text in enumerate(SENTENCES):
        good = number % 3 > 0
        shown = text if good else " ".join(text.split()[::-1])
        rows.append(f"src{number % 9}\t{int(good)}\t{'' if good else '*'}\t{shown.capitalize()}.\n")
    put(folder / "cola/in_domain_train.tsv", "".join(rows[:24]))
    put(folder / "cola/in_domain_dev.tsv", "".join(rows[24:]))
    rated = (f"{n % 2} a {'warm' if n % 2 else 'cold'} , naïve film : {text} .\n" for n, text in enumerate(SENTENCES))
    put(folder / "polarity/rt-polarity.all", "".join(rated).encode("latin-1"))
    tagged = ["".join(f"{w}\t{'B-location' if w in ('Paris', 'France') else 'O'}\n" for w in each.split()) for each in SENTENCES]
    parts = {"wnut17train.conll": tagged[:24], "emerging.dev.conll": tagged[24:], "emerging.test.annotated": tagged}
    for name, some in parts.items():
        put(folder / "wnut" / name, "\n".join(some) + "\n")
    for language, (context, asked) in ASKED.items():
        articles = []
        for number in range(6):
            qas = []
            for place, (text, answer) in enumerate(asked):
                answers = [{"text": answer, "answer_start": context.index(answer)}]
                qas.append({"id": f"{number}-{place}", "question": text, "answers": answers})
            articles.append({"paragraphs": [{"context": context, "qas": qas}]})
        content = json.dumps({"version": "1.1", "data": articles}, ensure_ascii=False)
        put(folder / f"xquad/xquad.{language}.json", content)
    put(folder / "lambada/lambada_test.jsonl", [{"text": f"{text} and sleeps"} for text in SENTENCES[:8]])
    table = io.StringIO()
    writer = csv.writer(table)
    writer.writerow(["id", "review", "stars"])
    writer.writerows([number, f'They said "{text}",\nand no more.', 1 + number % 3] for number, text in enumerate(SENTENCES))
    put(folder / "reviews.csv", table.getvalue())
    topics = {"people": ("men", "sailor"), "place": ("Paris", "France"), "whale": ("whale",)}
    lists = ([name for name, some in topics.items() if {*some} & {*text.split()}] for text in SENTENCES)
    put(folder / "topics.jsonl", [{"text": text, "labels": names} for text, names in zip(SENTENCES, lists, strict=True)])


@pytest.fixture(scope="module", autouse=True)
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("formats")
    write_files(folder)
    encoders.folder(folder / "DIR", "bert")
    with in_folder(folder):
        yield folder


@pytest.mark.parametrize("command", TRAINED, ids=[command[command.index("--name") + 1] for command in TRAINED])
def test_every_documented_command_reads_its_files(
    command: list[str], place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Run] = []
    monkeypatch.setattr(trainer, "run", lambda run, **_: asked.append(run) or 0)
    assert call(capsys, *command, *SMALL, *(SPAN if "finetune-span" in command else ())).code == 0
    folder = RunDir(place / "none")
    run = run_inputs.resolve_config(asked[0])
    data = run_inputs.read_inputs(run, folder, place)
    examples, held_out = data.rows.components[0].rows.examples, data.held_out.examples
    selected = len(data.selection.examples)
    assert (len(examples) + selected, len(held_out), run.model.labels) == READ[run.name]
    assert 0 < selected < len(examples)
    assert getattr(examples[0], "text", "").startswith(BEGINNINGS.get(run.name, ""))


@pytest.mark.parametrize(
    "commands",
    [pytest.param(ONE_OF_EACH, id="one of each task", marks=pytest.mark.full), pytest.param(COMMANDS, marks=pytest.mark.slow)],
)
def test_documented_commands_work(commands: list[list[str]], place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = subject()
    for folder in ("LM", "runs"):
        shutil.rmtree(place / folder, ignore_errors=True)
    (place / "LM").mkdir()
    published_weights.save_published(place / "LM", made.model.config, made.params)
    hf_files.write_tokenizer(place / "LM", made.tokenizer, longest=32)
    for number, command in enumerate(commands):
        small = () if command[0] == "eval" else (*SMALL, *(SPAN if "finetune-span" in command else ()))
        ended = call(capsys, *command, *small)
        (place / f"printed-{number}.txt").write_text(f"{ended.stdout}---\n{ended.stderr}")
        assert ended.code == 0, (command, ended)
        assert re.search(r"^held-out |^examples +\d", ended.stdout, re.MULTILINE), (command, ended)
