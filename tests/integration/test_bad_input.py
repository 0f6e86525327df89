"""What is wrong on the command line is said in one line and touches nothing."""

import re
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.commands import TINY, call, finished, snapshot, words
from tests.support.processes import Ended
from zoo import cli
from zoo.commands import models


def assert_refused(ended: Ended, expected: str) -> None:
    """One line of ours, or tyro's box, that matches; nothing else."""
    assert ended.code == 2, ended.stderr
    assert ended.stdout == ""
    lines = ended.stderr.strip().splitlines()
    if "For full helptext" in ended.stderr:
        assert len(lines) <= 12
        text = " ".join(" ".join(lines).replace("│", " ").split())
        assert re.search(expected, text), text
    else:
        assert len(lines) == 1
        assert re.match(f"zoo: {expected}", lines[0]), lines[0]


COMMAND_LINES = {
    "trian": "there is no command 'trian'; choose models, train, eval, compare, generate, fill-mask, embed, data, import, "
    "export, bench, plan, doctor",
    "bench": "zoo bench : choose from attention, step, growth, compare",
    "bench atention": "zoo bench atention: choose from attention, step, growth, compare",
    "bench compare x": "Missing from zoo bench compare: B",
    "train gpt-nona": "no recipe is called 'gpt-nona'; the nearest is 'gpt-nano'",
    "models gpt2-lrage": "no model is called 'gpt2-lrage'; the nearest is 'gpt2-large'",
    "models gpt-4": "the architecture of gpt-4 is unpublished.* nearest published architecture here is gpt3-175b$",
    "train gpt-nano --stpes 3": r"Unrecognized options: --stpes, 3 .*--steps INT",
    "train gpt-nano stray": "Unrecognized options: stray",
    "models gpt2 stray": "Unrecognized options: stray",
    "eval": "Missing from zoo eval: RUN Folder of a run",
    "doctor --stpes 3": "Unrecognized options: --stpes",
    "generate": r"Missing from zoo generate: RUN\|DIR",
    "generate x --prompt a --limitt 3": "Unrecognized options: --limitt, 3 .*--limit INT",
    "data": r"zoo data : write zoo data inspect \[RECIPE\|RUN\]",
    "plan": "zoo plan: say what to plan",
    "plan gpt2-lrage --target cpu:8": "no model is called 'gpt2-lrage'; the nearest is 'gpt2-large'",
    "plan gpt2": r"--target \(none\): there is no such target; choose one like .*v5p:16x16x16.*h100:64, .*cpu:8$",
    "plan gpt2 --target h100": "--target h100: say how many, 1 to 8 or a multiple of it .* for example h100:64$",
    "plan gpt2 --target h100:12": "--target h100:12: say how many",
    "plan gpt2 --target v5p": "--target v5p: say the slice of a v5p, one of v5p:2x2x1, .*v5p:8x8x8",
    "plan gpt2 --target v5e:8by8": "--target v5e:8by8: say the slice of a v5e, one of v5e:1x1",
    "plan gpt2 --target cpu:0": "--target cpu:0: say how many devices to simulate",
    "plan gpt2 --target cpu:8 --devices 8": "--devices 8: --target says them: cpu:8$",
    "plan gpt2 --target cpu:8 --search --page x.html": "--page x.html: a search has none",
    "plan gpt2 --target cpu:8 --batch 6": "--accumulate 4: it must divide --data.batch 6",
    "plan gpt2 --target cpu:8 --seq 2048": "--data.length 2,?048: the model has 1024 positions",
    "data inspect gpt-nona": "no recipe is called 'gpt-nona'",
    "import": r"Missing from zoo import: DIR\|HUB_ID",
    "export runs/done": "Missing from zoo export: DIR",
    "train gpt-nano --steps many": "--steps: invalid literal",
    "train gpt-nano --optim.lr fast": "--optim.lr: could not convert",
    "train gpt-nano --optim.lr": "Missing value for argument '--optim.lr'",
    "train gpt-nano --precision float16": "invalid choice 'float16' for argument '--precision'.*'bfloat16'",
    "train gpt-nano --engine vmap": "invalid choice 'vmap'.*'jit', 'pmap'",
    "train gpt-nano --optim.name sgd": "invalid choice 'sgd'.*'adamw', 'adafactor'",
    "train gpt-nano --model.activation swish": "invalid choice 'swish'",
    "train gpt-nano --model.pattern band": "invalid choice 'band'.*'full', 'window'",
}
"""A mistyped or unreadable option gets tyro's box."""

NUMBERS = {
    "--steps 0": "choose 1 to 2,147,483,647",
    "--steps 99999999999999999999": "choose 1 to 2,147,483,647",
    "--seed -1": "choose 0 to 4,294,967,295",
    "--seed 4294967296": "choose 0 to 4,294,967,295",
    "--accumulate 0": "choose 1 or more micro-batches",
    "--accumulate 3": "it must divide --data.batch 8",
    "--label-smoothing nan": "choose 0 <= s < 1",
    "--loss-chunk 5": "it must divide --data.length 32",
    "--max-skipped 0": "choose 1 or more steps",
    "--optim.lr nan": "choose a learning rate between 0 and 100",
    "--optim.lr inf": "choose a learning rate between 0 and 100",
    "--optim.lr -0.1": "choose a learning rate between 0 and 100",
    "--optim.warmup -1": "choose 0 or more steps",
    "--optim.final 1.5": "choose a share between 0 and 1",
    "--optim.b1 1.0": "choose 0 <= b1 < 1",
    "--optim.b2 nan": "choose 0 <= b2 < 1",
    "--optim.eps 0.0": "choose 0 < eps <= 1",
    "--optim.weight-decay -1.0": "choose 0 to 10",
    "--optim.clip inf": r"choose 0 \(off\) or a norm",
    "--data.valid-fraction nan": "choose a share between 0 and 0.9",
    "--data.batch 0": "choose 1 to 16,777,216 rows",
    "--data.batch 99999999": "choose 1 to 16,777,216 rows",
    "--data.length 0": "choose 1 to 1,048,576 tokens",
    "--data.length 2000000": "choose 1 to 1,048,576 tokens",
    "--data.length 33": "the model has 32 positions; choose at most 32, or a larger --model.context",
    "--tokenizer.vocab 256": r"choose 257 \(all bytes and end-of-text\) to 1,048,576",
    "--model.vocab 9999999": "choose 1 to 2,097,152",
    "--model.layers -1": "choose 1 to 512",
    "--model.layers 100000": "choose 1 to 512",
    "--model.width 0": "choose 1 to 65,536",
    "--model.dropout nan": "choose a share of at least 0 and less than 1",
    "--model.attention-dropout 1.0": "choose a share of at least 0 and less than 1",
    "--model.eps nan": "choose 0 < eps <= 1",
    "--model.compute.unroll 0": "choose 1 or more layers",
    "--model.window 8": "no layer has a window; add one to --model.pattern or choose 0",
    "--checkpoint.every 0": "choose 1 or more steps",
    "--checkpoint.keep 0": "keep at least 1",
    "--log.validate-rows 0": "choose 1 or more rows",
    "--mesh.fsdp 0": "choose 1 or more devices",
    "--mesh.sequence 2": "sequence parallelism is not built; choose 1",
    "--devices -1": r"choose 0 \(the real ones\) or up to 4,096 to simulate",
    "--processes 0": "choose 1 to 4,096",
    "--process 1": "choose one below --processes 1",
    "--profile -1": "choose 0 or more steps",
}
"""Option and value -> the fix. The line names both."""

FILES = {
    "empty.txt": (b"", "empty.txt: holds no text"),
    "blank.jsonl": (b"\n \n", "blank.jsonl: holds no text"),
    "binary.txt": (b"one\ntwo\0three", r"binary.txt:2: binary content \(a NUL at byte 7\); data files are UTF-8 text"),
    "latin.txt": (b"one\ncaf\xe9", r"latin.txt:2: not UTF-8 \(byte 7\); convert the file to UTF-8"),
    "cut.jsonl": (b'{"text": "a"}\n{"text": "b', "cut.jsonl:2: invalid JSON at column 10 .*; write one whole object a line"),
    "field.jsonl": (b'{"body": "a"}', 'field.jsonl:1: no field "text"; it has "body": choose one with --data.field'),
    "number.jsonl": (b'{"text": 3}', 'number.jsonl:1: field "text" holds a number, not a string'),
    "words.csv": (b"a,b", r"words.csv: only .txt \(one document\), .jsonl \(a document a line\), both also as .gz.* can be read"),
    "short.txt": (b"short\n", "--data.valid-fraction 0.1: 6 bytes of text are too few .*; give --data.paths more text"),
    "little.txt": (
        b"call me\n\nIshmael",
        r"--data.length 32: the training text has \d+ tokens, fewer than one row; choose at most",
    ),
}
"""Content of a data file, and what is said of it."""

COMBINED = {
    "--data.paths nowhere.txt": "nowhere.txt: no such file",
    "--data.paths folder.txt": "folder.txt: no files in it; put some there: .txt",
    "--data.paths book.txt --data.weights 1 2": "--data.weights",
    "--init nowhere": "nowhere: no such folder; name a run",
    "--objective text_to_text": "--objective text_to_text: a gpt is trained by causal; choose the recipe of another family",
    "--log.samples -1": r"--log.samples -1: choose 0 \(none\) to 1,000",
    "--data.paths": "--data.paths: nothing is named; name something, or leave the option out",
    "--data.valid_paths": "--data.valid-paths: nothing is named; name something, or leave the option out",
    "--data.valid-paths book.txt": "--data.valid-paths .*book.txt: it is also in --data.paths; hold out text that is not",
    "--tokenizer.path folder.txt": "folder.txt: holds no tokenizer.json and no vocab.json, vocab.txt or spiece.model; put",
    "--tokenizer.path runs/done/tokenizer --model.vocab 299": "--model.vocab 299: the tokenizer has 300 entries.*; choose 300 or",
    "--model.pattern full window": "--model.window 0: the pattern has window layers; choose 1 to 32 tokens",
    "--model.pattern window --model.window 33": "--model.window 33: the pattern has window layers; choose 1 to 32 tokens",
    "--model.pattern full full full": "--model.pattern full full full: its length, 3, must divide --model.layers 2",
    "--mesh.data 3": "--mesh data=3 .*: does not multiply to the 8 devices; valid: data=8,fsdp=1,tensor=1; data=4",
    "--mesh.tensor 8": "--mesh.tensor 8: it does not divide the 4 heads",
    "--data.batch 12": "--data.batch 12: 12 rows .* do not divide over data x fsdp = 8 devices; choose a multiple of 8",
    "--accumulate 2": "--data.batch 8: 4 rows .* choose a multiple of 16",
    "--mesh.fsdp 8 --model.width 36": "--mesh.fsdp 8: it does not divide embed/positions/embedding",
    "--engine pmap --mesh.fsdp 2": "--engine pmap: pmap is data parallel only; choose --mesh.fsdp 1",
    "--name a/b": "--name 'a/b': choose up to 100 letters, digits",
    "--name ..": r"--name '\.\.': choose up to 100 letters, digits",
    "--name away": "--name away: runs/away is a link out of runs; choose another name",
    "--out book.txt": "book.txt/other cannot be written .*; choose another --out",
    "--processes 2 --coordinator here": "--coordinator here: write HOST:PORT, for example",
    "--coordinator 127.0.0.1:4242": "--processes 1: --coordinator needs the number of processes, 2 or more",
    "--model.compute.attention cudnn": "attention 'cudnn' cannot do this: it runs on gpu, and this is cpu; these can: ref",
    "--name done --steps 3": "runs/done holds another run: steps: 2 before, 3 now; choose another --name, or these values",
    "--name done --model.layers 1": "runs/done holds another run: model.layers: 2 before, 1 now",
}
"""Options of a run named `other` -> the whole line."""

EVALUATIONS = {
    "nowhere": "nowhere is no run: config.json cannot be read",
    "folder.txt": "folder.txt is no run: config.json cannot be read",
    "broken": "broken/config.json is not valid JSON",
    "unsaved": "unsaved/checkpoints: no checkpoint yet; train the run first",
    "runs/done --step 1": ".*/runs/done/checkpoints/00000001: COMMIT.json is missing; steps that can be read: 2",
    "runs/done --stride 33": "--stride 33: choose 1 to 32 tokens, or 0 for half a row",
    "runs/done --batch 0": "--batch 0: choose 1 or more rows",
    "runs/done --mesh.data 3": "--mesh data=3 .*: does not multiply to the 8 devices",
    "runs/done --mesh.tensor 8": "--mesh.tensor 8: it does not divide the 4 heads",
}

TASKS = {
    "--task bilmp --files good.jsonl": "--task bilmp: .*blimp",
    "--task blimp": "--files",
    "--task blimp --files nowhere": "--files nowhere: no such file",
    "--task lambada --files number.jsonl": "number.jsonl:1: ",
    "--files book.txt": "--files book.txt: it needs a --task",
}

GENERATIONS = {
    "nowhere --prompt a": "nowhere: no such folder; name a run, a folder of published weights, or hub:ID",
    "runs/done": "--prompt is not given: give one of --prompt, --prompts-file and --examples",
    "runs/done --prompt a --prompts-file book.txt": "--prompt and others: give one of",
    "runs/done --prompt a --limit 0": "--limit 0: choose 1 or more new tokens",
    "runs/done --prompt a --limit 32": "prompt 1 of 1: its 1 tokens and --limit 32 are more than the model's 32 positions",
    "runs/done --prompt a --top-p 0": "--top-p 0.0: choose more than 0 .which would leave no token",
    "runs/done --prompt a --min-p 1.1": "--min-p 1.1: choose 0 .off. up to 1 .more would leave no token",
    "runs/done --prompt a --temperature nan": "--temperature nan: choose 0 for the likeliest token",
    "runs/done --prompt a --step 1": ".*COMMIT.json is missing; steps that can be read: 2",
    "runs/done --prompts-file empty.txt": "empty.txt: ",
    "runs/done --examples cut.jsonl --template {a}{b} --query a=1": "cut.jsonl:",
    "runs/done --prompt a --mesh.tensor 8": "--mesh.tensor 8: it does not divide layers/attention/out/kernel",
}

CASES = {
    **{line: (words(line), said) for line, said in COMMAND_LINES.items()},
    **{line: (("train", "gpt-nano", *TINY, *words(line)), re.escape(line) + f": {said}") for line, said in NUMBERS.items()},
    **{file: (("train", "gpt-nano", *TINY, "--data.paths", file), said) for file, (_, said) in FILES.items()},
    **{line: (("train", "gpt-nano", *TINY, "--name", "other", *words(line)), said) for line, said in COMBINED.items()},
    **{f"eval {line}": (("eval", *words(line)), said) for line, said in EVALUATIONS.items()},
    **{f"eval runs/done {line}": (("eval", "runs/done", *words(line)), said) for line, said in TASKS.items()},
    **{f"generate {line}": (("generate", *words(line)), said) for line, said in GENERATIONS.items()},
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with good and bad files and a finished run, `runs/done`."""
    folder = tmp_path_factory.mktemp("place")
    for name, (content, _) in FILES.items():
        (folder / name).write_bytes(content)
    (folder / "folder.txt").mkdir()
    (folder / "broken").mkdir()
    (folder / "broken" / "config.json").write_text('{"family": "gpt",')
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        finished(folder)
        (folder / "runs" / "away").symlink_to(folder / "folder.txt")
        shutil.copytree("runs/done", "unsaved", ignore=shutil.ignore_patterns("checkpoints"))
        yield folder


@pytest.mark.parametrize(
    ("argv", "said"),
    [pytest.param(*case, id=name, marks=[pytest.mark.planted] if name == "eval broken" else []) for name, case in CASES.items()],
)
def test_bad_input_is_one_line_and_touches_nothing(
    argv: tuple[str, ...], said: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = snapshot(place)
    ended = call(capsys, *argv)
    assert snapshot(place) == before
    assert_refused(ended, said)


PROCESSES = [
    "trian",
    "train gpt-nona",
    "models gpt2-lrage",
    "models gpt-4",
    "train gpt-nano --stpes 3",
    "eval",
    "--optim.lr nan",
    "--data.length 33",
    "--data.paths",
    "cut.jsonl",
    "--name a/b",
    "eval unsaved",
]


@pytest.mark.parametrize("name", PROCESSES)
def test_a_process_says_the_same(name: str, zoo: Callable[..., Ended], place: Path) -> None:
    argv, said = CASES[name]
    before = snapshot(place)
    ended = zoo(*argv, cwd=place)
    assert snapshot(place) == before
    assert_refused(ended, said)


def test_a_coordinator_whose_port_is_taken(zoo: Callable[..., Ended], place: Path) -> None:
    before = snapshot(place)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        ended = zoo(*CASES["--name a/b"][0], "--processes", "2", "--coordinator", address, cwd=place)
    assert snapshot(place) == before
    assert_refused(ended, f"--coordinator {address}: Address already in use.*; choose a free port on an address of this machine")


def test_no_command_at_all_shows_the_usage_as_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    ended = call(capsys)
    assert (ended.code, ended.stdout, ended.stderr) == (2, "", cli.USAGE)


def test_what_is_not_bad_input_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "models", lambda args: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        cli.main(["models"])
