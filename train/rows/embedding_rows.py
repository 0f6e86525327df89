"""Rows of embedding models: texts that a model encodes one by one and an objective compares."""

from collections.abc import Iterator, Sequence

import numpy as np

from train.config.embedding_options import Contrastive, RankedTexts, ScoredPairs, Similarity
from train.config.ranking_options import Ranking, ScoredTexts
from train.config.sentence_denoising_options import PlainTexts, SentenceDenoising
from train.data.example_types import Ranked, ScoredPair, TaughtRanked
from train.rows.example_rows import ExampleRow, encoded_texts, fill_template, refuse_long, special_tokens_of
from train.tokenizers.tokenizer import Tokenizer
from zoo.errors import BadInput


@refuse_long
def ranked_rows(
    examples: Sequence[Ranked], tokenizer: Tokenizer, options: RankedTexts, length: int, *, group: Contrastive
) -> Iterator[ExampleRow]:
    """Yield `cls text sep` for the query, its positive and `group.negatives` negatives, the prompts before each text.

    Rows of a batch may have equal texts: with `group.mask_duplicates` they are no negatives, so batches are sampled without
    regard to their texts. The labels, int32 [C], number the texts without prompts, from 0; equal texts have equal numbers.

    Raises:
        BadInput: an example without a positive, or with too few negatives.
    """
    numbers: dict[str, int] = {}
    texts_of = [example_texts(example, "contrastive", group.negatives, unsupervised=group.unsupervised) for example in examples]
    labels = [np.array([numbers.setdefault(text, len(numbers)) for text in texts], np.int32) for texts in texts_of]
    yield from _rows([_prompted(texts, group) for texts in texts_of], labels, tokenizer, length)


@refuse_long
def group_rows(
    examples: Sequence[TaughtRanked], tokenizer: Tokenizer, options: ScoredTexts, length: int, *, group: Ranking
) -> Iterator[ExampleRow]:
    """Yield the texts of `ranked_rows`; the labels, float32 [C - 1], are the teacher's scores, or zeros if there are none.

    Raises:
        BadInput: an example without a positive, with too few negatives, or without scores that the loss needs.
    """
    texts_of = [example_texts(example, "ranking", group.negatives) for example in examples]
    for example in examples:
        if group.loss != "triplet" and not example.scores:
            fix = "name their column with --labelled.scores, or choose --ranking.loss triplet"
            raise BadInput(f"{example.origin}: no teacher's scores, and --ranking.loss is {group.loss}; {fix}")
    size = 1 + group.negatives
    labels = [np.array(example.scores[:size] or (0.0,) * size, np.float32) for example in examples]
    yield from _rows([_prompted(texts, group) for texts in texts_of], labels, tokenizer, length)


@refuse_long
def plain_rows(
    examples: Sequence[Ranked], tokenizer: Tokenizer, options: PlainTexts, length: int, *, group: SentenceDenoising
) -> Iterator[ExampleRow]:
    """Yield `cls text sep` for each query, which the objective changes; there is no label, int32 [0]."""
    labels = [np.zeros(0, np.int32)] * len(examples)
    yield from _rows([[example.query] for example in examples], labels, tokenizer, length)


@refuse_long
def scored_rows(
    examples: Sequence[ScoredPair], tokenizer: Tokenizer, options: ScoredPairs, length: int, *, group: Similarity
) -> Iterator[ExampleRow]:
    """Yield `cls text sep` for both texts of a pair; the label is the score, float32 [1].

    Raises:
        BadInput: a score that no cosine has, if it is compared with one.
    """
    for example in examples:
        if group.loss == "cosine" and not -1 <= example.score <= 1:
            fix = "a cosine is -1 to 1; divide the scores by their largest, or choose --similarity.loss cosent"
            raise BadInput(f"{example.origin}: the score {example.score:g} is compared with a cosine; {fix}")
    labels = [np.array([example.score], np.float32) for example in examples]
    yield from _rows([[example.first, example.second] for example in examples], labels, tokenizer, length)


def _rows(
    texts_of: Sequence[Sequence[str]], labels: Sequence[np.ndarray], tokenizer: Tokenizer, length: int
) -> Iterator[ExampleRow]:
    """Yield the rows of examples from the texts and the labels of each."""
    special = special_tokens_of(tokenizer)
    encoded = encoded_texts(tokenizer, (text for texts in texts_of for text in texts))
    for number, texts in enumerate(texts_of):
        inputs, sizes = zip(*(fill_template(encoded[text], None, special, length) for text in texts), strict=True)
        yield ExampleRow(inputs, labels[number], np.ones(1, np.float32), number, size=max(sizes))


def _prompted(texts: Sequence[str], group: Contrastive | Ranking) -> list[str]:
    """Return the texts of an example with the prompts before them."""
    return [group.query_prompt + texts[0], *(group.document_prompt + text for text in texts[1:])]


def example_texts(example: Ranked, group: str, negatives: int, *, unsupervised: bool = False) -> list[str]:
    """Return the query of an example, its positive and its first negatives.

    Args:
        group: the options of the objective, as in their names on the command line.
        unsupervised: take the query as its positive.

    Raises:
        BadInput: there is no positive, or there are fewer negatives.
    """
    if not (example.positive or unsupervised):
        fix = "name its column with --labelled.positive" + ", or choose --contrastive.unsupervised" * (group == "contrastive")
        raise BadInput(f"{example.origin}: the query has no positive; {fix}")
    if len(example.negatives) < negatives:
        count = f"{len(example.negatives)} negatives, and --{group}.negatives is {negatives}"
        fix = "write more, name their column with --labelled.negatives, or choose fewer"
        raise BadInput(f"{example.origin}: {count}; {fix}")
    positive = example.query if unsupervised else example.positive
    return [example.query, positive, *example.negatives[:negatives]]
