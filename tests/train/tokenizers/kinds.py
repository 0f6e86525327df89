"""One trained tokenizer of each kind, its files, and the same in `transformers`: made once for all tests of this folder."""

import dataclasses
import functools
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.hard_texts import HARD, random_characters
from train.config.data_options import TextData
from train.data import chunking
from train.data.corpus import split_corpus
from train.tokenizers import hf_files, sentencepiece_proto, unigram, xlm_unigram, xlnet_unigram
from train.tokenizers.special_tokens import SpecialTokens
from train.tokenizers.tokenizer import Kind, Tokenizer, TrainedKind
from zoo.errors import BadInput

VOCAB = 900
TRAINED: tuple[TrainedKind, ...] = ("gpt", "wordpiece", "roberta", "modernbert", "sentencepiece", "xlnet")
KINDS: tuple[Kind, ...] = (*TRAINED, "xlm-roberta")
ENCODERS: tuple[Kind, ...] = ("wordpiece", "roberta", "modernbert", "xlnet", "xlm-roberta")
"""Kinds with special tokens around a text."""
UNIGRAMS: tuple[Kind, ...] = ("sentencepiece", "xlnet", "xlm-roberta")
PIECES = {"sentencepiece": "spiece.model", "xlnet": "spiece.model", "xlm-roberta": "sentencepiece.bpe.model"}
"""File of each unigram kind's SentencePiece model."""
BERT = SpecialTokens(pad=0, unk=1, cls=2, sep=3, mask=4)
MODERNBERT = dataclasses.replace(BERT, typed=False)
ROBERTA = SpecialTokens(cls=0, pad=1, sep=2, unk=3, mask=VOCAB - 1, between=2, typed=False)
XLNET = SpecialTokens(unk=0, bos=1, eos=2, cls=3, sep=4, pad=5, mask=6, eod=7, eop=8, cls_last=True)
AWKWARD = [
    *("``Quoted'' text, ''twice'' and `once'", "It''s", "``", "''''", '"x" ``"', "'' ''"),
    "caf\u00e9 cafe\u0301 na\u00efve \u00dcber Stra\u00dfe \u0130stanbul \u01c4",
    "\u00bd \ufb01ne \u2460 x\u00b2 \uff37\uff28",
    *("In 1851, 2,000 men; 3,14 and 9, 9,, 12,a ,1", "1,", ",", "7,7,7", "\u0663, \u00b2,"),
    *("U.S. (the) \u201cCall me\u201d - a\u2013b \u2014c; \u00a35 \u20ac6.", '-- () .. ""'),
    *("", " ", "\t", "\n", "  two  spaces   and\ttabs\t\n\r\nends  ", "\u3000wide\u00a0\u2009spaces\u2028"),
    "\U0001f433\U0001f433 a\U0001f433 \U0001f469\u200d\U0001f469\u200d\U0001f467",
    "\u6f22\u5b57\u304b\u306a \ud55c\uad6d\uc5b4",
    *("The Whale's WHALE whale", "\u0416\u0416 \u0416", "\u2581a \u2581\u2581b \u2581", "\x00\x1f a\x00b", "\u0301 \u0301x"),
]


def refused(folder: Path, read: Callable[[Path], Tokenizer] = hf_files.read_tokenizer) -> str:
    """Return the line in which a folder is refused."""
    with pytest.raises(BadInput) as refusal:
        read(folder)
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


def lines(number: int = 300) -> list[str]:
    """Join awkward parts at random, the same way in every process."""
    rng = random.Random(0)
    parts = [part for text in AWKWARD for part in text.split(" ")] + ["whale", "the", ",", "''", "\u00e9", "  ", "9,"]
    return ["".join(part + rng.choice(["", " ", " ", "  "]) for part in rng.choices(parts, k=8)) for _ in range(number)]


TEXTS = [HARD, random_characters(5000), *AWKWARD, *lines()]


@functools.cache
def chapters() -> tuple[str, ...]:
    """Return the held-out chapters of the embedded book, and a hard text."""
    return (*(document.text for document in split_corpus(TextData())[1]), HARD)


@functools.cache
def trained(kind: Kind) -> Tokenizer:
    """Return the tokenizer of a kind that is trained on `chapters`."""
    if kind not in UNIGRAMS:
        return Tokenizer.train(chapters(), VOCAB, kind)
    # The same as of `Tokenizer.train`, which would train the model that `raw` trains once more.
    convert: Callable[..., dict[str, Any]] = {
        "sentencepiece": unigram.convert_unigram,
        "xlnet": xlnet_unigram.convert_xlnet_unigram,
        "xlm-roberta": xlm_unigram.convert_xlm_unigram,
    }[kind]
    return Tokenizer(convert(sentencepiece_proto.parse_spiece_model(raw(kind))))


@functools.cache
def raw(kind: Kind) -> bytes:
    """Return the SentencePiece model of a unigram kind; T5's has no sentinels, XLM-R's no padding and no mask."""
    if kind == "xlm-roberta":
        return unigram.train_spiece_model(
            [*unigram.training_lines(chapters())], VOCAB - 2, unk_id=0, bos_id=1, eos_id=2, pad_id=-1
        )
    return (
        unigram.train_t5_model(chapters(), VOCAB - 100)
        if kind == "sentencepiece"
        else xlnet_unigram.train_xlnet_model(chapters(), VOCAB)
    )


def trained_from_pieces() -> list[str]:
    """Return the fingerprints of tokenizers trained on pieces of about 100 characters. Leaves `train.data.chunking` changed."""
    chunking.CHUNK = 100
    parts = [piece for text in chapters() for piece, _ in chunking.cut_chunks([text])]
    assert len(parts) > 50 * len(chapters())
    return [Tokenizer.train(iter(parts), VOCAB, kind).fingerprint for kind in TRAINED]


@functools.cache
def written(kind: Kind) -> Path:
    """Return a folder with the files that are written of the trained tokenizer. Tests must not change it."""
    from tests.support.environment import SCRATCH

    folder = SCRATCH / "tokenizers" / kind
    folder.mkdir(parents=True)
    hf_files.write_tokenizer(folder, trained(kind), longest=None)
    name_family(folder, kind)
    return folder


def name_family(folder: Path, kind: Kind) -> None:
    """Write a config.json by which `transformers` knows the class of the tokenizer."""
    family = {"gpt": "gpt2", "wordpiece": "bert", "sentencepiece": "t5"}.get(kind, kind)
    (folder / "config.json").write_text(json.dumps({"model_type": family}))


@functools.cache
def published(kind: Kind) -> Path:
    """Return a folder as unigram models were released first: a SentencePiece model alone."""
    folder = written(kind).with_name(f"{kind}-published")
    folder.mkdir()
    (folder / PIECES[kind]).write_bytes(raw(kind))
    name_family(folder, kind)
    return folder


@functools.cache
def theirs(kind: Kind) -> Any:
    """Return the tokenizer that `transformers` makes of what is written."""
    return auto(written(kind))


def auto(folder: Path, **options: Any) -> Any:
    import transformers

    return transformers.AutoTokenizer.from_pretrained(folder, **options)


def as_it_is(folder: Path) -> Any:
    """Return the tokenizer of `transformers` that takes its rules and templates from tokenizer.json."""
    import transformers

    return transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))


def content(kind: Kind) -> dict[str, Any]:
    """Return a new copy of the trained tokenizer.json."""
    return json.loads((written(kind) / "tokenizer.json").read_text())


@functools.cache
def library(kind: Kind) -> Any:
    """Return the same model in SentencePiece's own library."""
    import sentencepiece

    return sentencepiece.SentencePieceProcessor(model_proto=raw(kind))
