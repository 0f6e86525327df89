"""Byte-level BPE, as the content of a tokenizer.json: GPT-2's (Radford et al. 2019, section 2.2), and those of its successors."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors, trainers

from train.tokenizers.special_tokens import BERT, END_OF_TEXT, ROBERTA

QWEN_PATTERN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
"""Pattern of the words of Qwen's class: those of GPT-4, with each digit alone."""


def gpt_tokenizer(vocab: Mapping[str, int], merges: Sequence[tuple[str, str]], *, prefix_space: bool = False) -> dict[str, Any]:
    """Return GPT-2's tokenizer. If the vocabulary lacks end-of-text, it gets the next id.

    Args:
        prefix_space: add a space before a text that does not begin with one.
    """
    core = _core(models.BPE(vocab=dict(vocab), merges=list(merges)), prefix_space)
    core.add_special_tokens([END_OF_TEXT])
    return json.loads(core.to_str())


def roberta_tokenizer(
    vocab: Mapping[str, int], merges: Sequence[tuple[str, str]], *, prefix_space: bool = False
) -> dict[str, Any]:
    """Return RoBERTa's tokenizer (Liu et al. 2019, section 4.4).

    The template in it is for other programs; this one adds special tokens itself.

    Args:
        prefix_space: add a space before a text that does not begin with one.
    """
    core = _core(models.BPE(vocab=dict(vocab), merges=list(merges)), prefix_space)
    core.add_special_tokens(_added(ROBERTA, vocab))
    cls, sep = ROBERTA["cls"], ROBERTA["sep"]
    if cls in vocab and sep in vocab:
        # Positional, because the argument names differ between versions. Trimmed offsets: the span of a word excludes its space.
        template = processors.RobertaProcessing((sep, vocab[sep]), (cls, vocab[cls]), True, prefix_space)
        core.post_processor = template  # pyright: ignore[reportAttributeAccessIssue]
    return json.loads(core.to_str())


def modernbert_tokenizer(vocab: Mapping[str, int], merges: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Return ModernBERT's tokenizer (Warner et al. 2024, section 2.1.1): a text is composed (NFC), the template is BERT's.

    The released vocabulary has further tokens that are added: runs of spaces, and unused entries.
    """
    core = _core(models.BPE(vocab=dict(vocab), merges=list(merges)), normalizer=normalizers.NFC())
    core.add_special_tokens(_added(BERT, vocab))
    cls, sep = BERT["cls"], BERT["sep"]
    template = processors.TemplateProcessing(
        single=f"{cls} $A {sep}",
        pair=f"{cls} $A {sep} $B {sep}",
        special_tokens=[(name, vocab[name]) for name in (cls, sep)],
    )
    core.post_processor = template  # pyright: ignore[reportAttributeAccessIssue]
    return json.loads(core.to_str())


def qwen_tokenizer(vocab: Mapping[str, int], merges: Sequence[tuple[str, str]], *, prefix_space: bool = False) -> dict[str, Any]:
    """Return the tokenizer of Qwen2 and Qwen3: a text is composed (NFC), and digits are apart.

    Args:
        prefix_space: add a space before a word that does not begin with one.
    """
    core = _core(models.BPE(vocab=dict(vocab), merges=list(merges)), normalizer=normalizers.NFC())
    words = pre_tokenizers.Split(tokenizers.Regex(QWEN_PATTERN), behavior="isolated", invert=False)
    parts = [words, pre_tokenizers.ByteLevel(add_prefix_space=prefix_space, use_regex=False)]
    core.pre_tokenizer = pre_tokenizers.Sequence(parts)  # pyright: ignore[reportAttributeAccessIssue]
    core.add_special_tokens([END_OF_TEXT])
    return json.loads(core.to_str())


def train_gpt(texts: Iterable[str], vocab: int) -> dict[str, Any]:
    """Train up to `vocab` entries: end-of-text, the 256 bytes, then merges, most frequent pair first."""
    return json.loads(_trained(texts, vocab, [END_OF_TEXT]).to_str())


def train_roberta(texts: Iterable[str], vocab: int) -> dict[str, Any]:
    """Train up to `vocab` entries: four special tokens, the 256 bytes, merges, most frequent pair first, and the mask."""
    model = json.loads(_trained(texts, vocab - 1, [name for role, name in ROBERTA.items() if role != "mask"]).to_str())["model"]
    entries = {**model["vocab"], ROBERTA["mask"]: len(model["vocab"])}
    return roberta_tokenizer(entries, [(first, second) for first, second in model["merges"]])


def train_modernbert(texts: Iterable[str], vocab: int) -> dict[str, Any]:
    """Train up to `vocab` entries: five special tokens, the 256 bytes, then merges, most frequent pair first."""
    model = json.loads(_trained(texts, vocab, [*BERT.values()], normalizers.NFC()).to_str())["model"]
    return modernbert_tokenizer(model["vocab"], [(first, second) for first, second in model["merges"]])


def _added(names: Mapping[str, str], vocab: Mapping[str, int]) -> list[AddedToken]:
    """Return the special tokens that a vocabulary has. As released, the mask absorbs the space before it (`lstrip`)."""
    return [
        AddedToken(name, special=True, normalized=False, lstrip=name == names["mask"]) for name in names.values() if name in vocab
    ]


def _core(model: models.BPE, prefix_space: bool = False, normalizer: Any = None) -> tokenizers.Tokenizer:
    core = tokenizers.Tokenizer(model)
    if normalizer is not None:
        core.normalizer = normalizer
    rules = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    core.pre_tokenizer = rules  # pyright: ignore[reportAttributeAccessIssue]
    core.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    return core


def _trained(texts: Iterable[str], vocab: int, special: list[str], normalizer: Any = None) -> tokenizers.Tokenizer:
    core = _core(models.BPE(), normalizer=normalizer)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(iter(texts), trainer)
    return core
