"""Where sentences end, by the ids alone: as a reader of the text would say, and all of the text in order."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.encoder_text import roberta, stream, uncased
from train.rows import sentences as module
from train.rows.sentences import find_sentences
from train.tokenizers.tokenizer import Tokenizer

BOTH = [
    "He left.| She stayed!| Why?| Nobody knows",
    "\u201cStop!\u201d| he cried.| (It was late.)| He did.",
    "Mr. Starbuck and Mrs. Hussey met Dr. Watson of St. Malo.| They spoke.",
    "It is 3.14 metres long.| In 1851.| Ten men",
    "J. R. Smith saw it at 5 a.m. on deck.| So did I.| He",
    "It was John's.| It was his.| It\u2019s.",
    "What?!| Really...| Yes.",
    "Alms.| Arms.| Foghorn.",
]
SPACES = [
    "See example.com now.| Then stop.",
    'He said "No."| "Yes," she said.',
    "Wait...then go.| It sank in 1851.| 3 ships",
    'He left.\n\n| "Why?"',
    'He left.\n\n|"Why?"\n|\u201cNo.\u201d\n| \n Mr.\nStarbuck',
    "She saw it!\u2014Ahab.| The U.S. coast. ",
]
MERGES = " ".join([*BOTH, *SPACES]).replace("|", "")
TOKENIZERS = {
    "gpt": Tokenizer.train([MERGES], 300),
    "wordpiece": uncased(["mr", "mrs", "st", "alms"]),
    "bytes": roberta(),
    "merges": roberta([MERGES] * 3, 500),
}
# WordPiece does not know of spaces.
CASES = [(name, text) for name in TOKENIZERS for text in (BOTH if name == "wordpiece" else BOTH + SPACES)]


def found(texts, tokenizer, longest=1 << 20):
    """The ids of each sentence, document after document; checks that they are the documents."""
    tokens = stream(texts, tokenizer)
    ranges = find_sentences(tokens, tokenizer, longest)
    assert {array.dtype.name for array in ranges} == {"int64"}
    starts = tokens.offsets[ranges.document] + ranges.start
    together = np.concatenate([np.arange(start, start + size) for start, size in zip(starts, ranges.size, strict=True)])
    assert (together == np.flatnonzero(tokens.ids != tokenizer.end_of_text)).all()
    assert (ranges.size >= 1).all() and (ranges.size <= longest).all()
    assert (ranges.start + ranges.size < np.diff(tokens.offsets)[ranges.document]).all()
    return [tokens.ids[start : start + size].tolist() for start, size in zip(starts, ranges.size, strict=True)]


def told(texts, tokenizer, cut=True):
    """The sentences as text, or the texts themselves. Where the bytes are all there is, a space goes with what is before it."""
    parts = found(texts, tokenizer) if cut else map(tokenizer.encode, texts)
    return [tokenizer.decode(ids).strip() for ids in parts]


@pytest.mark.parametrize(("name", "text"), CASES)
def test_sentences_end_where_a_reader_ends_them(name, text):
    tokenizer = TOKENIZERS[name]
    assert told([text.replace("|", "")], tokenizer) == told(text.split("|"), tokenizer, cut=False)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_no_sentence_reaches_over_the_end_of_a_document(name):
    """A document may begin with what could end the one before it, be empty, or have no full stop."""
    texts = [". a", "b", "", "cc. d", "Mr", ". e", "3.", "1", ""]
    expected = [".", "a", "b", "cc.", "d", "Mr", ".", "e", "3.", "1"]
    assert told(texts, TOKENIZERS[name]) == told(expected, TOKENIZERS[name], cut=False)


@settings(deadline=None, max_examples=8)
@given(st.lists(st.text("ab.!? \n\"'3I(m)r", max_size=40), min_size=1, max_size=5), st.integers(1, 9), st.integers(1, 9))
def test_sentences_are_the_documents_whatever_they_are_made_of(texts, longest, chunk):
    for tokenizer in TOKENIZERS.values():
        if not "".join(texts).strip():
            continue
        whole = found(texts, tokenizer)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "IDS_PER_CHUNK", chunk)
            assert found(texts, tokenizer) == whole
        cut = [ids[at : at + longest] for ids in whole for at in range(0, len(ids), longest)]
        assert found(texts, tokenizer, longest) == cut
