"""ByT5's tokens (Xue et al. 2022, section 3.1): three special tokens, the 256 bytes of UTF-8, and sentinels; nothing is learned.

It is written as byte-level BPE without merges, so every byte of a text is a token, with the id byte + 3.
"""

import json
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors

from train.tokenizers.special_tokens import TEXT, sentinel_name

SENTINELS = 125
"""Number of sentinels in the class of `transformers`, which fill the vocabulary up to 384."""


def byt5_tokenizer_json(sentinels: int = SENTINELS) -> dict[str, Any]:
    """Return a tokenizer.json of ByT5's tokens. Other than T5's, the sentinels count up: <extra_id_0> has the id 259.

    The template in it is for other programs; this one adds special tokens itself.
    """
    special = [*TEXT.values(), *(sentinel_name(number) for number in range(sentinels))]
    names = [*TEXT.values(), *_letters(), *special[len(TEXT) :]]
    core = tokenizers.Tokenizer(models.BPE(vocab={name: number for number, name in enumerate(names)}, merges=[]))
    rules = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.pre_tokenizer = rules  # pyright: ignore[reportAttributeAccessIssue]
    core.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    core.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in special])
    end = TEXT["end"]
    core.post_processor = processors.TemplateProcessing(  # pyright: ignore[reportAttributeAccessIssue]
        single=f"$A {end}", pair=f"$A {end} $B {end}", special_tokens=[(end, names.index(end))]
    )
    return json.loads(core.to_str())


def is_byte_tokens(content: Any) -> bool:
    """Return whether a tokenizer.json has ByT5's special tokens, then the bytes in order, and no merges."""
    model = content.get("model") or {}
    entries = model.get("vocab") or {}
    is_unmerged = model.get("type") == "BPE" and not model.get("merges")
    return is_unmerged and all(entries.get(name) == number for number, name in enumerate((*TEXT.values(), *_letters())))


def _letters() -> list[str]:
    """Return the character by which byte-level BPE spells each byte (openai/gpt-2, `encoder.py`).

    Printable characters of Latin-1 stand for themselves, the other bytes for the characters from 256 on.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) if byte in printable else chr(256 + others.index(byte)) for byte in range(256)]
