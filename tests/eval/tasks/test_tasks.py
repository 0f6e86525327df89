"""Tasks on local files: what is read, what is measured, and what becomes of it."""

import dataclasses
import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import pytest

from eval import task_data_files
from eval.commands import run_task
from eval.inference.likelihood import encode, likelihoods
from eval.metrics.standard_error import mean_and_error
from eval.tasks import blimp, lambada, perplexity, task_table
from eval.tasks.task import Settings, Task
from tests.support.text_tasks import TEXT, pair, quiet, scored, stored_run, subject, tokenizer, write
from train.config import run_config
from train.data.corpus import Document
from train.data.text_files import LONGEST_LINE
from train.run.item_outcomes import read_outcomes
from train.run.run_dir import RunDir
from train.tokenizers.tokenizer import Tokenizer
from zoo.errors import BadInput


@pytest.mark.planted(2)
def test_a_task_has_its_options_and_functions() -> None:
    assert [*task_table.TASKS] == sorted(task_table.TASKS)
    for name in task_table.TASKS:
        task = task_of(name)
        assert isinstance(task, Task) and task_table._is_task(task)
        assert {*task.per_token} <= {*task.metrics} and len({*task.metrics}) == len(task.metrics)
    assert not task_table._is_task(dataclasses.replace(blimp.TASK, options=("limits",)))
    assert not task_table._is_task(blimp)


def task_of(name: str) -> Task[Any]:
    return task_table.find_task("harness:x" if name == "harness" else name)[0]


def test_a_task_is_found_by_its_name() -> None:
    assert task_table.find_task("blimp") == (blimp.TASK, "")
    assert task_table.find_task("harness:a:b")[1] == "a:b"
    for name, said in {
        "blimp:x": "blimp takes nothing after a colon",
        "harness": "needs an argument, as --task harness:NAME",
    }.items():
        with pytest.raises(BadInput, match=f"--task {name}: .*{said}"):
            task_table.find_task(name)


GOOD = '{"sentence_good": "a", "sentence_bad": "b"}'
BAD_FILES = [
    ("blimp", b"[1]", r"\.jsonl:1: an array, not an object; write lines like {\"sentence_good\": "),
    ("blimp", f"{GOOD}\n\n{{".encode(), r"\.jsonl:3: invalid JSON at column 2 \("),
    ("blimp", f'{GOOD}\n{{"sentence_good": "a"}}'.encode(), r':2: no field "sentence_bad"; it has "sentence_good"'),
    ("blimp", b'{"sentence_good": "a", "sentence_bad": " "}', r':1: field "sentence_bad" has no text'),
    ("blimp", b'{"sentence_good": "a", "sentence_bad": "b", "UID": 3}', r':1: field "UID" has no text'),
    ("blimp", b'{"sentence_good": "a", "sentence_bad": "\\ud800"}', r"unpaired surrogate, half of a character, at character 0"),
    ("blimp", f"{GOOD}\n".encode() + b"\xff", rf"\.jsonl:2: not UTF-8 \(byte {len(GOOD) + 1}\)"),
    ("blimp", b"\n \n", r"\.jsonl: holds no text"),
    ("blimp", b"[" * 200_000, r"\.jsonl:1: unreadable JSON"),
    ("lambada", b'{"text": "a b"}\n{"text": " word\\n"}', r"\.jsonl:2: a passage of one word"),
    ("blimp", f"{GOOD}\n".encode() + b"a" * (LONGEST_LINE + 1), r"\.jsonl:2: longer than 64 MiB"),
    ("perplexity", b"\n", r"holds no text"),
]


def test_a_bad_line_is_refused_by_its_number(tmp_path: Path) -> None:
    file = tmp_path / "bad.jsonl"
    for task, content, message in BAD_FILES:
        file.write_bytes(content)
        with pytest.raises(BadInput, match=message) as refused:
            task_table.find_task(task)[0].read([str(file)], Settings())
        assert "\n" not in str(refused.value)


def test_files_are_those_of_a_folder_or_those_that_are_named(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl", "._a.jsonl", "read.me"):
        (tmp_path / name).write_text(GOOD)
    (tmp_path / "empty").mkdir()
    (linked := tmp_path / "linked").mkdir()
    (linked / "a.jsonl").symlink_to(tmp_path / "a.jsonl")
    both = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    assert task_data_files.find_data_files([str(tmp_path)], (".jsonl",)) == both
    assert task_data_files.find_data_files([str(both[1]), str(both[0])], (".jsonl",)) == both[::-1]
    for names, said in {
        ("gone.jsonl",): "gone.jsonl: no such file",
        (str(tmp_path / "read.me"),): r"only \.jsonl files are read here",
        (str(tmp_path / "empty"),): r"the folder has no \.jsonl file",
        (str(both[0]), str(tmp_path)): "named twice",
        (str(linked),): "linked/a.jsonl: a link out of .*linked; name that file itself in --files",
    }.items():
        with pytest.raises(BadInput, match=said):
            task_data_files.find_data_files(names, (".jsonl",))


def test_minimal_pairs_compare_whole_sentences_and_ties_count_half(tmp_path: Path) -> None:
    likely, unlikely = short_and_long()
    first = write(tmp_path / "first.jsonl", pair(likely, unlikely), pair(unlikely, likely), pair(likely, unlikely))
    fields = {"UID": "second", "linguistics_term": "agreement"}
    second = write(tmp_path / "x.jsonl", pair(likely, unlikely, **fields), pair(likely, likely, **fields))
    pairs = blimp.TASK.read([first, second], Settings())
    assert [each.where for each in pairs][:4] == [f"{first}:1", f"{first}:2", f"{first}:3", f"{second}:1"]
    result = blimp.TASK.score(subject(8), pairs, Settings(), quiet)
    assert result.details["paradigms"]["first"]["accuracy"] == pytest.approx(2 / 3)
    assert result.details["phenomena"]["agreement"] == {"accuracy": 0.75, "stderr": 0.25, "pairs": 2}
    assert result.metrics["accuracy"] == pytest.approx((2 / 3 + 0.75) / 2)
    assert result.metrics["ties"] == 1
    assert result.examples == 5


def short_and_long() -> tuple[str, str]:
    """A sentence and one that is less likely as a whole but not token by token."""
    sentences = ["The whale.", "The men.", "The men see.", "The old whale.", "The ship of the men.", "whale", "ship"]
    found = list(zip(sentences, scored(encode(tokenizer(), [("", sentence) for sentence in sentences])), strict=True))
    return next((a, b) for a, x in found for b, y in found if x.nats < y.nats and x.nats / x.tokens > y.nats / y.tokens)


def test_paradigms_weigh_the_same_and_so_do_phenomena() -> None:
    outcomes = {("p", "a"): [1.0, 0.0, 1.0, 0.0], ("p", "b"): [1.0, 1.0], ("q", "c"): [0.0, 0.5]}
    result = blimp.blimp_summary(outcomes)
    assert result.metrics["accuracy"] == pytest.approx((0.5 + 1 + 0.25) / 3)
    assert result.metrics["phenomenon_accuracy"] == pytest.approx((0.75 + 0.25) / 2)
    a, c = math.sqrt(4 * 0.25 / 3 / 4), 0.25
    assert result.details["paradigms"]["a"]["stderr"] == pytest.approx(a)
    assert result.metrics["accuracy_stderr"] == pytest.approx(math.sqrt(a**2 + c**2) / 3)
    assert result.details["phenomena"]["p"]["stderr"] == pytest.approx(a / 2)
    assert mean_and_error([1.0]) == (1.0, None)


def test_the_last_word_is_split_off_with_its_space(tmp_path: Path) -> None:
    lines = write(tmp_path / "a.txt", "The old whale sleeps ", "", "The  men\tsee")
    objects = write(tmp_path / "b.jsonl", {"passage": "The\nwhale."})
    found = lambada.TASK.read([lines], Settings()) + lambada.TASK.read([objects], Settings(field="passage"))
    divided = [("The old whale", " sleeps"), ("The  men", "\tsee"), ("The", "\nwhale.")]
    assert [(each.context, each.word) for each in found] == divided
    assert [each.where for each in found] == [f"{lines}:1", f"{lines}:3", f"{objects}:1"]


def test_the_last_word_counts_if_greedy_over_all_its_tokens(tmp_path: Path) -> None:
    """With a model to which " whale" is the likeliest token everywhere."""
    net, params = subject().model, subject().params
    (whale,) = tokenizer().encode(" whale").tolist()
    bias = 9 * params["embed"]["tokens"]["embedding"][whale]
    hunter = dataclasses.replace(subject(), params={**params, "norm": {**params["norm"], "bias": bias}})
    lines = ["The old whale", "The men", "The men whaled", "The whale. " * 20 + "The whale", "The ship whale"]
    passages = lambada.TASK.read([write(tmp_path / "a.txt", *lines)], Settings())
    result = lambada.TASK.score(hunter, passages, Settings(), quiet)
    pairs = encode(tokenizer(), [(passage.context, passage.word) for passage in passages])
    pairs[3] = (pairs[3][0][-net.config.context :], pairs[3][1])
    found = likelihoods(hunter, pairs, batch=16, dtype=jnp.float32)
    assert found[2].tokens > 1
    assert result.metrics == {
        "accuracy": pytest.approx(3 / 5),
        "accuracy_stderr": pytest.approx(math.sqrt(0.6 * 0.4 / 4)),
        "perplexity": pytest.approx(math.exp(sum(each.nats for each in found) / 5), rel=1e-5),
        "cut": 1,
    }
    assert (result.examples, result.details["tokens"]) == (5, 4 + found[2].tokens)


def test_perplexity_of_each_token_is_conditioned_on_its_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    first, second = TEXT[:50], "Queequeg sees."
    file = write(tmp_path / "a.jsonl", {"text": first}, {"text": second})
    settings = Settings(length=8, stride=3, words=True)
    result = perplexity.PERPLEXITY.score(subject(8), perplexity.PERPLEXITY.read([file], settings), settings, quiet)
    end = tokenizer().end_of_text
    stream = [end, *tokenizer().encode(first).tolist(), end, *tokenizer().encode(second).tolist(), end]
    begins = [3 * max(0, math.ceil((place - 8) / 3)) for place in range(1, len(stream))]
    pairs = [(stream[begin:place], [stream[place]]) for place, begin in enumerate(begins, 1)]
    total = sum(each.nats for each in scored(pairs))
    size, words = len((first + second).encode()), len(first.split()) + len(second.split())
    assert result.metrics["tokens"] == len(stream) - 1 and result.metrics["bytes"] == size
    assert result.metrics["loss"] == pytest.approx(total / (len(stream) - 1), rel=1e-5)
    assert result.metrics["bits_per_byte"] == pytest.approx(total / math.log(2) / size, rel=1e-5)
    assert result.metrics["word_perplexity"] == pytest.approx(math.exp(total / words), rel=1e-4)
    assert result.metrics["words"] == words
    assert result.examples == 2 and result.details == {"length": 8, "stride": 3}
    refused = {"--length 33: choose at most": Settings(length=33), "--stride 9: choose 1 to 8": Settings(length=8, stride=9)}
    for said, wrong in refused.items():
        with pytest.raises(BadInput, match=said):
            perplexity.PERPLEXITY.score(subject(), perplexity.PERPLEXITY.read([file], wrong), wrong, quiet)


def test_words_split_over_chunks_count_once() -> None:
    pieces = [("the wh", False), ("ale", False), (" and ", False), ("men", True), ("of", True), ("a", False), ("", True)]
    assert perplexity.count_words([Document("x", text, last) for text, last in pieces]) == 6


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder with one checkpoint, of the parameters alone."""
    return stored_run(tmp_path_factory.mktemp("runs") / "tiny")


SCOPE = ("fingerprint", "settings", "tokenizer", "per_token")
"""Keys of a result about what it may be compared with, and how it is repeated."""


def evaluate(where: Path, task: str, *files: str, as_json: bool = False, **options: Any) -> int:
    others: dict[str, Any] = dict(step=None, precision="auto", mesh=run_config.Mesh(), as_json=as_json)
    return run_task.run_task(str(where), task=task, files=files, settings=Settings(**options), **others)


@pytest.mark.planted
def test_another_tokenizer_than_it_was_trained_with_is_refused(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    Tokenizer.train(["another text altogether"] * 4, 300).save(RunDir(tmp_path / "run").tokenizer)
    file = write(tmp_path / "one.jsonl", pair("The whale is seen.", "The whale see."))
    with pytest.raises(BadInput, match=r"not the tokenizer that .* was trained with"):
        evaluate(tmp_path / "run", "blimp", file)


def test_a_result_is_printed_kept_and_shown(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(tmp_path / "one.jsonl", *[pair("The whale is seen.", "The whale see.")] * 2)
    assert evaluate(run, "blimp", file) == 0
    shown = capsys.readouterr()
    assert re.search(r"^accuracy +(0|1)\.0000$", shown.out, re.MULTILINE) and shown.err == "scoring blimp ...\n"
    passage = write(tmp_path / "two.txt", "The whale is seen", "The men see")
    assert evaluate(run, "lambada", passage, as_json=True) == 0
    said = json.loads(capsys.readouterr().out)
    kept = json.loads((run / "evaluations.json").read_text())
    assert list(kept) == ["blimp", "lambada"]
    assert {*said["metrics"]} == {*lambada.TASK.metrics}
    assert kept["lambada"] == {name: said[name] for name in ("step", "metrics", "examples", "details", *SCOPE)}
    assert (said["task"], said["model"], said["step"], said["details"]["files"]) == ("lambada", "tiny", 7, [passage])
    assert "blimp" in (run / "report.html").read_text()
    pairs, words = (read_outcomes(RunDir(run), task) for task in ("blimp", "lambada"))
    assert pairs.id == ("one.jsonl:1", "one.jsonl:2") and pairs.right.mean() == kept["blimp"]["metrics"]["accuracy"]
    assert math.exp(words.nats.mean()) == pytest.approx(said["metrics"]["perplexity"])
    assert evaluate(run, "blimp", file, batch=3) == 0
    assert json.loads((run / "evaluations.json").read_text()) == kept


def test_a_result_does_not_remove_that_of_an_evaluation_that_ended_meanwhile(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(tmp_path / "one.jsonl", pair("The whale is seen.", "The whale see."))
    passage = write(tmp_path / "two.txt", "The whale is seen")
    (run / "evaluations.json").unlink(missing_ok=True)
    load = run_task.load_model

    def load_after_another(*arguments: Any) -> Any:
        monkeypatch.setattr(run_task, "load_model", load)
        assert evaluate(run, "lambada", passage) == 0
        return load(*arguments)

    monkeypatch.setattr(run_task, "load_model", load_after_another)
    assert evaluate(run, "blimp", file) == 0
    assert set(json.loads((run / "evaluations.json").read_text())) == {"blimp", "lambada"}


@pytest.mark.planted(3)
def test_wrong_options_are_refused_before_the_model_is_read(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unread(*_: Any, **__: Any) -> None:
        pytest.fail("the model was read")

    monkeypatch.setattr(run_task, "load_model", unread)
    file = write(tmp_path / "a.jsonl", GOOD)
    before = sorted(path.name for path in run.iterdir())
    for argv, options, said in (
        (("blump", file), {}, "no task has this name"),
        (("blimp",), {}, "--files: name the files that --task blimp reads"),
        (("blimp", file), {"words": True}, "--words True: has no effect on --task blimp"),
        (("lambada", file), {"stride": 3}, "--stride 3: has no effect on --task lambada"),
        (("blimp", file), {"batch": 0}, "--batch 0"),
        (("lambada", file), {}, ":1: no field"),
    ):
        with pytest.raises(BadInput, match=said):
            evaluate(run, *argv, **options)
    broken = tmp_path / "run"
    (broken / "checkpoints").mkdir(parents=True)
    for content in ("[]", "{", "\udcff"):
        (broken / "evaluations.json").write_text(content, errors="surrogateescape")
        with pytest.raises(BadInput, match=r"evaluations\.json.*; create it again, or remove it$"):
            evaluate(broken, "blimp", file)
    assert sorted(path.name for path in run.iterdir()) == before


def test_a_limited_score_is_marked_and_stored_separately(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, other = pair("The whale is seen.", "The whale see."), pair("The men see.", "The men sees.", UID="x")
    file = write(tmp_path / "one.jsonl", *[one] * 3, other)
    for limit, count in ((0, 4), (2, 3)):
        assert evaluate(run, "blimp", file, limit=limit) == 0
        shown = capsys.readouterr().out
        assert re.search(rf"^examples +{count}", shown, re.MULTILINE) and ("not comparable" in shown) == bool(limit)
    kept = json.loads((run / "evaluations.json").read_text())
    assert (kept["blimp"]["examples"], kept["blimp (first 2)"]["examples"], kept["blimp (first 2)"]["limit"]) == (4, 3, 2)
    assert "limit" not in kept["blimp"] and "blimp (first 2)" in (run / "report.html").read_text()
    with pytest.raises(BadInput, match="--limit -1: choose 0"):
        evaluate(run, "blimp", file, limit=-1)


def test_every_task_reads_the_first_examples_alone(tmp_path: Path) -> None:
    passages = write(tmp_path / "a.jsonl", *[{"text": f"the whale {number}"} for number in range(5)])
    read: dict[str, Any] = {}
    for name in task_table.TASKS:
        task = task_of(name)
        assert "limit" in task.options
        if name in ("lambada", "perplexity", "masked", "pseudo_perplexity", "permutation_likelihood"):
            read[name] = task.read([passages], Settings(limit=2)), task.read([passages], Settings())
    for few, every in read.values():
        assert [each.text if isinstance(each, Document) else f"the whale{each.word}" for each in few] == [
            "the whale 0",
            "the whale 1",
        ]
        assert len(list(few)) == 2 < len(list(every)) == 5
    table = write(tmp_path / "a.tsv", "source\ttarget", "a\tb", "c\td")
    pairs = task_of("text_to_text")
    for names in ([table], [passages.replace(".jsonl", ".en")] * 2):
        (tmp_path / "a.en").write_text("a\nc\n")
        assert len(pairs.read(names, Settings(limit=1))) == 1 < len(pairs.read(names, Settings())) == 2
