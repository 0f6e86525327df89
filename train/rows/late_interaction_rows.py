"""Rows of queries and documents whose tokens are compared: markers, the expansion of queries, and skipped punctuation."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from jaxtyping import Int32

from train.config.embedding_options import RankedTexts
from train.config.late_interaction_options import LateInteraction
from train.data.example_types import Ranked
from train.rows.embedding_rows import example_texts
from train.rows.example_rows import ExampleRow, TemplateIds, encoded_texts, fill_template, refuse_long, special_tokens_of
from train.tokenizers.special_tokens import SpecialTokens
from train.tokenizers.tokenizer import Tokenizer
from zoo.errors import BadInput
from zoo.multi_vector_files import PUNCTUATION


@refuse_long
def token_rows(
    examples: Sequence[Ranked], tokenizer: Tokenizer, options: RankedTexts, length: int, *, group: LateInteraction
) -> Iterator[ExampleRow]:
    """Yield `cls text sep` for the query, its positive and its first negatives, after the markers of their prompts.

    A query is followed by mask tokens up to `group.query_length`. The labels are those of `ranked_rows`.

    Raises:
        BadInput: an example without a positive, with too few negatives, or with a query that is too long.
    """
    special, numbers = special_tokens_of(tokenizer), dict[str, int]()
    texts_of = [example_texts(example, "late-interaction", group.negatives) for example in examples]
    firsts, others = (dict.fromkeys(text for texts in texts_of for text in texts[part]) for part in (slice(1), slice(1, None)))
    queries = dict(zip(firsts, side_ids(tokenizer, firsts, group.query_prompt), strict=True))
    documents = dict(zip(others, side_ids(tokenizer, others, group.document_prompt), strict=True))
    for number, (query, *rest) in enumerate(texts_of):
        inputs, size = fill_template(queries[query], None, special, group.query_length)
        excess = max(0, size - group.query_length)
        if excess and not (options.truncate or options.skip_bad):
            fix = "choose a longer one, leave long ones out with --labelled.skip-bad, or cut them with --labelled.truncate"
            count = f"the query has {size} tokens, and --late-interaction.query-length is {group.query_length}"
            raise BadInput(f"{examples[number].origin}: {count}; {fix}")
        if group.query_expansion:
            inputs = expanded(inputs, special, group.query_length)
        filled, sizes = zip(*(fill_template(documents[text], None, special, length) for text in rest), strict=True)
        labels = np.array([numbers.setdefault(text, len(numbers)) for text in (query, *rest)], np.int32)
        # A query that is too long makes its row too long.
        size = max(*sizes, length + excess if excess else 0)
        yield ExampleRow((inputs, *filled), labels, np.ones(1, np.float32), number, size=size)


def side_ids(
    tokenizer: Tokenizer, texts: Iterable[str], prompt: str, *, lowercase: bool = False, any_entry: bool = True
) -> list[Int32[np.ndarray, " n"]]:
    """Return the ids of texts after a prompt, without special tokens of the model.

    If the prompt, or its part up to the first space, is an entry of the vocabulary, it is that token, and the rest of the prompt
    is a part of each text. Otherwise all of it is.

    Args:
        lowercase: change texts, but not the token of the prompt, to lower case.
        any_entry: False: only a special token is one, as in files of sentence-transformers.
    """
    entries = tokenizer.ids() if any_entry else tokenizer.special_names
    marker = next((part for part in (prompt, prompt.partition(" ")[0]) if part in entries), "")
    strings = [prompt[len(marker) :] + text for text in texts]
    strings = [text.lower() for text in strings] if lowercase else strings
    encoded = encoded_texts(tokenizer, strings)
    ids = np.array([entries[marker]] if marker else [], np.int32)
    return [np.concatenate([ids, encoded[text]]) for text in strings]


def expanded(inputs: TemplateIds, special: SpecialTokens, length: int) -> TemplateIds:
    """Return a query with mask tokens behind it, up to `length` tokens."""
    more = length - len(inputs.ids)
    return TemplateIds(np.pad(inputs.ids, (0, more), constant_values=special.mask), np.pad(inputs.types, (0, more)))


def without_expansion(ids: Int32[np.ndarray, " n"], special: SpecialTokens) -> int:
    """Return the number of tokens of a query without the mask tokens behind it."""
    return int(np.flatnonzero(ids != special.mask)[-1]) + 1


def skipped_ids(tokenizer: Tokenizer, words: bool | Sequence[str]) -> Int32[np.ndarray, " n"]:
    """Return the ids of the tokens of documents that are not compared.

    Args:
        words: entries of the vocabulary, of which those that do not exist are ignored; True: the punctuation of ASCII.
    """
    entries, names = tokenizer.ids(), PUNCTUATION if words is True else words or ()
    return np.array(sorted(entries[word] for word in names if word in entries), np.int32)
