"""Byte-level BPE, as the content of a tokenizer.json: GPT-2's (Radford et al. 2019, section 2.2) and RoBERTa's."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors, trainers

from train.tokenizers.special_tokens import ROBERTA

END_OF_TEXT = "<|endoftext|>"


def gpt(vocab: Mapping[str, int], merges: Sequence[tuple[str, str]], *, prefix_space: bool = False) -> dict[str, Any]:
    """Return GPT-2's tokenizer. If the vocabulary lacks end-of-text, it gets the next id.

    Args:
        prefix_space: add a space before a text that does not begin with one.
    """
    core = _core(models.BPE(vocab=dict(vocab), merges=list(merges)), prefix_space)
    core.add_special_tokens([END_OF_TEXT])
    return json.loads(core.to_str())


def roberta(vocab: Mapping[str, int], merges: Sequence[tuple[str, str]], *, prefix_space: bool = False) -> dict[str, Any]:
    """Return RoBERTa's tokenizer (Liu et al. 2019, section 4.4).

    The template in it is for other programs; this one adds special tokens itself.

    Args:
        prefix_space: add a space before a text that does not begin with one.
    """
    core = _core(models.BPE(vocab=dict(vocab), merges=list(merges)), prefix_space)
    # As released, the mask absorbs the space before it (`lstrip`): it replaces a word with its space.
    core.add_special_tokens(
        [
            AddedToken(name, special=True, normalized=False, lstrip=name == ROBERTA["mask"])
            for name in ROBERTA.values()
            if name in vocab
        ]
    )
    cls, sep = ROBERTA["cls"], ROBERTA["sep"]
    if cls in vocab and sep in vocab:
        # Positional, because the argument names differ between versions. Trimmed offsets: the span of a word excludes its space.
        template = processors.RobertaProcessing((sep, vocab[sep]), (cls, vocab[cls]), True, prefix_space)
        core.post_processor = template  # pyright: ignore[reportAttributeAccessIssue]
    return json.loads(core.to_str())


def train_gpt(texts: Iterable[str], vocab: int) -> dict[str, Any]:
    """Train up to `vocab` entries: end-of-text, the 256 bytes, then merges, most frequent pair first."""
    return json.loads(_trained(texts, vocab, [END_OF_TEXT]).to_str())


def train_roberta(texts: Iterable[str], vocab: int) -> dict[str, Any]:
    """Train up to `vocab` entries: four special tokens, the 256 bytes, merges, most frequent pair first, and the mask."""
    model = json.loads(_trained(texts, vocab - 1, [name for role, name in ROBERTA.items() if role != "mask"]).to_str())["model"]
    entries = {**model["vocab"], ROBERTA["mask"]: len(model["vocab"])}
    return roberta(entries, [(first, second) for first, second in model["merges"]])


def _core(model: models.BPE, prefix_space: bool = False) -> tokenizers.Tokenizer:
    core = tokenizers.Tokenizer(model)
    rules = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    core.pre_tokenizer = rules  # pyright: ignore[reportAttributeAccessIssue]
    core.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    return core


def _trained(texts: Iterable[str], vocab: int, special: list[str]) -> tokenizers.Tokenizer:
    core = _core(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(iter(texts), trainer)
    return core
