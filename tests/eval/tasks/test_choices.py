"""Choices, shares of two forms, and reading times: read as their formats say, and scored as a direct computation does."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.special import expit

from eval.inference.likelihood import Likelihood, encode
from eval.tasks import choices, reading, word_ratios
from eval.tasks.task import Settings
from tests.support.text_tasks import quiet, scored, subject, tokenizer, write
from zoo.errors import BadInput

QUESTIONS = [
    {"context": "The whale", "choices": [" sleeps", " see the ship of the men"], "label": 1, "group": "a"},
    {"context": "The men", "choices": [" sleep.", " see the whale", " see the whale"], "label": 0, "group": "a"},
    {"context": "", "choices": ["The old whale", "naïve 鯨"], "label": 0, "group": "b"},
]


def nats(texts: list[tuple[str, str]]) -> np.ndarray:
    """-log p of each continuation."""
    return np.array([result.nats for result in scored(encode(tokenizer(), texts))])


def best(scores: np.ndarray, label: int) -> float:
    likeliest = np.flatnonzero(scores == scores.max())
    return 1 / len(likeliest) if label in likeliest else 0.0


def expected(question: dict[str, Any], before: str = "Answer:") -> dict[str, float]:
    """The credit of a question by each normalization, from log p, tokens and characters."""
    texts = [(question["context"], choice) for choice in question["choices"]]
    log_p, sizes = -nats(texts), np.array([len(ids) for _, ids in encode(tokenizer(), texts)])
    characters = np.array([len(choice.strip()) for choice in question["choices"]])
    alone = -nats([(before, choice) for choice in question["choices"]])
    values = {"accuracy": log_p, "accuracy_per_token": log_p / sizes, "accuracy_per_character": log_p / characters}
    return {name: best(scores, question["label"]) for name, scores in {**values, "accuracy_pmi": log_p - alone}.items()}


def score(path: str, kind: str = "", **options: Any) -> Any:
    settings = Settings(argument=kind, **options)
    return choices.TASK.score(subject(), choices.TASK.read([path], settings), settings, quiet)


def test_choices_are_compared_by_each_normalization_and_groups_weigh_the_same(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", *QUESTIONS)
    result = score(file, pmi=True, prefix="Answer:")
    rows = [expected(question) for question in QUESTIONS]
    for name in rows[0]:
        group = (rows[0][name] + rows[1][name]) / 2
        assert result.details["groups"]["a"][name] == pytest.approx(group)
        assert result.metrics[name] == pytest.approx((group + rows[2][name]) / 2)
    assert result.examples == 3 and result.metrics["groups"] == 2 and result.details["likelihood"] == "causal"
    assert result.outcomes.right.tolist() == [row["accuracy"] for row in rows]
    assert result.items == {"prefix": "Answer:"} and score(file).items == {}
    assert "accuracy_pmi" not in score(file).metrics
    assert score(file, limit=1).examples == 2
    assert choices.question_credit([1.0, 1.0, 0.0], 1) == 0.5 and choices.question_credit([1.0, 2.0], 0) == 0


@pytest.mark.planted
def test_a_wrong_label_is_noticed(tmp_path: Path) -> None:
    right = score(write(tmp_path / "a.jsonl", QUESTIONS[2])).metrics["accuracy"]
    assert score(write(tmp_path / "b.jsonl", {**QUESTIONS[2], "label": 1})).metrics["accuracy"] == 1 - right


def test_formats_of_babylm_are_the_comparisons_that_they_describe(tmp_path: Path) -> None:
    item = {
        "Domain": "d",
        "Context1": "The whale sleeps.",
        "Context2": "The men see.",
        "Target1": "The ship.",
        "Target2": "It is.",
    }
    rows = choices.TASK.read([write(tmp_path / "a.jsonl", item)], Settings(argument="ewok"))
    contexts = (item["Context1"], item["Context2"])
    assert [row.candidates for row in rows] == [
        tuple((context, f" {item[target]}") for context in contexts) for target in ("Target1", "Target2")
    ]
    assert [(row.label, row.group) for row in rows] == [(0, "d"), (1, "d")]
    item = {"prefix_acceptable": "A whale", "prefix_unacceptable": "A ship", "property_phrase": "sleeps."}
    (row,) = choices.TASK.read([write(tmp_path / "base.jsonl", item)], Settings(argument="comps"))
    assert row[1:] == ("base", (("A whale", " sleeps."), ("A ship", " sleeps.")), 0)
    item = {"input_prefix": "The ship has", "options": [" the whale", " nothing"], "numops": 2}
    (row,) = choices.TASK.read([write(tmp_path / "regular.jsonl", item)], Settings(argument="entity_tracking"))
    assert row[1:] == ("regular_2_ops", (("The ship has", " the whale"), ("The ship has", " nothing")), 0)


@pytest.mark.parametrize(
    ("kind", "line", "message"),
    [
        ("", {"context": "a", "choices": ["b"], "label": 0}, r'a.jsonl:1: field "choices" is no list of two texts or more'),
        ("", {"context": "a", "choices": ["b", "c"], "label": 2}, r'field "label" must be the number of a choice, 0 to 1'),
        ("", {"choices": ["b", "c"], "label": 0}, r'field "context" is no text'),
        ("ewok", {"Domain": "d"}, r'field "Context1" has no text'),
        ("entity_tracking", {"input_prefix": "a", "options": ["b", "c"]}, r'field "numops" is no number'),
        ("blimp", {}, r"--task choices:blimp: no such format; choose choices, or choices: and ewok, comps, entity_tracking"),
    ],
)
def test_a_line_of_another_format_is_refused(kind: str, line: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=message):
        choices.TASK.read([write(tmp_path / "a.jsonl", line)], Settings(argument=kind))


def test_shares_of_two_forms_are_correlated_with_those_of_people(tmp_path: Path) -> None:
    pairs = [
        ("The whale.", "The men."),
        ("The old whale.", "The ship."),
        ("The men see.", "The whale is seen."),
        ("ship", "whale"),
    ]
    values = nats([("", sentence) for pair in pairs for sentence in pair]).reshape(-1, 2)
    shares = expit(values[:, 1] - values[:, 0])
    for sign in (1, -1):
        ratios = [float(share) if sign > 0 else 1 - float(share) for share in shares]
        lines = [
            {"sentences": list(pair) if sign > 0 else "\t".join(pair), "ratio": ratio}
            for pair, ratio in zip(pairs, ratios, strict=True)
        ]
        items = word_ratios.TASK.read([write(tmp_path / "a.jsonl", *lines)], Settings())
        metrics = word_ratios.TASK.score(subject(), items, Settings(), quiet).metrics
        assert metrics == {"spearman": pytest.approx(sign), "pearson": pytest.approx(sign, abs=1e-6)}
    for line, message in (
        ({"sentences": ["a"], "ratio": 0.5}, "no pair of sentences"),
        ({"sentences": "a\tb", "ratio": 2}, "from 0 to 1"),
    ):
        with pytest.raises(BadInput, match=message):
            word_ratios.TASK.read([write(tmp_path / "a.jsonl", line)], Settings())


def table(rng: np.random.Generator, sentences: int = 12) -> tuple[list[str], list[str], np.ndarray]:
    """Items, words, and the surprisal of each word."""
    words, items, surprisal = ["The", "old", "whale", "sleeps", "and", "the", "men", "see", "the", "ship"], [], []
    chosen = [rng.permutation(words)[:6].tolist() for _ in range(sentences)]
    for number, sentence in enumerate(chosen):
        before = ""
        for word in sentence:
            text = f" {word}" if before else word
            surprisal.append(nats([(before, text)])[0])
            items.append(str(number))
            before += text
    return items, [word for sentence in chosen for word in sentence], np.array(surprisal)


def fit(columns: list[np.ndarray], times: np.ndarray) -> float:
    """The R2 of a regression, by the normal equations."""
    matrix = np.stack([np.ones(len(times)), *columns], 1)
    rest = times - matrix @ np.linalg.solve(matrix.T @ matrix, matrix.T @ times)
    return 1 - rest @ rest / ((times - times.mean()) ** 2).sum()


@pytest.mark.planted
def test_surprisal_explains_reading_times_that_depend_on_it(rng: np.random.Generator, tmp_path: Path) -> None:
    items, words, surprisal = table(rng)
    length, frequency = np.array([len(word) for word in words], float), rng.normal(size=len(words)).round(3)
    times = (300 + 20 * length + 30 * surprisal + rng.normal(scale=60, size=len(words))).round(3)
    header = ["item", "word", "length", "frequency", "RTfirstpass", "self_paced_reading_time"]
    rows = [header, *zip(items, words, length, frequency, times, times, strict=True)]
    file = tmp_path / "a.csv"
    file.write_text("\n".join(",".join(map(str, row)) for row in rows) + "\n")
    data = reading.TASK.read([str(file)], Settings())
    metrics = reading.TASK.score(subject(), data, Settings(), quiet).metrics
    base = [length, frequency, length * frequency]
    without, with_it = fit(base, times), fit([*base, surprisal], times)
    gain = 100 * (with_it - without) / (1 - without)
    assert metrics["RTfirstpass"] == pytest.approx(gain, rel=1e-4) and gain > 10
    later = np.array([number for number in range(1, len(items)) if items[number] == items[number - 1]])
    spilled = [column[later] for column in base] + [column[later - 1] for column in base]
    without, with_it = fit(spilled, times[later]), fit([*spilled, surprisal[later], surprisal[later - 1]], times[later])
    assert metrics["self_paced_reading_time"] == pytest.approx(100 * (with_it - without) / (1 - without), rel=1e-4)
    assert metrics["gain"] == pytest.approx((metrics["RTfirstpass"] + metrics["self_paced_reading_time"]) / 2)
    assert reading.explained_gain(data, np.roll(surprisal, 1), "RTfirstpass") < gain / 2
    for content, message in (
        ("item,word\n", "no column length"),
        (f"{','.join(header)}\n1,a,b,1,,3\n", "column length has 'b'"),
        ("item,length,frequency,RTfirstpass,word\n1,1,1,300,a\n1,1,1,300\n", "a.csv:3: has fewer cells than the header; correct"),
    ):
        file.write_text(content)
        with pytest.raises(BadInput, match=message):
            reading.TASK.read([str(file)], Settings())


@pytest.mark.planted(5)
def test_too_few_words_are_refused_before_a_model_is_loaded(tmp_path: Path) -> None:
    """A regression has 5 columns, that of self-paced reading 9; the first word of a sentence has none before it."""
    file = tmp_path / "a.csv"

    def read(count: int, measure: str, limit: int = 0, time: str = "300") -> int:
        rows = [f"1,w,1,{number},{time}" for number in range(count)]
        file.write_text("\n".join([f"item,word,length,frequency,{measure}", *rows]))
        return len(reading.TASK.read([str(file)], Settings(limit=limit)))

    for measure, fewest in (("RTgopast", 6), ("self_paced_reading_time", 11)):
        assert read(fewest, measure) == read(20, measure, fewest) == fewest
        few = f"{5 if fewest == 6 else 9} words with {measure}, and its regression needs {6 if fewest == 6 else 10}"
        with pytest.raises(BadInput, match=rf"--files .*a\.csv: {few}; name a larger file"):
            read(fewest - 1, measure, 1)
        with pytest.raises(BadInput, match=f"--limit {fewest - 1}: {few}; choose more words, or 0 for all"):
            read(20, measure, fewest - 1)
    with pytest.raises(BadInput, match=r"--files .*a\.csv: no word has a time of self_paced_reading_time, RTfirstfix, "):
        read(20, "RTgopast", time="")


@pytest.mark.planted(2)
def test_sentences_end_with_files_and_constant_times_leave_nothing(
    rng: np.random.Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        rows = [f"1,w,{rng.integers(1, 9)},{rng.normal()},300.1,{rng.normal()}" for _ in range(12)]
        header = "item,word,length,frequency,RTgopast,self_paced_reading_time"
        (tmp_path / f"{name}.csv").write_text("\n".join([header, *rows]))
    words = reading.TASK.read([str(tmp_path)], Settings())
    surprisal = rng.normal(size=24)
    contexts: list[str] = []

    def likelihoods(_: Any, texts: list[tuple[str, str]], **options: Any) -> list[Any]:
        contexts.extend(context for context, _ in texts)
        return [Likelihood(nats=nats, tokens=1, greedy=False) for nats in surprisal]

    monkeypatch.setattr(reading, "text_likelihoods", likelihoods)
    result = reading.TASK.score(subject(), words, Settings(), quiet)
    assert [number for number, context in enumerate(contexts) if not context] == [0, 12] and result.details["sentences"] == 2
    # The first word of a file has no word before it, so its time is not in the regression.
    words[12] = words[12]._replace(times={**words[12].times, "self_paced_reading_time": 99.0})
    assert reading.TASK.score(subject(), words, Settings(), quiet).metrics == result.metrics
    assert result.metrics["RTgopast"] == 0 != result.metrics["self_paced_reading_time"]
