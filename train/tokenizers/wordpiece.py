"""BERT's WordPiece: its rules, as the content of a tokenizer.json, and its training (Devlin et al. 2019, section 3)."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors, trainers

from train.tokenizers.special_tokens import BERT

CONTINUES = "##"
"""What the pieces of a word begin with, save its first."""
CHARACTERS = 1000
"""Different characters a trained vocabulary has at most. Each costs two entries; rarer ones are unknown."""
LONGEST_WORD = 100
"""Characters of a word; a longer one is unknown, here as in BERT's own program."""
AT_ONCE = 64 << 20
"""Characters of text whose different words are held before they are divided by the rules."""
REPEATED = 1000


def content(
    vocab: Mapping[str, int], *, lowercase: bool, strip_accents: bool | None = None, split_chinese: bool = True
) -> dict[str, Any]:
    """A tokenizer.json of BERT's rules. The template in it is for other programs: ours add marks themselves.

    Args:
        lowercase: as the "uncased" models.
        strip_accents: None: as `lowercase`.
        split_chinese: make a word of each Chinese character.
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


def train(texts: Iterable[str], vocab: int, *, lowercase: bool) -> dict[str, Any]:
    """A tokenizer.json of up to `vocab` entries: the marks, the characters, then pieces, most frequent pair first.

    Google never released how BERT's own was trained; as everywhere since, pairs are merged by how often they occur.

    The library numbers the characters that continue a word as a hash map happens to order them, and merges of equal counts
    follow those numbers: left alone, two processes give two vocabularies (huggingface/tokenizers #1794). So every character is
    numbered here, by handing it to the library as if it were a mark.
    """
    rules = _core(models.WordPiece(unk_token=BERT["unk"]), lowercase)
    words = _words(texts, rules)
    often = Counter[str]()
    for word, count in words.items():
        for character in word:
            often[character] += count
    most = max(0, min(CHARACTERS, (vocab - len(BERT)) // 2))
    alphabet = {character for character, _ in sorted(often.items(), key=lambda entry: (-entry[1], entry[0]))[:most]}
    # Not only those seen to continue a word: the first "x7" of another text would be unknown.
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
    # A word that will be unknown teaches nothing.
    known = ((word, count) for word, count in words.items() if len(word) <= LONGEST_WORD and alphabet.issuperset(word))
    core.train_from_iterator(_repeated(known), trainer)
    return content(core.get_vocab(), lowercase=lowercase)


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
    """The words of a text."""
    return [word for word, _ in rules.pre_tokenizer.pre_tokenize_str(rules.normalizer.normalize_str(text))]


def _words(texts: Iterable[str], rules: tokenizers.Tokenizer) -> Counter[str]:
    """How often each word occurs. Memory follows the number of different words, not the size of the text."""
    words, raw, size = Counter[str](), Counter[str](), 0

    def divide() -> None:
        for text, count in raw.items():
            for word in _divided(text, rules):
                words[word] += count
        raw.clear()

    for text in texts:
        # Python's own `split` takes characters for spaces that BERT drops without dividing a word.
        raw.update(text.replace("\n", " ").split(" "))
        size += len(text)
        if size >= AT_ONCE:
            divide()
            size = 0
    divide()
    return words


def _repeated(words: Iterable[tuple[str, int]]) -> Iterator[str]:
    """A text in which each word occurs as often as it is counted: the library takes no counts."""
    for word, count in words:
        for first in range(0, count, REPEATED):
            yield f"{word} " * min(REPEATED, count - first)
