"""Hard negatives are those of a search by sorting, and of sentence-transformers; neither devices nor blocks change them."""

import functools
from typing import Any

import jax
import numpy as np
import pytest

from eval.inference import hard_negatives
from eval.inference.encoder_inputs import Mining
from eval.inference.encoder_runner import Text
from eval.inference.hard_negatives import MinedQuery, QueryTexts, mine_negatives, query_texts
from train.config import run_config
from train.data.example_types import Ranked
from train.engine import device_mesh
from zoo.errors import BadInput

RANDOM = np.random.default_rng(4)
# Query 3 is that of row 0 with another positive, the positive of rows 1 and 5 is one text, and d9 is query 4 itself.
PAIRS = [("q0", "p0"), ("q1", "p1"), ("q2", "p2"), ("q0", "p3"), ("d9", "p4"), ("q5", "p1"), ("q6", "p6")]
CORPUS = [f"d{number}" for number in range(30)]
EXAMPLES = [Ranked(origin=f"f:{number}", query=query, positive=positive) for number, (query, positive) in enumerate(PAIRS, 1)]

ONE = run_config.Mesh(data=1)


@functools.cache
def vector_of(text: str) -> np.ndarray:
    vector = np.random.default_rng([*text.encode()]).normal(size=6).astype(np.float32)
    return vector / np.linalg.norm(vector)


def texts() -> QueryTexts:
    return query_texts(EXAMPLES, [Text(f"c:{number}", text) for number, text in enumerate(CORPUS)])


def mined(mining: Mining, shape: run_config.Mesh = ONE) -> list[MinedQuery]:
    queries, candidates = (np.stack([vector_of(text) for text in side]) for side in (texts().queries, texts().candidates))
    return mine_negatives(
        texts(), queries, candidates, mining, mesh=device_mesh.make_mesh(shape, jax.devices()[: shape.data * shape.fsdp])
    )


def by_sorting(mining: Mining) -> list[list[str]]:
    """Return the admitted texts of each query in descending order of similarity, all of them after those that are skipped."""
    results = []
    for query in dict.fromkeys(query for query, _ in PAIRS):
        own = {positive for other, positive in PAIRS if other == query}
        lowest = min(vector_of(query) @ vector_of(positive) for positive in own)
        similarity = {text: vector_of(query) @ vector_of(text) for text in {*CORPUS, *(p for _, p in PAIRS)} - own - {query}}
        ranked = sorted(similarity, key=lambda text: -similarity[text])[: mining.depth]
        margin = 0 if mining.margin is None else mining.margin
        relative = 0 if mining.relative_margin is None else mining.relative_margin
        if mining.margin is not None or mining.relative_margin is not None:
            limit = min(lowest - margin, lowest - abs(lowest) * relative)
            ranked = [text for text in ranked if similarity[text] < limit]
        if mining.max_similarity is not None:
            ranked = [text for text in ranked if similarity[text] <= mining.max_similarity]
        results.append(ranked[mining.skip :])
    return results


CASES = {
    "top": Mining(negatives=3),
    "skip": Mining(negatives=4, skip=2, depth=9),
    "margin": Mining(negatives=9, margin=0.1),
    "relative margin": Mining(negatives=14, relative_margin=0.2),
    "all": Mining(negatives=14, margin=0.05, relative_margin=0.1, max_similarity=0.3, skip=1),
    "no deeper": Mining(negatives=2, depth=4, max_similarity=0.5),
}


def check_mined(case: str) -> None:
    mining = CASES[case]
    names = [*texts().candidates]
    expected = [ranked[: mining.negatives] for ranked in by_sorting(mining)]
    results = mined(mining)
    assert [[names[row] for row in query.rows] for query in results] == expected
    for query, own, result in zip(texts().queries, texts().positives, results, strict=True):
        for rows, scores in ((own, result.positives), (result.rows, result.scores)):
            np.testing.assert_allclose(scores, [vector_of(query) @ vector_of(names[row]) for row in rows], atol=1e-6)
    again = mined(mining, run_config.Mesh(data=2, fsdp=2))
    assert all(np.array_equal(a, b) for one, other in zip(results, again, strict=True) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("case", CASES)
def test_negatives_are_those_of_sorting_on_any_number_of_devices(case: str) -> None:
    check_mined(case)
    counts = {len(query.rows) for query in mined(CASES[case])}
    assert max(counts) == CASES[case].negatives and (min(counts) < max(counts)) == (case not in ("top", "skip"))


def not_negative(scores: Any, positive: float, mining: Mining) -> Any:
    """The threshold of a share of the similarity itself, which is above a negative similarity."""
    return scores < positive * (1 - (mining.relative_margin or 0))


@pytest.mark.planted
@pytest.mark.parametrize(
    ("case", "name", "wrong"),
    [
        ("relative margin", "admitted", not_negative),
        ("margin", "admitted", lambda scores, positive, mining: scores < positive),
        ("top", "query_texts", lambda *args: query_texts(*args)._replace(excluded=[set(rows) for rows in texts().positives])),
        (
            "top",
            "query_texts",
            lambda *args: query_texts(*args)._replace(excluded=[{*rows[:1]} for rows in texts().positives]),
        ),
        ("skip", "choose_negatives", lambda scores, positive, mining, number: np.arange(mining.negatives)),
    ],
)
def test_wrong_negatives_are_noticed(case: str, name: str, wrong: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    if name == "query_texts":
        changed = wrong(EXAMPLES, [Text("", text) for text in CORPUS])
        monkeypatch.setitem(globals(), "texts", lambda: changed)
    else:
        monkeypatch.setattr(hard_negatives, name, wrong)
    with pytest.raises(AssertionError):
        check_mined(case)


def test_sampled_negatives_are_admitted_and_depend_on_the_seed_and_the_query_alone() -> None:
    mining = Mining(negatives=3, skip=1, depth=20, max_similarity=0.6, sample=True)
    names = [*texts().candidates]
    results = mined(mining)
    for query, admitted in zip(results, by_sorting(mining), strict=True):
        assert {names[row] for row in query.rows} <= {*admitted} and len({*query.rows.tolist()}) == 3
        assert query.scores.tolist() == sorted(query.scores.tolist(), reverse=True)
    assert [query.rows.tolist() for query in mined(mining)] == [query.rows.tolist() for query in results]
    seeds = [Mining(negatives=3, skip=1, depth=20, max_similarity=0.6, sample=True, seed=seed) for seed in range(1, 60)]
    # Every admitted text is sampled by some seed.
    sampled = {names[row] for other in seeds for row in mined(other)[2].rows}
    assert sampled == {*by_sorting(mining)[2]}


def test_vectors_equal_to_that_of_the_positive_are_not_below_it() -> None:
    """Whatever the number of candidates is, since each similarity is a sum of its own."""
    vectors = RANDOM.normal(size=(9, 384)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    candidates = np.concatenate([vectors[1:], vectors[1:2], vectors[1:2]])
    one = QueryTexts({"q": Text("", "q")}, {}, [[0]], [{0}])
    ranked = np.argsort(-(candidates @ vectors[0]), kind="stable")
    found = hard_negatives.mine_query(0, vectors[0], candidates, ranked, one, Mining(negatives=10, margin=0.0))
    assert not {8, 9} & {*found.rows.tolist()} and (found.scores < found.positives[0]).all()


def test_queries_without_a_positive_are_refused() -> None:
    with pytest.raises(BadInput, match=r"f:9: the query has no positive; name its column with --labelled.positive"):
        query_texts([Ranked(origin="f:9", query="q")], [])


@pytest.mark.planted
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"negatives": 0}, "--negatives 0: choose 1 or more"),
        ({"skip": -1}, "--skip -1: choose 0"),
        ({"depth": 3, "skip": 2, "negatives": 2}, r"--depth 3: choose 4 \(--skip and --negatives together\) or more"),
        ({"margin": float("nan")}, "--margin nan: choose 0 or a number above"),
        ({"margin": -0.1}, "--margin -0.1: choose 0"),
        ({"relative_margin": float("inf")}, "--relative-margin inf: choose 0"),
        ({"max_similarity": float("nan")}, "--max-similarity nan: choose a number"),
        ({"seed": -1}, "--seed -1: choose 0"),
    ],
)
def test_options_without_a_meaning_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        Mining(**options)


@pytest.mark.parity
@pytest.mark.parametrize("case", [*CASES])
def test_negatives_are_those_of_sentence_transformers(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    util = pytest.importorskip("sentence_transformers.util")
    import datasets
    import torch

    mining = CASES[case]

    class Model:
        """In place of their model, the same vectors."""

        device = torch.device("cpu")
        similarity, similarity_pairwise = staticmethod(util.cos_sim), staticmethod(util.pairwise_cos_sim)

        def encode_document(self, texts: list[str], **options: Any) -> np.ndarray:
            return np.stack([vector_of(text) for text in texts])

        encode_query = encode_document

    # They do not leave out the query itself, and examine more than the range where some of it is left out.
    monkeypatch.setitem(globals(), "CORPUS", [text for text in CORPUS if text != "d9"])
    depth = mining.depth if mining.max_similarity is None else 60
    mining = Mining(**{**vars(mining), "depth": depth})
    table = util.mine_hard_negatives(
        datasets.Dataset.from_dict({"query": [query for query, _ in PAIRS], "positive": [positive for _, positive in PAIRS]}),
        Model(),
        corpus=CORPUS,
        range_min=mining.skip,
        range_max=depth,
        absolute_margin=mining.margin,
        relative_margin=mining.relative_margin,
        max_score=mining.max_similarity,
        num_negatives=mining.negatives,
        output_scores=True,
        verbose=False,
    )
    names = [*texts().candidates]
    ours = {
        (query, names[positive], names[row]): (similarity, score)
        for query, own, result in zip(texts().queries, texts().positives, mined(mining), strict=True)
        for positive, similarity in zip(own, result.positives, strict=True)
        for row, score in zip(result.rows.tolist(), result.scores, strict=True)
    }
    theirs = {(row["query"], row["positive"], row["negative"]): row["scores"] for row in table}
    assert theirs.keys() == ours.keys() and len(theirs) > 8
    for key, scores in theirs.items():
        np.testing.assert_allclose(ours[key], scores, atol=1e-6)
