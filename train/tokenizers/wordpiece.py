"""BERT's WordPiece: the content of its tokenizer.json, and training (Devlin et al. 2019, section 3)."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors, trainers

from train.tokenizers.special_tokens import BERT

CONTINUES = "##"
"""Prefix of an entry that continues a word: "playing" is the entries "play" and "##ing"."""
CHARACTERS = 1000
"""Most characters in a trained vocabulary, the most frequent ones; words with others are unknown.

A character takes two entries: one for the beginning of a word, "a", and one for the rest of it, "##a"."""
LONGEST_WORD = 100
"""Number of characters of the longest word; longer ones are unknown, as in BERT's own program."""
AT_ONCE = 64 << 20
"""Characters of text that are read before their words are counted.

Texts are first split at spaces; BERT's rules, which are slow, then divide each different string once."""
REPEATED = 1000
"""Most repetitions of a word in one string of the training text; the trainer counts words, and accepts no counts."""


def bert_tokenizer_json(
    vocab: Mapping[str, int], *, lowercase: bool, strip_accents: bool | None = None, split_chinese: bool = True
) -> dict[str, Any]:
    """Return a tokenizer.json of BERT's rules.

    The template in it is for other programs; this one adds special tokens itself.

    Args:
        lowercase: whether to drop case, as the "uncased" models do.
        strip_accents: whether to drop accents; None: as `lowercase`.
        split_chinese: whether each Chinese character is a word.
    """
    model = models.WordPiece(
        dict(vocab), unk_token=BERT["unk"], max_input_chars_per_word=LONGEST_WORD, continuing_subword_prefix=CONTINUES
    )
    core = _core(model, lowercase, strip_accents, split_chinese)
    core.decoder = decoders.WordPiece(prefix=CONTINUES)  # pyright: ignore[reportAttributeAccessIssue]
    core.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in BERT.values() if name in vocab])
    cls, sep = BERT["cls"], BERT["sep"]
    if cls in vocab and sep in vocab:
        core.post_processor = processors.TemplateProcessing(  # pyright: ignore[reportAttributeAccessIssue]
            single=f"{cls}:0 $A:0 {sep}:0",
            pair=f"{cls}:0 $A:0 {sep}:0 $B:1 {sep}:1",
            special_tokens=[(cls, vocab[cls]), (sep, vocab[sep])],
        )
    return json.loads(core.to_str())


def train_wordpiece(texts: Iterable[str], vocab: int, *, lowercase: bool) -> dict[str, Any]:
    """Train a tokenizer.json of up to `vocab` entries: special tokens, characters, then pieces, most frequent pair first.

    Google never released the training of BERT's vocabulary; as everywhere since, pairs are merged by their frequency.

    The library numbers the characters that continue a word in the order of a hash map, and merges of equal counts follow those
    numbers: two processes would produce two vocabularies (huggingface/tokenizers #1794). So every character is numbered here, by
    passing it to the library as a special token.
    """
    rules = _core(models.WordPiece(unk_token=BERT["unk"]), lowercase)
    words = _words(texts, rules)
    frequency = Counter[str]()
    for word, count in words.items():
        for character in word:
            frequency[character] += count
    alphabet_size = max(0, min(CHARACTERS, (vocab - len(BERT)) // 2))
    alphabet = {character for character, _ in sorted(frequency.items(), key=lambda entry: (-entry[1], entry[0]))[:alphabet_size]}
    # Not only those that continue a word in this text: otherwise the first "x7" of another text would be unknown.
    continuing = [character for character in sorted(alphabet) if len(_divided(f"a{character}", rules)) == 1]
    pinned = [*sorted(alphabet), *(CONTINUES + character for character in continuing)]

    core = tokenizers.Tokenizer(models.WordPiece(unk_token=BERT["unk"]))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab,
        special_tokens=[*BERT.values(), *pinned],
        continuing_subword_prefix=CONTINUES,
        show_progress=False,
    )
    # Words that will be unknown are not used for training.
    trainable = ((word, count) for word, count in words.items() if len(word) <= LONGEST_WORD and alphabet.issuperset(word))
    core.train_from_iterator(_repeated(trainable), trainer)
    return bert_tokenizer_json(core.get_vocab(), lowercase=lowercase)


def _core(
    model: models.WordPiece, lowercase: bool, strip_accents: bool | None = None, split_chinese: bool = True
) -> tokenizers.Tokenizer:
    core = tokenizers.Tokenizer(model)
    core.normalizer = normalizers.BertNormalizer(  # pyright: ignore[reportAttributeAccessIssue]
        clean_text=True, handle_chinese_chars=split_chinese, strip_accents=strip_accents, lowercase=lowercase
    )
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()  # pyright: ignore[reportAttributeAccessIssue]
    return core


def _divided(text: str, rules: tokenizers.Tokenizer) -> list[str]:
    """Return the words of a text."""
    return [word for word, _ in rules.pre_tokenizer.pre_tokenize_str(rules.normalizer.normalize_str(text))]


def _words(texts: Iterable[str], rules: tokenizers.Tokenizer) -> Counter[str]:
    """Return the number of occurrences of each word. Memory grows with the number of different words, not with the text."""
    words, raw, size = Counter[str](), Counter[str](), 0

    def divide() -> None:
        for text, count in raw.items():
            for word in _divided(text, rules):
                words[word] += count
        raw.clear()

    for text in texts:
        # `str.split()` without arguments would also split at characters that BERT drops without dividing a word.
        raw.update(text.replace("\n", " ").split(" "))
        size += len(text)
        if size >= AT_ONCE:
            divide()
            size = 0
    divide()
    return words


def _repeated(words: Iterable[tuple[str, int]]) -> Iterator[str]:
    """Yield a text in which each word occurs as often as its count, because the library accepts no counts."""
    for word, count in words:
        for first in range(0, count, REPEATED):
            yield f"{word} " * min(REPEATED, count - first)
