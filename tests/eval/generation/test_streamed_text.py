"""A streamed text, part by part, for every kind of tokenizer: joined, the parts are the decoded text up to the stop string."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eval.generation.generation_options import Decoding
from eval.generation.generator import _Text
from train.tokenizers import hf_files, unigram
from train.tokenizers.tokenizer import CLEAN, Tokenizer

TEXT = "The caf\u00e9 , it ' s n't seen . \u65e5\u672c\u8a9e \U0001f389 \U0001f469\u200d\U0001f469 !  don't ... ? Oh ' . x 've"
KINDS: tuple[Any, ...] = ("gpt", "wordpiece", "roberta", "modernbert", "sentencepiece", "xlnet")


def parts(tokenizer: Tokenizer, ids: Sequence[int], stop: tuple[str, ...] = ()) -> tuple[list[str], str]:
    """Return the parts of a text whose tokens are sampled one at a time, and the text."""
    decoding = Decoding(limit=len(ids), stop=stop)
    text = _Text(tokenizer, decoding, 0, 0, np.zeros(1, np.int32), 0, continues_prompt=True)
    streamed: list[str] = []
    for number in ids:
        text.take([int(number)], [True])
        if part := text.final()[len("".join(streamed)) :]:
            streamed.append(part)
        if text.ended:
            break
    return streamed, text.final()


@pytest.mark.parametrize("clean", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_parts_join_to_the_text(kind: Any, clean: bool, rng: np.random.Generator) -> None:
    tokenizer = Tokenizer.train([TEXT] * 5, 400, kind).with_files({CLEAN: clean}, None)
    words = TEXT.split(" ")
    for trial in range(60):
        mixed = tokenizer.encode(" ".join(rng.permutation(words))) if trial % 2 else rng.integers(0, tokenizer.vocab_size, 15)
        streamed, text = parts(tokenizer, mixed.tolist(), ("n ' s", "it ,", "\u672c") if trial % 3 else ())
        assert "".join(streamed) == text
        assert "" not in streamed
    assert len(parts(tokenizer, tokenizer.encode(TEXT).tolist())[0]) > 5


def test_bytes_of_a_character_wait_for_the_last_one(tmp_path: Path) -> None:
    """A unigram model that spells unknown characters as bytes decodes each byte of an incomplete one on its own."""
    names: dict[str, Any] = dict(pad_id=0, eos_id=1, unk_id=2, bos_id=-1, pad_piece="<pad>", eos_piece="</s>", unk_piece="<unk>")
    symbols = [f"{unigram.SPACE}<extra_id_{number}>" for number in reversed(range(5))]
    lines = ["the whale swims in the sea", *"0123456789ABCDEFx<>"] * 20
    raw = unigram.train_spiece_model(lines, 330, byte_fallback=True, user_defined_symbols=symbols, **names)
    (tmp_path / "spiece.model").write_bytes(raw)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mt5"}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"extra_ids": 0}))
    tokenizer = hf_files.read_tokenizer(tmp_path)
    ids = tokenizer.encode("whale \U0001f389 \u6f22 swims").tolist()
    streamed, text = parts(tokenizer, ids)
    assert "".join(streamed) == text == " whale \U0001f389 \u6f22 swims"
    assert not any("\ufffd" in part for part in streamed)
