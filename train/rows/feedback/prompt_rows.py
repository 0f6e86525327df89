"""Rows of prompts, to which the model in training responds."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from train.config.option_groups import Prompts
from train.data.example_types import Prompt
from train.rows.feedback.preference_rows import Side
from train.rows.feedback.response_rows import ResponseRow
from train.rows.seq2seq_rows import text_special_tokens_of
from train.tokenizers.tokenizer import Tokenizer
from zoo.errors import BadInput


def encode_rows(
    examples: Sequence[Prompt], tokenizer: Tokenizer, cfg: Any, options: Prompts, length: int, tokens: int
) -> tuple[list[ResponseRow], list[str]]:
    """Return the rows of prompts, without a response, and a message for each that is too long and left out.

    A prompt is encoded alone, as for generation; in what a chat template has written, names of special tokens are those tokens. A
    decoder's empty prompt is end-of-text; an encoder-decoder's is its end mark.
    With --labelled.truncate the beginning of a long prompt is cut; with --labelled.skip-bad it is left out.

    Args:
        cfg: configuration of the model.
        length: tokens of a row, or of an encoder-decoder's source.
        tokens: most tokens of a response, for which a decoder's row has room.

    Raises:
        BadInput: the model reads a prefix both ways, for which prompts have no layout; a prompt is too long or spells a special
            token; or an encoder-decoder's tokenizer lacks special tokens.
    """
    if getattr(cfg, "architecture", "") == "decoder":
        raise BadInput("model.architecture decoder: prompts need encoder_decoder, shared, or a model of another family")
    encodes_source = cfg.is_encoder_decoder
    end = [text_special_tokens_of(tokenizer).end] if encodes_source else []
    empty = np.array([] if encodes_source else [tokenizer.begin_of_text])
    room = length if encodes_source else length - tokens
    fix = f"a response has up to --rollout.tokens {tokens}; choose a larger length, or fewer tokens"
    if room < 1:
        raise BadInput(f"--data.length {length}: a row has no room for a prompt, because {fix}")
    for example in (example for example in examples if not example.messages):
        if name := next((name for name in tokenizer.special_names if name in example.prompt), None):
            fix = "a prompt is encoded as text, without special tokens; remove it"
            raise BadInput(f"{example.origin}: the prompt spells the special token {name}, and {fix}")
    rows, too_long = [], []
    texts = [example.prompt for example in examples]
    is_rendered = bool(examples) and bool(examples[0].messages)
    for number, ids in enumerate(tokenizer.encode_rendered(texts) if is_rendered else tokenizer.encode_many(texts)):
        prompt = np.concatenate([ids if len(ids) else empty, end]).astype(np.int32)
        if len(prompt) > room and not options.truncate:
            too_long.append((len(prompt), _too_long(examples[number].origin, len(prompt), length, tokens, encodes_source)))
        else:
            cut = prompt[-room:]
            side = Side(np.zeros(0, np.int32), 0, cut) if encodes_source else Side(cut, len(cut))
            rows.append(ResponseRow(side, example=number))
    if too_long and not options.skip_bad:
        count = f" (the longest of {len(too_long):,} that are too long, of {len(examples):,})" if len(too_long) > 1 else ""
        raise BadInput(max(too_long)[1] + count)
    return rows, [message for _, message in too_long]


def row_bytes(rows: Iterable[ResponseRow]) -> Iterable[bytes]:
    """Yield the bytes of all ids, for a fingerprint."""
    for row in rows:
        yield f"{row.prompt.size} ".encode() + row.prompt.tobytes()


def _too_long(origin: str, size: int, length: int, tokens: int, encodes_source: bool) -> str:
    skip = "cut the beginning of prompts with --labelled.truncate, or leave long ones out with --labelled.skip-bad"
    if encodes_source:
        return f"{origin}: a prompt of {size} tokens, and a source has {length}; choose a longer --data.length, {skip}"
    what = f"a prompt of {size} tokens, and a row of {length} has room for {length - tokens} before --rollout.tokens {tokens}"
    return f"{origin}: {what}; choose a longer --data.length, {skip}"
