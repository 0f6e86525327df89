"""Unigram models of SentencePiece: the content of their tokenizer.json, their files and their training, and T5's rules.

Kudo 2018, section 3.2; Raffel et al. 2020, section 2.1 (the vocabulary) and 3.1.4 (the sentinels). XLNet's rules are in
`train.tokenizers.xlnet_unigram`.
"""

import collections
import contextlib
import io
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import sentencepiece
import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors

from train.tokenizers import sentencepiece_proto
from train.tokenizers.special_tokens import SENTINELS, TEXT, sentinel_name
from zoo.errors import BadInput, require

SPACE = "\u2581"
"""The character for a space in entries; every word begins with one."""
CHARACTERS = 1000
"""Largest number of different characters in a trained vocabulary; rarer ones are unknown."""
LEAST_COVERED = 0.98
"""Smallest character coverage that the SentencePiece library accepts."""
LONGEST_WORD = 1000
"""Number of characters per line of training text; longer words are split. The library drops lines of more than 4,192 bytes."""
KINDS = (sentencepiece_proto.NORMAL, sentencepiece_proto.UNKNOWN, sentencepiece_proto.CONTROL)
BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))
"""Names of the entries that are bytes of unknown characters."""
NEVER = -1e6
"""Log probability of an entry that must never be chosen."""

Entries = Sequence[tuple[str, float]]
"""Entries in the order of their ids, with the logarithm of their probabilities."""


def t5_tokenizer_json(entries: Entries, charsmap: bytes, *, spells_bytes: bool = False) -> dict[str, Any]:
    """Return a tokenizer.json of T5's rules.

    The template in it is for other programs; this one adds special tokens itself.

    Args:
        entries: all entries, special tokens and sentinels included.
        charsmap: the normalization of characters, the first step of encoding, as SentencePiece compiles it into its models.
        spells_bytes: spell unknown characters by `BYTES`, as mT5.
    """
    end, names = TEXT["end"], [entry for entry, _ in entries]
    special = [entry for entry in names if entry in TEXT.values() or is_sentinel(entry)]
    return space_divided_content(
        entries,
        unknown=TEXT["unk"],
        normalizer=normalizers.Precompiled(charsmap) if charsmap else None,
        special=[AddedToken(name, special=True, normalized=False) for name in special],
        template=processors.TemplateProcessing(
            single=f"$A {end}", pair=f"$A {end} $B {end}", special_tokens=[(end, names.index(end))]
        ),
        spells_bytes=spells_bytes,
    )


def space_divided_content(
    entries: Entries,
    *,
    unknown: str,
    normalizer: normalizers.Normalizer | None,
    special: Sequence[AddedToken],
    template: processors.TemplateProcessing,
    spells_bytes: bool = False,
) -> dict[str, Any]:
    """Return a tokenizer.json of a unigram model that splits text at white space and puts a space before each word."""
    names = [entry for entry, _ in entries]
    core = tokenizers.Tokenizer(models.Unigram(list(entries), unk_id=names.index(unknown), byte_fallback=spells_bytes))
    if normalizer is not None:
        core.normalizer = normalizer  # pyright: ignore[reportAttributeAccessIssue]
    words = pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme="always")
    rules = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), words])
    core.pre_tokenizer = rules  # pyright: ignore[reportAttributeAccessIssue]
    joined = decoders.Metaspace(replacement=SPACE, prepend_scheme="always")
    core.decoder = (  # pyright: ignore[reportAttributeAccessIssue]
        decoders.Sequence([decoders.ByteFallback(), joined]) if spells_bytes else joined
    )
    core.add_special_tokens(list(special))
    core.post_processor = template  # pyright: ignore[reportAttributeAccessIssue]
    return json.loads(core.to_str())


def is_sentinel(entry: str) -> bool:
    """Return whether an entry has the name of a sentinel; in mT5's model the space before it is a part of it."""
    return _SENTINEL.fullmatch(entry) is not None


def without_special_texts(core: tokenizers.Tokenizer) -> models.Unigram:
    """Return the model of a tokenizer, changed so that no text is encoded as a special entry.

    The library treats these as ordinary entries: the text "</s>" would get its id. They are renamed to begin with a space, which
    no word contains after these rules.
    """
    model = json.loads(core.to_str())["model"]
    special = {token.content for token in core.get_added_tokens_decoder().values() if token.special}
    entries = [(f" {entry}" if entry in special else entry, score) for entry, score in model["vocab"]]
    return models.Unigram(entries, unk_id=model["unk_id"], byte_fallback=model["byte_fallback"])


def convert_unigram(proto: sentencepiece_proto.Model, sentinels: int = SENTINELS) -> dict[str, Any]:
    """Return a tokenizer.json of a spiece.model, with `sentinels` sentinels after its entries.

    Raises:
        BadInput: the model has rules that are not T5's.
    """
    check_unigram(proto, "T5", (*KINDS, sentencepiece_proto.USER_DEFINED, sentencepiece_proto.BYTE), spells_bytes=True)
    names, apart = {entry.name for entry in proto.entries}, sentencepiece_proto.USER_DEFINED
    missing = [name for name in (*BYTES, *sorted({*"".join(BYTES)})) if name not in names] if proto.byte_fallback else []
    separate = [entry.name for entry in proto.entries if entry.kind == apart and not is_sentinel(entry.name)]
    if missing or separate:
        what = f"spells bytes without the entry {missing[0]}" if missing else f"has the separate entry {separate[0]}"
        raise BadInput(_refusal(what, "T5"))
    # A text that spells the name of a byte is not this byte.
    entries = [(name, NEVER if kind == sentencepiece_proto.BYTE else score) for name, score, kind in proto.entries]
    return _numbered(entries, proto.charsmap, sentinels, spells_bytes=proto.byte_fallback)


def check_unigram(
    proto: sentencepiece_proto.Model, family: str, allowed_kinds: Sequence[int], *, spells_bytes: bool = False
) -> None:
    """Check that a spiece.model has the rules of `space_divided_content`, and only entries of `allowed_kinds`.

    With `spells_bytes`, it may spell unknown characters as bytes.

    Raises:
        BadInput: the model has other rules or entries.
    """
    problems = {
        "is another kind of model than unigram": proto.kind != sentencepiece_proto.UNIGRAM,
        "spells unknown characters as bytes": proto.byte_fallback and not spells_bytes,
        "has spaces after words": proto.treat_whitespace_as_suffix,
        "has entries across spaces": not proto.split_by_whitespace,
        "puts no space before a text": not proto.add_dummy_prefix,
        "keeps repeated spaces": not proto.remove_extra_whitespaces,
        "writes spaces as they are": not proto.escape_whitespaces,
        "has entries of other kinds": not {entry.kind for entry in proto.entries} <= {*allowed_kinds},
    }
    if reasons := [why for why, is_so in problems.items() if is_so]:
        raise BadInput(_refusal(reasons[0], family))


def _refusal(what: str, family: str) -> str:
    fix = f"train it with {family}'s options, or use a folder with its tokenizer.json"
    return f"a SentencePiece model that {what}, which {family}'s tokenizers cannot do; {fix}"


def train_t5_tokenizer(texts: Iterable[str], vocab: int) -> dict[str, Any]:
    """Train a tokenizer.json of up to `vocab` entries: pad, end and unknown, pieces, most likely first, and the sentinels.

    Raises:
        BadInput: the vocabulary is too small for the characters of the texts, or there is no text.
    """
    require(vocab > SENTINELS, "tokenizer.vocab", vocab, f"{SENTINELS} entries are sentinels; choose a few hundred or more")
    with training_errors(vocab):
        return convert_unigram(sentencepiece_proto.parse_spiece_model(train_t5_model(texts, vocab - SENTINELS)))


@contextlib.contextmanager
def training_errors(vocab: int) -> Iterator[None]:
    """Raise `BadInput` in one line if the library cannot train a model.

    Raises:
        BadInput: the library raised an error in the block.
    """
    try:
        yield
    except RuntimeError as error:
        why = " ".join(str(error).split())
        raise BadInput(f"--tokenizer.vocab {vocab}: no unigram model for this text ({why}); choose a larger one") from None


def train_t5_model(texts: Iterable[str], vocab: int) -> bytes:
    """Train T5's spiece.model of up to `vocab` entries, without sentinels.

    Raises:
        RuntimeError: the library cannot train a model.
    """
    return train_spiece_model(
        list(training_lines(texts)),
        vocab,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        pad_piece=TEXT["pad"],
        eos_piece=TEXT["end"],
        unk_piece=TEXT["unk"],
    )


def train_spiece_model(text: Sequence[str], vocab: int, *, coverage: float = 1.0, **options: Any) -> bytes:
    """Train a spiece.model of up to `vocab` entries.

    Args:
        text: the lines of the text.
        coverage: share of its characters that are in the vocabulary; lower if there are too many different ones.
        options: further options of the library.

    Raises:
        RuntimeError: the library cannot train a model.
    """
    frequency = collections.Counter(character for line in text for character in line)
    alphabet_size = min(CHARACTERS, vocab // 2)
    covered = sum(count for _, count in frequency.most_common(alphabet_size))
    if len(frequency) > alphabet_size:
        coverage = min(coverage, max(covered / frequency.total(), LEAST_COVERED))
    model_file = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text),
        model_writer=model_file,
        model_type="unigram",
        vocab_size=vocab,
        # A text too small for so many entries gives fewer.
        hard_vocab_limit=False,
        character_coverage=coverage,
        # A fixed number of partial sums, so that rounding is the same on every machine.
        num_threads=16,
        minloglevel=2,
        **options,
    )
    return model_file.getvalue()


def training_lines(texts: Iterable[str]) -> Iterator[str]:
    """Yield all words of some texts, in order, in lines of about `LONGEST_WORD` characters.

    The lines are the same whether the texts are whole or in the chunks of `train.data.chunking.cut_chunks`.
    """
    line, size = [], 0
    for word in _words(texts):
        if size + len(word) > LONGEST_WORD and line:
            yield " ".join(line)
            line, size = [], 0
        line.append(word)
        size += len(word) + 1
    if line:
        yield " ".join(line)


_SENTINEL = re.compile(rf"{SPACE}?<extra_id_\d+>")
_CONTINUES = re.compile(r"[\u3001\u3002\uff01\uff0c\uff1f]")
"""First character of a chunk that continues a word, where `train.data.chunking.cut_chunks` cuts without a space."""


def _numbered(entries: Entries, charsmap: bytes, sentinels: int, *, spells_bytes: bool) -> dict[str, Any]:
    """Return a tokenizer.json with the sentinels after all entries: <extra_id_0> has the highest id."""
    names = [entry for entry, _ in entries]
    if missing := [name for name in TEXT.values() if name not in names]:
        raise BadInput(f"it has no {' and no '.join(missing)}, and T5 needs {', '.join(TEXT.values())}; give one of T5's kind")
    numbered = [(sentinel_name(number), 0.0) for number in reversed(range(sentinels))]
    return t5_tokenizer_json([*entries, *numbered], charsmap, spells_bytes=spells_bytes)


def _words(texts: Iterable[str]) -> Iterator[str]:
    """Yield the words of texts; words cut between chunks are joined, and words that are too long are split."""
    partial = ""
    for text in texts:
        if not _CONTINUES.match(text):
            yield from _parts(partial)
            partial = ""
        *words, partial = re.split(r"[ \n\r\t]+", partial + text)
        for word in words:
            yield from _parts(word)
    yield from _parts(partial)


def _parts(word: str) -> Iterator[str]:
    return (word[start : start + LONGEST_WORD] for start in range(0, len(word), LONGEST_WORD))
