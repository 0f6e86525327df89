"""Wrong input is refused in one line that names the key, the value and a fix, and no file is touched."""

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.commands import TINY, assert_refused, call, finished, in_folder, snapshot, words
from tests.support.processes import Ended
from zoo import cli
from zoo.commands import models

COMMAND_LINES = {
    "trian": "there is no command 'trian'; choose models, train, eval, .*doctor",
    "bench": "zoo bench : choose from attention, step, growth, compare",
    "train gpt-nano --stpes 3": r"Unrecognized options: --stpes, 3 .*--steps INT",
    "eval": "Missing from zoo eval: RUN Folder of a run",
    "data": r"zoo data : write zoo data inspect \[RECIPE\|RUN\]",
    "data inspect gpt-nona": "no recipe is called 'gpt-nona'",
    "plan": "zoo plan: say what to plan",
    "plan gpt2 --target h100": "--target h100: say how many, 1 to 8 or a multiple of it .* for example h100:64$",
    "plan gpt2 --target v5e:8by8": "--target v5e:8by8: say the slice of a v5e, one of v5e:1x1",
    "plan gpt2 --target cpu:0": "--target cpu:0: say how many devices to simulate",
    "plan gpt2 --target cpu:8 --devices 8": "--devices 8: --target says them: cpu:8$",
    "plan gpt2 --target cpu:8 --search --page x.html": "--page x.html: a search has none",
    "plan gpt2 --target cpu:8 --seq 2048": "--data.length 2,?048: the model has 1024 positions",
    "train gpt-nano --steps many": "--steps: invalid literal",
    "train gpt-nano --optim.lr": "Missing value for argument '--optim.lr'",
    "train gpt-nano --precision float16": "invalid choice 'float16' for argument '--precision'.*'bfloat16'",
    "eval unsaved": "unsaved/checkpoints: no checkpoint yet; train the run first",
    "eval runs/done --stride 33": "--stride 33: choose 1 to 32 tokens, or 0 for half a row",
    "eval runs/done --batch 0": "--batch 0: choose 1 or more rows",
    "eval runs/done --task blimp": "--files",
    "eval runs/done --files book.txt": "--files book.txt: it needs a --task",
    "generate runs/done --prompt a --limit 32": "prompt 1 of 1: its 1 tokens and --limit 32 are more than the model's 32",
    "generate runs/done --prompts-file empty.txt": "empty.txt: ",
    "generate runs/done --examples cut.jsonl --template {a}{b} --query a=1": "cut.jsonl:",
    "generate runs/done --prompt a --mesh.tensor 8": "--mesh.tensor 8: it does not divide layers/attention/out/kernel",
}
"""A mistyped or unreadable option gets tyro's box."""

NUMBERS = (
    """
--steps 0|--steps 99999999999999999999|--seed -1|--seed 4294967296|--accumulate 0|--accumulate 3|--label-smoothing nan
--loss-chunk 5|--max-skipped 0|--optim.lr nan|--optim.lr inf|--optim.lr -0.1|--optim.warmup -1|--optim.final 1.5
--optim.b1 1.0|--optim.b2 nan|--optim.eps 0.0|--optim.weight-decay -1.0|--optim.clip inf|--data.valid-fraction nan
--data.batch 0|--data.batch 99999999|--data.length 0|--data.length 2000000|--data.length 33|--tokenizer.vocab 256
--model.vocab 9999999|--model.layers -1|--model.width 0|--model.dropout nan|--model.eps nan|--model.compute.unroll 0
--model.window 8|--checkpoint.every 0|--checkpoint.keep 0|--log.validate-rows 0|--log.samples -1|--mesh.fsdp 0
--mesh.sequence 2|--devices -1|--processes 0|--process 1|--profile -1
""".strip()
    .replace("\n", "|")
    .split("|")
)

COMBINED = {
    "--data.paths empty.txt": "empty.txt: holds no text",
    "--data.paths cut.jsonl": "cut.jsonl:2: invalid JSON at column 10 .*; write one whole object a line",
    "--objective text_to_text": "--objective text_to_text: a gpt is trained by causal; choose the recipe of another family",
    "--tokenizer.path runs/done/tokenizer --model.vocab 299": "--model.vocab 299: the tokenizer has 300 entries.*; choose 300 or",
    "--mesh.data 3": "--mesh data=3 .*: does not multiply to the 8 devices; valid: data=8,fsdp=1,tensor=1; data=4",
    "--name a/b": "--name 'a/b': choose up to 100 letters, digits",
    "--name done --steps 3 --model.layers 1": "runs/done holds another run: .*steps: 2 before, 3 now.*; choose another --name",
}
"""Options of a run named `other` -> the whole line."""

RUN = ("train", "gpt-nano", *TINY)
FIX = "(choose|it must divide|keep at least)"
TABLES = {
    "command lines": {line: (words(line), message) for line, message in COMMAND_LINES.items()},
    "numbers": {line: ((*RUN, *words(line)), f"{re.escape(line)}: .*{FIX}") for line in NUMBERS},
    "combined": {line: ((*RUN, "--name", "other", *words(line)), message) for line, message in COMBINED.items()},
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("place")
    finished(folder)
    (folder / "empty.txt").touch()
    (folder / "cut.jsonl").write_text('{"text": "a"}\n{"text": "b')
    shutil.copytree(folder / "runs" / "done", folder / "unsaved", ignore=shutil.ignore_patterns("checkpoints"))
    with in_folder(folder):
        yield folder


@pytest.mark.parametrize("table", TABLES)
def test_wrong_input_is_refused_in_one_line(table: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert_refused(capsys, place, TABLES[table])


@pytest.mark.planted
def test_a_damaged_run_is_refused(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "broken").mkdir()
    (place / "broken" / "config.json").write_text('{"family": "gpt",')
    assert_refused(capsys, place, {"broken": (("eval", "broken"), "broken/config.json is not valid JSON")})


@pytest.mark.parametrize("line", ["trian", "train gpt-nano --stpes 3"])
def test_a_process_refuses_it_too(line: str, zoo: Callable[..., Ended], place: Path) -> None:
    before = snapshot(place)
    ended = zoo(*words(line), cwd=place)
    assert snapshot(place) == before
    assert (ended.code, ended.stdout) == (2, "")
    assert re.search(COMMAND_LINES[line], " ".join(ended.stderr.replace("│", " ").split())) and "Traceback" not in ended.stderr


def test_no_command_at_all_shows_the_usage_as_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    ended = call(capsys)
    assert (ended.code, ended.stdout, ended.stderr) == (2, "", cli.USAGE)


def test_what_is_not_bad_input_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "models", lambda args: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        cli.main(["models"])
