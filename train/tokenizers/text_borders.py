"""Borders in texts: where a text may be cut without changing its ids, and where its ids end if another text follows it."""

from collections.abc import Iterable, Iterator
from typing import Any, Literal

import numpy as np
from jaxtyping import Int

from train.data.chunking import LONGEST_CHUNK, cut_chunks
from train.tokenizers import byte_tokens, xlnet_unigram
from zoo.errors import BadInput

Cuts = Literal["anywhere", "spaces", "nowhere"]
SPACES = " \n\r\t"


def safe_cuts(content: Any) -> Cuts:
    """Return where a text may be cut without changing its ids.

    The cuts of `train.data.chunking` are safe with GPT-2's rules and with BERT's, which divide at every space and around all
    punctuation; with those of ModernBERT, T5 and XLNet only cuts before spaces are safe. No normalization depends on text across
    a space.
    """
    rules, normalizer = content.get("pre_tokenizer") or {}, content.get("normalizer")
    rules_type, normalizer_type = rules.get("type"), (normalizer or {}).get("type")
    if not all(token["special"] for token in content.get("added_tokens", ())):
        return "nowhere"
    is_bytes = rules_type == "ByteLevel" and not rules.get("add_prefix_space") and rules.get("use_regex", True)
    if rules_type == "ByteLevel" and normalizer_type is None and byte_tokens.is_byte_tokens(content):
        return "anywhere"
    if (is_bytes and normalizer_type is None) or (
        rules_type == "BertPreTokenizer" and normalizer_type in (None, "BertNormalizer")
    ):
        return "anywhere"
    if is_bytes and normalizer_type == "NFC":
        return "spaces"
    parts: list[Any] = rules.get("pretokenizers", []) if rules_type == "Sequence" else []
    is_unigram = [part["type"] for part in parts] == ["WhitespaceSplit", "Metaspace"]
    # Older files have `add_prefix_space`, newer ones `prepend_scheme`.
    prefixed = is_unigram and parts[1].get("prepend_scheme", "always") == "always" and parts[1].get("add_prefix_space", True)
    if prefixed and (normalizer_type in (None, "Precompiled") or xlnet_unigram.is_normalizer(normalizer)):
        return "spaces"
    return "nowhere"


def cut_texts(texts: Iterable[tuple[str, bool]], cuts: Cuts) -> Iterator[tuple[str, bool]]:
    """Yield (chunk, True if it ends a text), cut so that the ids of a text are those of its chunks, joined.

    Args:
        texts: whole texts, or the chunks of `train.data.chunking.cut_chunks`, in the same form.

    Raises:
        BadInput: a text is longer than can be encoded at once.
    """
    pending: list[str] = []
    for text, last in texts:
        for chunk, is_end in cut_chunks([text]) if cuts != "nowhere" else [(text, True)]:
            if pending and (cuts == "anywhere" or (cuts == "spaces" and chunk[:1] in SPACES)):
                yield "".join(pending), False
                pending = []
            pending.append(chunk)
            if sum(map(len, pending)) > LONGEST_CHUNK:
                raise BadInput(
                    f"a text of more than {LONGEST_CHUNK:,} characters: this tokenizer's rules need each text whole; "
                    "split it into several documents (a .jsonl line each)"
                )
            if is_end and last:
                yield "".join(pending), True
                pending = []


def common_prefix_length(first: Int[np.ndarray, " a"], joined: Int[np.ndarray, " b"]) -> int:
    """Return the length of the common prefix of the ids of a text and the ids of a longer text that begins with it.

    The length is the border in `joined` between both texts. A token across the end of the first text lies after the border, and
    so do all tokens before it that a merge with the second text has changed. The ids of both sides still spell the joined text.
    """
    shared = min(len(first), len(joined))
    differing = np.flatnonzero(first[:shared] != joined[:shared])
    return int(differing[0]) if differing.size else shared
