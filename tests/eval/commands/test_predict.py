"""`zoo predict`: what is predicted for inputs without labels, from which files, and what is refused."""

import dataclasses
import functools
import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eval.commands.predict import predict
from eval.metrics import squad as spans
from eval.prediction import prediction_records, predictor, reward_predictor
from eval.prediction.predictor import Predictor
from eval.tasks import labelled as task
from eval.tasks.task import Settings
from tests.support import encoders, finetuned, published
from tests.support import preferences as reward_models
from tests.support.commands import assert_refused, call
from tests.support.finetuned import IOB, LABELS, examples, run
from tests.support.labelled_files import CONTEXT, put, squad
from tests.support.small import random_params
from train.config.option_groups import Labelled
from train.data.example_types import Tagged, Text
from train.data.unlabelled_reader import UnlabelledExample, examples_of_texts
from train.engine.reward_scores import reward_scores
from train.rows.example_rows import ExampleRow, TemplateIds
from train.tokenizers.tokenizer import Tokenizer
from train.weights.load import Loaded
from zoo.batch import IGNORED
from zoo.errors import BadInput
from zoo.models import model

Predictions = list[dict[str, Any]]
OPTIONS = {"span": Labelled(stride=finetuned.STRIDE)}


def loaded(goal: str, shape: tuple[int, int, int] = (1, 1, 1)) -> Loaded:
    return encoders.loaded("bert", finetuned.TASKS[goal], shape)


def predicted(goal: str, file: Path, **options: Any) -> Predictions:
    """Return the predictions for a file; of a span with no answer where that is likelier."""
    more = {"null_threshold": 0.0} if goal == "span" else {}
    subject = options.pop("subject", None) or loaded(goal)
    return list(predict(subject, files=[str(file)], **{"labelled": OPTIONS.get(goal, Labelled()), **more, **options}))


def assert_close(one: Any, other: Any) -> None:
    """Assert that two predictions are equal up to the rounding of logits: sums of some hundred float32 products of order 1."""
    if isinstance(one, dict | list):
        assert len(one) == len(other)
        for key in one if isinstance(one, dict) else range(len(one)):
            assert_close(one[key], other[key])
    else:
        assert one == (pytest.approx(other, rel=1e-5, abs=1e-5) if isinstance(one, float) else other)


def agreement(case: str, outputs: Predictions, truth: Sequence[Any]) -> dict[str, float]:
    """Return the metrics of predictions, counted one by one, under the names of a score."""
    if case == "span":
        answers = [
            (output["answer"] or "", [text for text, _ in one.answers]) for output, one in zip(outputs, truth, strict=True)
        ]
        scores = {"exact": spans.exact_match, "f1": spans.token_f1}
        return {name: float(np.mean([score(*pair) for pair in answers])) for name, score in scores.items()}
    pairs = {
        "classification": lambda output, one: [output["label"] == one.label],
        "several labels": lambda output, one: [set(output["labels"]) == set(one.label)],
        "tagging": lambda output, one: [tag["tag"] == true for tag, true in zip(output["tags"], one.tags, strict=True)],
        "choice": lambda output, one: [output["choice"] == one.answer],
    }[case]
    share = float(np.mean([hit for output, one in zip(outputs, truth, strict=True) for hit in pairs(output, one)]))
    return {"subset_accuracy" if case == "several labels" else "accuracy": share}


def several_labels() -> Loaded:
    """Return the classifier with a head that predicts any number of labels."""
    single = loaded("classification")
    return dataclasses.replace(single, model=model(dataclasses.replace(single.model.config, multi_label=True)))


@pytest.mark.parametrize("case", [*finetuned.TASKS, "several labels"])
def test_predictions_are_what_the_score_is_of(case: str, tmp_path: Path) -> None:
    several = case == "several labels"
    goal, subject = ("classification", several_labels()) if several else (case, loaded(case))
    file, truth = finetuned.write(tmp_path, goal, several), examples(goal, 27, several=several)
    outputs = predicted(goal, file, subject=subject)
    assert [output["index"] for output in outputs] == list(range(27))
    assert [output.get("id") for output in outputs] == [str(number) if goal == "span" else None for number in range(27)]
    settings = Settings(labelled=OPTIONS.get(goal, Labelled()))
    numbers = task.TASK.score(subject, (str(file),), settings, lambda done, count: None).metrics
    expected = agreement(case, outputs, truth)
    assert {name: numbers[name] for name in expected} == expected
    if goal not in ("classification", "choice"):
        return
    cfg = run(goal, multi_label=several)
    logits = finetuned.logits(cfg, finetuned.batch(cfg, finetuned.rows(cfg, truth)))
    p = 1 / (1 + np.exp(-logits)) if several else np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    values = [output["probabilities"] for output in outputs]
    values = [[output[name] for name in LABELS] for output in values] if goal == "classification" else values
    np.testing.assert_allclose(values, p, rtol=1e-4)
    for output, row in zip(outputs, logits, strict=True):
        assert output.get("label", LABELS[row.argmax()]) == LABELS[row.argmax()]
        assert output.get("labels", []) == list(itertools.compress(LABELS, (row >= 0) & several))
    tie = prediction_records.of_example(Text(origin="", text="", label=()), [], np.zeros((1, 1)), ("a",), multi_label=True)
    assert tie["labels"] == ["a"]


def test_tags_are_of_words_and_entities_of_several() -> None:
    """A word that the row has no token of has no tag and belongs to no entity."""
    words = ("Anna", "Lee", "\u200b", "in", "New", "York", "cut")
    at = {1: 0, 2: 1, 4: 3, 5: 4, 7: 5}
    tags = {0: "B-PER", 1: "I-PER", 3: "O", 4: "B-LOC", 5: "I-LOC"}
    labels, logits = np.full(9, IGNORED, np.int32), np.zeros((1, 9, len(IOB)))
    for position, word in at.items():
        labels[position] = word
        logits[0, position, IOB.index(tags[word])] = 2
    row = ExampleRow((TemplateIds(labels, labels),), labels, np.ones(9, np.float32), 0)
    made = prediction_records.of_example(Tagged(origin="", words=words, tags=()), [row], logits, IOB)
    chance = prediction_records.round_to_float32(np.exp(2) / (np.exp(2) + 4))
    expected = [{"word": word, "tag": tags.get(n), "probability": chance if n in tags else None} for n, word in enumerate(words)]
    assert made["tags"] == expected
    assert made["entities"] == [
        {"type": "PER", "first": 0, "end": 2, "text": "Anna Lee"},
        {"type": "LOC", "first": 4, "end": 6, "text": "New York"},
    ]


def test_an_answer_is_null_only_where_that_is_asked_for(tmp_path: Path) -> None:
    file = finetuned.write(tmp_path, "span")
    contexts = [each.context for each in examples("span", 27)]
    always, never = (predicted("span", file, null_threshold=value) for value in (None, -1e6))
    for each, other, context in zip(always, never, contexts, strict=True):
        assert context[each["start"] : each["end"]] == each["answer"] != ""
        assert (other["answer"], other["start"], other["score"]) == (None, None, None)
        assert other["null_score"] == each["null_score"]
    some = predicted("span", file)
    assert [each["answer"] is None for each in some] == [each["null_score"] > each["score"] for each in always]


@pytest.mark.full
@pytest.mark.parametrize("goal", finetuned.TASKS)
def test_predictions_do_not_depend_on_chunks_batches_or_mesh(goal: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = finetuned.write(tmp_path, goal)
    made = predicted(goal, file)
    assert_close(predicted(goal, file, batch=3), made)
    monkeypatch.setattr(predictor, "CHUNK", 5)
    assert_close(predicted(goal, file), made)
    for shape in ((8, 1, 1), (1, 2, 2)):
        assert_close(predicted(goal, file, subject=loaded(goal, shape), batch=4), made)


@pytest.mark.full
def test_examples_are_read_as_they_are_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []

    def without_end() -> Iterator[UnlabelledExample]:
        while True:
            taken.extend(examples_of_texts("classification", ["the whale"]))
            yield taken[-1]

    monkeypatch.setattr(predictor, "CHUNK", 4)
    subject = loaded("classification")
    made = Predictor.of(subject, run("classification"), batch=2, dtype="float32").predict(without_end())
    assert [each["index"] for each in itertools.islice(made, 9)] == list(range(9))
    assert len(taken) == 12


@pytest.mark.full
def test_a_single_label_means_regression(tmp_path: Path) -> None:
    subject = encoders.regression()
    (each,) = predict(subject, texts=["the whale"])
    cfg = run("classification", labels=("score",), regression=True)
    (of_first, *_) = predict(encoders.loaded("bert", "sequence"), texts=["the whale"])
    assert each.keys() == {"index", "number"} and cfg.model == subject.model.config
    assert of_first["probabilities"].keys() == set(LABELS)


def test_files_and_models_that_differ_in_the_number_of_labels_are_refused(tmp_path: Path) -> None:
    file = finetuned.write(tmp_path, "classification", several=True)
    table = put(tmp_path / "a.tsv", "text\tlabel\nthe whale\tno\n")
    single, several, lists = loaded("classification"), several_labels(), Labelled(multi_label=True)
    for subject, name, settings, message in (
        (single, file, Settings(), ':1: it has "labels", not "label"; write one name'),
        (several, table, Settings(), ':2: it has "label", not "labels"; with --labelled.multi-label, write a list'),
        (single, file, Settings(labelled=lists), "^--labelled.multi-label True: the model gives each text one label"),
        (several, file, Settings(argument="sst2"), "and the model is of several labels per text$"),
    ):
        with pytest.raises(BadInput, match=message):
            task.TASK.score(subject, (str(name),), settings, lambda done, count: None)


WHALE, GIVEN = ["the whale", "old men"], [["the", "men"], ["old", "ship"]]
FORMATS: dict[str, list[tuple[str, Any, dict[str, Any]]]] = {
    "classification": [
        ("a.jsonl", [{"text": text, "label": 7} for text in WHALE], {}),
        ("a.csv", "label,text\n?,the whale\n?,old men\n", {}),
        ("a.tsv", "the whale\nold men\n", {"labelled": Labelled(header=False)}),
        ("a.txt", "the whale\n\nold men\n", {}),
        ("b.txt", "no:x the whale\nyes old men\n", {"line": "labelled"}),
        ("a.parquet", [{"text": text} for text in WHALE], {}),
    ],
    "tagging": [
        ("a.jsonl", [{"tokens": text.split()} for text in WHALE], {}),
        ("a.conll", "the\nwhale\n\nold\nmen\n", {}),
        ("b.conll", "the\tX\nwhale\tY\n\nold\tX\nmen\tX\n", {}),
        ("a.txt", "the  whale\nold men\n", {}),
    ],
    "span": [
        ("a.json", json.dumps(squad(version=1)).replace('"answers"', '"other"'), {}),
        ("b.json", json.dumps(squad()), {}),
        ("a.jsonl", [{"question": each, "context": CONTEXT} for each in ("Who is white?", "What is red?", "What is not?")], {}),
    ],
    "choice": [
        ("a.json", json.dumps({"article": "x", "questions": ["a", "b"], "options": GIVEN}), {}),
        ("a.jsonl", [{"article": "x", "question": each, "options": some} for each, some in zip("ab", GIVEN, strict=True)], {}),
    ],
}


@pytest.mark.full
@pytest.mark.parametrize("goal", FORMATS)
def test_every_format_gives_the_same_with_labels_and_without(goal: str, tmp_path: Path) -> None:
    made = [predicted(goal, put(tmp_path / name, content), **options) for name, content, options in FORMATS[goal]]
    for each in made:
        assert_close([{**one, "id": None, "line": None} for one in each], [{**one, "id": None, "line": None} for one in made[0]])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("predict")
    for goal, head in finetuned.TASKS.items():
        encoders.folder(folder / goal, "bert", head)
    encoders.folder(folder / "masked", "bert", "masked")
    published.write(folder / "gpt", published.config("gpt", "causal"))
    published.write(folder / "reward", published.config("gpt", "sequence", published.GPT2 | {"vocab_size": 257}))
    Tokenizer.train([], 257).save(folder / "reward")
    put(folder / "labels.txt", "no the whale\nyes old men\n")
    put(folder / "a.tsv", "id\ttext\n7\tthe whale\n8\tthe ship\n")
    put(folder / "long.tsv", "text\nthe whale\n" + "whale " * 60 + "\n")
    return folder


def test_the_command_writes_lines_of_json(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    printed = call(capsys, "predict", "classification", "the whale", "the ship")
    first, second = map(json.loads, printed.stdout.splitlines())
    assert (printed.code, first.keys()) == (0, {"index", "label", "probabilities"})
    out = tmp_path / "out.jsonl"
    ended = call(capsys, "predict", "classification", "--files", "a.tsv", "--out", str(out))
    assert (ended.code, ended.stdout) == (0, f"{out}: 2 predictions\n")
    assert [json.loads(line) for line in out.read_text().splitlines()] == [
        {**first, "line": 2, "id": "7"},
        {**second, "line": 3, "id": "8"},
    ]
    before = out.read_bytes()
    ended = call(capsys, "predict", "classification", "--files", "long.tsv", "--out", str(out))
    assert ended.code == 2 and "long.tsv:3: 62 tokens" in ended.stderr
    assert out.read_bytes() == before and list(tmp_path.iterdir()) == [out]


@pytest.mark.full
def test_questions_and_choices_are_taken_from_the_command_line(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    ended = call(capsys, "predict", "span", "the whale", "--context", "the old ship", "--labelled.stride", "5")
    answer = json.loads(ended.stdout)
    assert "the old ship"[answer["start"] : answer["end"]] == answer["answer"]
    chosen = json.loads(call(capsys, "predict", "choice", "the", "--options", "whale", "ship", "men").stdout)
    assert chosen["option"] == ["whale", "ship", "men"][chosen["choice"]]
    assert sum(chosen["probabilities"]) == pytest.approx(1)
    assert json.loads(call(capsys, "predict", "reward", "a whale").stdout).keys() == {"index", "number"}
    tags = json.loads(call(capsys, "predict", "tagging", "the old whale").stdout)["tags"]
    assert [tag["word"] for tag in tags] == ["the", "old", "whale"]
    pair = json.loads(call(capsys, "predict", "classification", "the whale", "--pair", "old men").stdout)
    assert pair["probabilities"] != json.loads(call(capsys, "predict", "classification", "the whale").stdout)["probabilities"]


@pytest.mark.parametrize("family", ["gpt", *(pytest.param(name, marks=pytest.mark.full) for name in ("t5", "transformer"))])
def test_a_reward_model_gives_each_text_one_score(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also over the border of a chunk, and from a file; a score is that of the row that training reads."""
    monkeypatch.setattr(reward_predictor, "CHUNK", 2)
    net, pairs = reward_models.net(family), reward_models.examples()
    subject = Loaded("rm", net, random_params(net), reward_models.tokenizer(family), loaded("classification").mesh)
    rows = jax.tree.map(jnp.asarray, reward_models.batch(family))
    expected = np.asarray(jax.jit(functools.partial(reward_scores, net))(subject.params, rows))[:, 0]
    content = [{"id": n, "prompt": pair.prompt, "completion": pair.chosen} for n, pair in enumerate(pairs)]
    columns = Labelled(text="prompt", pair="completion")
    results = list(predict(subject, files=[str(put(tmp_path / "a.jsonl", content))], labelled=columns, batch=2))
    assert [(one["index"], one["id"]) for one in results] == [(0, 0), (1, 1), (2, 2)]
    np.testing.assert_allclose([one["number"] for one in results], expected, rtol=1e-4, atol=1e-5)
    (alone,) = predict(subject, texts=[pairs[0].prompt], pair=pairs[0].chosen, batch=2)
    assert alone["number"] == pytest.approx(results[0]["number"], rel=1e-4)
    (whole,) = predict(subject, texts=[pairs[0].prompt + pairs[0].chosen], batch=2)
    assert whole["number"] != pytest.approx(alone["number"], rel=1e-4)
    refused = (({"length": 8}, "--length 8: a rew"), ({"labelled": Labelled(coarse=True)}, "--labelled.coarse True: "))
    for options, message in refused:
        with pytest.raises(BadInput, match=message):
            predict(subject, texts=["a"], **options)


WRONG = {
    "classification": "no input: write texts in quotes",
    "classification x --files a.tsv": "--files a.tsv: there are texts too; give either",
    "classification --files gone.tsv": "--files gone.tsv: no such file",
    "classification --files labels.txt": "labels.txt: each of its first 2 lines begins with a label of the model; choose --line",
    "classification --files a.tsv --labelled.text said": 'a.tsv:2: no column "said"; it has "id", "text"',
    "classification --files a.tsv --labelled.stride 3": "--labelled.stride 3: it has no effect on classification",
    "classification --files a.tsv --pair x": "--pair x: it goes with texts",
    "classification --files a.tsv --out a.txt": "--out a.txt: name a file that ends in .jsonl, .tsv or .csv",
    "classification --files a.tsv --out gone/a.jsonl": "--out gone/a.jsonl: its folder does not exist",
    "classification x --context y": "--context y: has no effect on a model for classification",
    "classification the --length 2": ".*: 3 tokens, and a row has 2; choose a longer --length, or cut long ones with --lab",
    "span x": "--context is missing: give the text in which the answer is",
    "choice x --options y": "--options: name 2 or more options",
    "masked x": "masked: its task is masked, without labels; fine-tune it first",
    "gpt x": "gpt: this model writes text; use it with `zoo generate gpt --prompt ...`",
}


def test_wrong_input_is_refused(place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    assert_refused(capsys, place, {line: (("predict", *line.split()), message) for line, message in WRONG.items()})
    own = dataclasses.replace(loaded("classification"), run=run("classification", pair="other"))
    with pytest.raises(BadInput, match=r"^--pair: the model was fine-tuned on pairs of texts"):
        predict(own, texts=["x"])
