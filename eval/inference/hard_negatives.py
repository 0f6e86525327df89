"""Hard negatives of queries: texts that a model finds similar to a query, and that do not belong to it.

Source: Karpukhin et al. 2020, section 3.2; Moreira et al. 2024, "NV-Retriever", section 3 (thresholds by the positive's score).
The rules are those of `mine_hard_negatives` of sentence-transformers; in addition, a query is no negative of its own.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool, Float32, Int64

from eval.inference.batch_loop import Progress, no_progress
from eval.inference.encoder_inputs import Mining
from eval.inference.encoder_runner import Text
from eval.inference.top_k import top_k
from train.data.example_types import Ranked
from zoo.errors import BadInput


class QueryTexts(NamedTuple):
    """Queries with their positives, and all candidates; equal texts are one."""

    queries: dict[str, Text]
    candidates: dict[str, Text]
    """The texts of the corpus, then the positives."""
    positives: list[list[int]]
    """Numbers of the positives of each query among the candidates."""
    excluded: list[set[int]]
    """Numbers of the candidates that are no negatives of a query: its positives, and the query itself."""


class MinedQuery(NamedTuple):
    """The negatives of a query."""

    positives: Float32[np.ndarray, " P"]
    """Similarities of its positives, in the order of `QueryTexts.positives`."""
    rows: np.ndarray
    """Numbers of the negatives among the candidates, in descending order of similarity."""
    scores: Float32[np.ndarray, " n"]
    """Their similarities."""


def query_texts(examples: Sequence[Ranked], corpus: Sequence[Text]) -> QueryTexts:
    """Return the different queries and candidates of the examples and the corpus, in their order.

    Raises:
        BadInput: an example without a positive.
    """
    for example in examples:
        if not example.positive:
            raise BadInput(f"{example.origin}: the query has no positive; name its column with --labelled.positive")
    candidates: dict[str, Text] = {}
    for text in (*corpus, *(Text(example.origin, example.positive) for example in examples)):
        candidates.setdefault(text.text, text)
    numbers = {text: number for number, text in enumerate(candidates)}
    queries: dict[str, Text] = {}
    positives: dict[str, dict[int, None]] = {}
    for example in examples:
        queries.setdefault(example.query, Text(example.origin, example.query))
        positives.setdefault(example.query, {})[numbers[example.positive]] = None
    own = [[*positives[query]] for query in queries]
    excluded = [{*rows, *([numbers[query]] if query in numbers else [])} for query, rows in zip(queries, own, strict=True)]
    return QueryTexts(queries, candidates, own, excluded)


def mine_negatives(
    texts: QueryTexts,
    queries: Float32[np.ndarray, "Q D"],
    candidates: Float32[np.ndarray, "N D"],
    mining: Mining,
    *,
    mesh: Mesh,
    progress: Progress = no_progress,
) -> list[MinedQuery]:
    """Return the negatives of each query; fewer than `mining.negatives` where there are not so many.

    Args:
        queries: their vectors, whose dot product with those of the candidates is the similarity.
        mesh: devices that the search is divided over, which do not change the result.
        progress: called with (candidates done, all candidates).

    Raises:
        BadInput: see `top_k`.
    """
    deepest = mining.depth + max(map(len, texts.excluded))
    _, rows = top_k(queries, candidates, deepest, mesh=mesh, progress=progress)
    return [mine_query(number, queries[number], candidates, rows[number], texts, mining) for number in range(len(rows))]


def mine_query(
    number: int,
    query: Float32[np.ndarray, " D"],
    candidates: Float32[np.ndarray, "N D"],
    ranked: np.ndarray,
    texts: QueryTexts,
    mining: Mining,
) -> MinedQuery:
    """Return the negatives of a query.

    Args:
        ranked: numbers of the most similar candidates, at least `mining.depth` of them besides the excluded ones, or all.
    """
    excluded = texts.excluded[number]
    rows = np.array([row for row in ranked.tolist() if row not in excluded][: mining.depth], np.int64)
    # Sums in float64 do not depend on the number of rows, so that equal vectors have equal similarities.
    positives, scores = (
        (candidates[part].astype(np.float64) * query).sum(1).astype(np.float32) for part in (texts.positives[number], rows)
    )
    order = np.argsort(-scores, kind="stable")
    rows, scores = rows[order], scores[order]
    places = choose_negatives(scores, float(positives.min()), mining, number)
    return MinedQuery(positives, rows[places], scores[places])


def admitted(scores: Float32[np.ndarray, " K"], positive: float, options: Mining) -> Bool[np.ndarray, " K"]:
    """Return whether candidates with these similarities pass all thresholds.

    Args:
        positive: similarity of the positive; of several, that of the least similar one.
    """
    passes = np.ones(len(scores), bool)
    if options.margin is not None:
        passes &= scores < positive - options.margin
    if options.relative_margin is not None:
        # A share of the absolute value, so that the threshold is below a negative similarity too.
        passes &= scores < positive - options.relative_margin * abs(positive)
    if options.max_similarity is not None:
        passes &= scores <= options.max_similarity
    return passes


def choose_negatives(scores: Float32[np.ndarray, " K"], positive: float, options: Mining, number: int) -> Int64[np.ndarray, " n"]:
    """Return the places of the negatives among candidates in descending order of similarity; fewer if there are not so many.

    Args:
        positive: as in `admitted`.
        number: number of the query; with the seed it determines what is sampled.
    """
    places = np.flatnonzero(admitted(scores, positive, options))[options.skip :]
    if options.sample and len(places) > options.negatives:
        rng = np.random.default_rng((options.seed, number))
        return np.sort(rng.choice(places, options.negatives, replace=False))
    return places[: options.negatives]
