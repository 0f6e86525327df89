"""Scores of pairs by cross-encoders: those of each pair alone, as a folder says, and as `zoo eval` and `zoo search` use them."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zoo
from eval.inference import pair_scores
from eval.inference.encoder_inputs import TaskVectors
from eval.inference.encoder_runner import Text
from eval.inference.pair_scores import CrossEncoder
from eval.tasks import task_table
from eval.tasks.task import Result, Settings
from tests.support import encoders
from tests.support.commands import assert_refused, call
from tests.support.small import random_params, small
from tests.support.text_tasks import quiet, write
from train.tokenizers import hf_files
from train.weights.load import Loaded, load_model
from zoo import published_weights
from zoo.batch import Batch
from zoo.errors import BadInput
from zoo.nn import task_heads

IDENTITY, SIGMOID = "torch.nn.modules.linear.Identity", "torch.nn.modules.activation.Sigmoid"
PAIRS = [
    ("whale", "The old men of the ship."),
    ("the white whale", "Paris is the capital of France, the whale"),
    ("Paris", "whale"),
    ("the old men of the ship", "whale " * 60),
    ("Paris", "whale"),
    # Both are longer than half of a row, and the second has one token more than the first.
    ("whale ship " * 10, "whale ship " * 10 + "whale"),
    ("whale ship " * 11, "whale ship " * 10),
]


def folder_of(path: Path, family: str = "bert", **config: Any) -> Path:
    """Write a random model with a head of one score, and further entries of its config.json."""
    words = encoders.tokenizer(encoders.ANY[family])
    net = small(family, task="sequence", labels=("LABEL_0",), vocab=words.vocab_size + 5, context=encoders.POSITIONS)
    path.mkdir()
    published_weights.save_published(path, net.config, random_params(net), extra=config)
    hf_files.write_tokenizer(path, words, longest=encoders.POSITIONS)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_of(tmp_path_factory.mktemp("models") / "model", sentence_transformers={"activation_fn": IDENTITY})


def named(pairs: list[tuple[str, str]]) -> list[tuple[Text, Text]]:
    return [(Text("the query", first), Text(f"text {number}", second)) for number, (first, second) in enumerate(pairs)]


def logits(loaded: Loaded, pairs: list[tuple[str, str]] = PAIRS, batch: int = 4) -> np.ndarray:
    return CrossEncoder.of(loaded, batch=batch, dtype="float32", truncate=True).logits(named(pairs))


def expected(loaded: Loaded, pairs: list[tuple[str, str]] = PAIRS, longest: int = encoders.POSITIONS) -> np.ndarray:
    """The logits of each pair alone, without padding; the longer text is cut a token at a time, the second one of equal ones."""
    special, model, values = loaded.tokenizer.special_tokens, loaded.model, []
    assert special is not None
    for texts in pairs:
        first, second = (loaded.tokenizer.encode(text).tolist() for text in texts)
        room = longest - 2 - special.between
        if len(first) + len(second) > room:
            short, long = sorted((len(first), len(second)))
            short, long = (short, room - short) if 2 * short <= room else (room // 2, room - room // 2)
            first, second = (first[:long], second[:short]) if len(first) > len(second) else (first[:short], second[:long])
        ids = [special.cls, *first, *[special.sep] * special.between, *second, special.sep]
        types = np.array([[0] * (len(ids) - len(second) - 1) + [1] * (len(second) + 1)], np.int32)
        typed = model.config.types > 1
        batch = Batch(tokens=jnp.array([ids], jnp.int32), types=jnp.asarray(types if typed else types * 0))
        summaries = task_heads.sequence_summaries(model.apply(loaded.params, batch), batch)
        values.append(model.sequence_logits(loaded.params, summaries)[0, 0, 0])
    return np.array(jax.device_get(values))


@pytest.mark.parametrize("family", ["bert", *(pytest.param(name, marks=pytest.mark.full) for name in ("roberta", "modernbert"))])
def test_logits_are_those_of_each_pair_alone(family: str, folder: Path, tmp_path: Path) -> None:
    loaded = load_model(folder if family == "bert" else folder_of(tmp_path / "m", family))
    reference = expected(loaded)
    np.testing.assert_allclose(logits(loaded), reference, rtol=0, atol=1e-5 * np.abs(reference).max())
    assert np.ptp(reference) > 0.1 and logits(loaded)[2] == logits(loaded)[4]


template = pair_scores.fill_template


def without_types(*arguments: Any) -> Any:
    inputs, size = template(*arguments)
    return inputs._replace(types=inputs.types * 0), size


@pytest.mark.planted
@pytest.mark.parametrize("wrong", [without_types, lambda first, second, *rest: template(second, first, *rest)])
def test_pairs_without_types_or_in_another_order_have_other_logits(
    wrong: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load_model(folder)
    reference = expected(loaded, PAIRS[:3])
    monkeypatch.setattr(pair_scores, "fill_template", wrong)
    assert np.abs(logits(loaded, PAIRS[:3]) - reference).max() > 0.01


@pytest.mark.parametrize(
    ("config", "activation"),
    [
        ({}, "sigmoid"),
        ({"sentence_transformers": {"activation_fn": IDENTITY, "version": "4.1.0"}}, "identity"),
        ({"sentence_transformers": {"activation_fn": SIGMOID, "version": "4.1.0"}}, "sigmoid"),
        ({"sbert_ce_default_activation_function": IDENTITY}, "identity"),
        (
            {"sbert_ce_default_activation_function": SIGMOID, "sentence_transformers": {"activation_fn": IDENTITY}},
            "identity",
        ),
    ],
)
def test_scores_have_the_activation_of_the_folder_and_exports_keep_it(
    config: dict[str, Any], activation: str, tmp_path: Path, folder: Path
) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "model"))
    content = json.loads((copy / "config.json").read_text())
    del content["sentence_transformers"]
    write(copy / "config.json", content | config)
    scores = zoo.load(copy).score_pairs(PAIRS[:3])
    values = expected(load_model(folder), PAIRS[:3])
    np.testing.assert_allclose(scores, values if activation == "identity" else 1 / (1 + np.exp(-values)), rtol=0, atol=1e-5)
    zoo.load(copy).export(tmp_path / "exported")
    np.testing.assert_array_equal(zoo.load(tmp_path / "exported").score_pairs(PAIRS[:3]), scores)


def test_files_of_version_6_are_read_and_take_precedence(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "model"))
    kind = "sentence_transformers.base.modules.transformer.Transformer"
    write(copy / "modules.json", json.dumps([{"idx": 0, "name": "0", "path": "", "type": kind}]))
    texts = {"transformer_task": "sequence-classification", "module_output_name": "scores"}
    write(copy / "sentence_bert_config.json", texts)
    settings = {"model_type": "CrossEncoder", "activation_fn": SIGMOID, "prompts": {}, "default_prompt_name": None}
    write(copy / "config_sentence_transformers.json", settings)
    scores = zoo.load(copy).score_pairs(PAIRS[:3])
    np.testing.assert_allclose(scores, 1 / (1 + np.exp(-expected(load_model(folder), PAIRS[:3]))), rtol=0, atol=1e-5)
    zoo.load(copy).export(tmp_path / "exported")
    np.testing.assert_array_equal(zoo.load(tmp_path / "exported").score_pairs(PAIRS[:3]), scores)
    rows = [{"type": kind, "path": ""}, {"type": "sentence_transformers.base.modules.dense.Dense", "path": "1"}]
    for name, content, message in (
        (
            "modules.json",
            json.dumps(rows),
            "the modules Transformer, Dense of a cross-encoder are not supported, only Transformer",
        ),
        (
            "config_sentence_transformers.json",
            settings | {"prompts": {"query": "q: "}},
            'prompts is {"query": "q: "}; a cross-encoder',
        ),
        (
            "config_sentence_transformers.json",
            settings | {"activation_fn": "my.Own"},
            'activation_fn is "my.Own"; this activation',
        ),
        ("sentence_bert_config.json", texts | {"do_lower_case": True}, "do_lower_case is true; this is not supported in a cross"),
    ):
        wrong = Path(shutil.copytree(copy, tmp_path / f"wrong {len(list(tmp_path.iterdir()))}"))
        write(wrong / name, content)
        with pytest.raises(BadInput, match=re.escape(message)):
            zoo.load(wrong).score_pairs(PAIRS[:1])


def test_pairs_are_as_long_as_the_tokenizer_says(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "model"))
    settings = json.loads((copy / "tokenizer_config.json").read_text())
    write(copy / "tokenizer_config.json", settings | {"model_max_length": 17})
    reference = expected(load_model(folder), longest=17)
    np.testing.assert_allclose(logits(load_model(copy)), reference, rtol=0, atol=1e-5 * np.abs(reference).max())
    zoo.load(copy).export(tmp_path / "exported")
    assert json.loads((tmp_path / "exported/tokenizer_config.json").read_text())["model_max_length"] == 17


# --- Tasks and commands ---


def run_task(task: str, file: str, model: Loaded, **options: Any) -> Result:
    found, argument = task_table.find_task(task)
    settings = Settings(batch=4, argument=argument, **options)
    return found.score(model, found.read([file], settings), settings, quiet)


def test_rerank_orders_candidates_by_the_scores_of_pairs(folder: Path, tmp_path: Path) -> None:
    rows = [
        {"query": "whale", "positive": ["the ship"], "negative": ["Paris", "old men", "whale " * 60]},
        {"query": "the old men", "positive": ["the capital", "a ship"], "negative": ["white whale"]},
        {"query": "Paris", "positive": ["whale"], "negative": ["whale"]},
    ]
    loaded, reciprocal, precisions = load_model(folder), [], []
    for row in rows[:2]:
        texts = [*row["negative"], *row["positive"]]
        values = expected(loaded, [(row["query"], text) for text in texts])
        right = np.array([text in row["positive"] for text in texts])[np.argsort(-values)]
        at = np.flatnonzero(right) + 1
        reciprocal.append(1 / at[0])
        precisions.append(np.mean([(number + 1) / rank for number, rank in enumerate(at)]))
    result = run_task("rerank", write(tmp_path / "a.jsonl", *rows), loaded)
    assert result.metrics["mrr_at_10"] == pytest.approx(np.mean([*reciprocal, 0.5]))
    assert result.metrics["map"] == pytest.approx(np.mean([*precisions, 0.5]))
    assert result.details["too long"].startswith("1 pairs were cut to 40 tokens, the first at ")


@pytest.fixture(scope="module")
def search(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an embedding model, and documents in a file."""
    place = tmp_path_factory.mktemp("search")
    encoders.folder(place / "bi", "bert")
    texts = ("Paris is the capital of France", "the white whale sleeps", "the old men of the ship", "whale", "ship")
    write(place / "corpus.jsonl", *[{"_id": f"d{i}", "title": "", "text": text} for i, text in enumerate(texts)])
    return place


def test_search_orders_the_nearest_documents_by_their_scores(
    folder: Path, search: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(search)
    index = str(tmp_path / "index")
    assert call(capsys, "embed", "bi", "--files", "corpus.jsonl", "--index", index).code == 0

    def rows(*options: str) -> list[dict[str, Any]]:
        ended = call(capsys, "search", index, "the whale", "--model", "bi", "--json", *options)
        assert ended.code == 0, ended.stderr
        return [json.loads(line) for line in ended.stdout.splitlines()]

    nearest = [(row["id"], row["text"]) for row in rows()]
    for depth, k in ((100, 5), (3, 2)):
        first = nearest[:depth]
        values = expected(load_model(folder), [("the whale", text) for _, text in first])
        order = np.argsort(-values)[:k]
        ranked = rows("--rerank", str(folder), "--rerank-k", str(depth), "--k", str(k))
        assert [row["id"] for row in ranked] == [first[place][0] for place in order] != [name for name, _ in first][:k]
        np.testing.assert_allclose([row["score"] for row in ranked], values[order], atol=1e-5)
        assert [row["rank"] for row in ranked] == list(range(1, k + 1))
    long = "whale " * 37
    assert_refused(
        capsys,
        tmp_path,
        {
            "no cross-encoder": (
                ("search", index, "whale", "--model", "bi", "--rerank", "bi"),
                "--rerank bi: it has one vector for a text; name a cross-encoder, or a model with a vector for each token",
            ),
            "depth": (
                ("search", index, "whale", "--model", "bi", "--rerank", str(folder), "--rerank-k", "4"),
                "--rerank-k 4: choose at least --k 10",
            ),
            "absent": (("search", index, "whale", "--model", "bi", "--rerank", "gone"), "--rerank gone: no such"),
            "long": (
                ("search", index, long, "--model", "bi", "--rerank", str(folder)),
                r"document d\d: \d+ tokens with the query and special tokens, and this model reads at most 40; .*--truncate",
            ),
        },
    )
    assert call(capsys, "search", index, long, "--model", "bi", "--rerank", str(folder), "--truncate").code == 0


@pytest.mark.planted(7)
def test_models_and_pairs_that_do_not_fit_are_refused(folder: Path, search: Path, tmp_path: Path) -> None:
    loaded, model = load_model(folder), zoo.load(folder)
    classifier = encoders.loaded("bert", "sequence")
    candidates = write(tmp_path / "a.jsonl", {"query": "whale", "positive": ["ship"], "negative": ["men"]})
    (beir := tmp_path / "beir").mkdir()
    (beir / "qrels").mkdir()
    for name in ("corpus", "queries"):
        write(beir / f"{name}.jsonl", {"_id": "a", "text": "whale"}, {"_id": "b", "text": "ship"})
    write(beir / "qrels/test.tsv", "a 0 b 1")
    cases = [
        (lambda: run_task("retrieval", str(beir), loaded), "--task retrieval: .* is a cross-encoder, .*choose --task rerank"),
        (lambda: run_task("rerank", candidates, classifier), "it has a head of 3 labels, and a cross-encoder gives a pair one"),
        (
            lambda: run_task("rerank", candidates, loaded, vectors=TaskVectors(pool="cls")),
            "--vectors.pool cls: .* is a cross-encoder, which has no vectors; remove it",
        ),
        (lambda: model.score_pairs([("whale", " ")]), r"pairs\[0\]\[1\] ' ': write some text"),
        (lambda: model.score_pairs([("whale", "ship", "men")]), "pairs .*: pass two texts in each pair"),
        (lambda: model.score_pairs([]), r"pairs \[\]: pass a list of pairs"),
        (lambda: model.score_pairs([("whale", "ship " * 50)]), r"pairs\[0\]: 54 tokens .*reads at most 40"),
    ]
    for function, message in cases:
        with pytest.raises(BadInput, match=message):
            function()


def test_a_run_continues_the_head_of_its_folder_and_is_exported_with_its_activation(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [{"query": f"ship {n}", "positive": f"whale {n}", "negatives": [f"men {n}", "Paris"]} for n in range(24)]
    pairs = write(tmp_path / "pairs.jsonl", *rows)
    command = ["train", "finetune-rerank", "--init", str(folder), "--data.paths", pairs, "--steps", "2", "--optim.lr", "1e-30"]
    command += ["--data.batch", "8", "--data.length", "16", "--rerank.negatives", "2", "--rerank.loss", "pointwise"]
    done = call(capsys, *command)
    assert done.code == 0 and "newly initialized" not in done.stderr + done.stdout, done
    scores = zoo.load("runs/finetune-rerank").score_pairs(PAIRS[:3])
    values = expected(load_model(folder), PAIRS[:3])
    np.testing.assert_allclose(scores, 1 / (1 + np.exp(-values)), rtol=0, atol=1e-5)
    assert call(capsys, "export", "runs/finetune-rerank", "published").code == 0
    config = json.loads(Path("published/config.json").read_text())
    assert config["sentence_transformers"]["activation_fn"] == SIGMOID and config["id2label"] == {"0": "LABEL_0"}
    assert json.loads(Path("published/tokenizer_config.json").read_text())["model_max_length"] == 16
    np.testing.assert_array_equal(zoo.load("published").score_pairs(PAIRS[:3]), scores)
    short = write(tmp_path / "short.jsonl", *rows, {"query": "ship", "positive": "whale", "negatives": ["men"]})
    refused = call(capsys, *command, "--name", "short", "--data.paths", short)
    assert refused.code == 2 and "short.jsonl:25: 1 negatives, and --rerank.negatives is 2; write more" in refused.stderr


# --- Against the library ---


@pytest.mark.parity
@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "modernbert"])
@pytest.mark.parametrize("activation", [None, IDENTITY, SIGMOID])
def test_scores_are_those_of_sentence_transformers_both_ways(family: str, activation: str | None, tmp_path: Path) -> None:
    """A folder of ours, the same saved by version 6.2.0, and the export of that. Needs sentence-transformers beside the group."""
    library = pytest.importorskip("sentence_transformers")
    entries = {} if activation is None else {"sentence_transformers": {"activation_fn": activation, "version": "4.1.0"}}
    theirs = library.CrossEncoder(str(folder_of(tmp_path / "m", family, **entries)), device="cpu")
    theirs.save_pretrained(str(tmp_path / "saved"))
    scores = theirs.predict(PAIRS)
    for name in ("m", "saved"):
        np.testing.assert_allclose(zoo.load(tmp_path / name).score_pairs(PAIRS, truncate=True), scores, rtol=0, atol=1e-5)
        zoo.load(tmp_path / name).export(tmp_path / f"{name} exported")
        exported = library.CrossEncoder(str(tmp_path / f"{name} exported"), device="cpu")
        np.testing.assert_allclose(exported.predict(PAIRS), scores, rtol=0, atol=1e-5)
