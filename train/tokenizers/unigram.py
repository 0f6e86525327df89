"""SentencePiece's unigram models: their rules as the content of a tokenizer.json, their files, their training; T5's whole.

Kudo 2018, section 3.2; Raffel et al. 2020, section 2.1 (the vocabulary) and 3.1.4 (the sentinels). XLNet's are in
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
from train.tokenizers.special_tokens import SENTINELS, TEXT, sentinel
from zoo.errors import BadInput, require

SPACE = "\u2581"
"""What the entries have in place of a space; one stands before every word."""
CHARACTERS = 1000
"""Different characters a trained vocabulary has at most; rarer ones are unknown."""
LEAST_COVERED = 0.98
"""Share of a text's characters that are of those, at least: the library takes no less."""
LONGEST_WORD = 1000
"""Characters that are trained on at once: of a longer word, its parts. The library drops what is longer than 4,192 bytes."""
KINDS = (sentencepiece_proto.NORMAL, sentencepiece_proto.UNKNOWN, sentencepiece_proto.CONTROL)

Entries = Sequence[tuple[str, float]]
"""The entries in the order of their ids, with the logarithm of each one's probability."""


def content(entries: Entries, charsmap: bytes) -> dict[str, Any]:
    """A tokenizer.json of T5's rules. The template in it is for other programs: ours add marks themselves.

    Args:
        entries: the marks and sentinels among them, by their names.
        charsmap: what is made of each character before anything else; SentencePiece compiles it into its models.
    """
    end, names = TEXT["end"], [entry for entry, _ in entries]
    special = [entry for entry in names if entry in TEXT.values() or is_sentinel(entry)]
    return divided(
        entries,
        unknown=TEXT["unk"],
        normalizer=normalizers.Precompiled(charsmap) if charsmap else None,
        special=[AddedToken(name, special=True, normalized=False) for name in special],
        template=processors.TemplateProcessing(
            single=f"$A {end}", pair=f"$A {end} $B {end}", special_tokens=[(end, names.index(end))]
        ),
    )


def divided(
    entries: Entries,
    *,
    unknown: str,
    normalizer: normalizers.Normalizer | None,
    special: Sequence[AddedToken],
    template: processors.TemplateProcessing,
) -> dict[str, Any]:
    """A tokenizer.json of a unigram model that divides the words between white space, each with a space before it."""
    names = [entry for entry, _ in entries]
    core = tokenizers.Tokenizer(models.Unigram(list(entries), unk_id=names.index(unknown), byte_fallback=False))
    if normalizer is not None:
        core.normalizer = normalizer  # pyright: ignore[reportAttributeAccessIssue]
    words = pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme="always")
    rules = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), words])
    core.pre_tokenizer = rules  # pyright: ignore[reportAttributeAccessIssue]
    core.decoder = decoders.Metaspace(  # pyright: ignore[reportAttributeAccessIssue]
        replacement=SPACE, prepend_scheme="always"
    )
    core.add_special_tokens(list(special))
    core.post_processor = template  # pyright: ignore[reportAttributeAccessIssue]
    return json.loads(core.to_str())


def is_sentinel(entry: str) -> bool:
    """Whether an entry is named as a sentinel."""
    return _SENTINEL.fullmatch(entry) is not None


def unspelled(core: tokenizers.Tokenizer) -> models.Unigram:
    """The model of a tokenizer, in which no text can spell a special entry.

    The library takes these for entries like any other: a text that spells "</s>" would get its id. A space within a name, which
    these rules let into no word, keeps it from that.
    """
    model = json.loads(core.to_str())["model"]
    special = {token.content for token in core.get_added_tokens_decoder().values() if token.special}
    entries = [(f" {entry}" if entry in special else entry, score) for entry, score in model["vocab"]]
    return models.Unigram(entries, unk_id=model["unk_id"], byte_fallback=model["byte_fallback"])


def read(found: sentencepiece_proto.Model, sentinels: int = SENTINELS) -> dict[str, Any]:
    """A tokenizer.json of a spiece.model, with as many sentinels after its entries.

    Raises:
        BadInput: it has rules that are not T5's.
    """
    check(found, "T5", KINDS)
    return _numbered([(entry.name, entry.score) for entry in found.entries], found.charsmap, sentinels)


def check(found: sentencepiece_proto.Model, family: str, kinds: Sequence[int]) -> None:
    """Refuse a spiece.model whose words are not divided as `divided` says, or with entries of other kinds.

    Raises:
        BadInput: it is one.
    """
    other = {
        "is another kind of model than unigram": found.kind != sentencepiece_proto.UNIGRAM,
        "spells unknown characters as bytes": found.byte_fallback,
        "has spaces after words": found.treat_whitespace_as_suffix,
        "has entries across spaces": not found.split_by_whitespace,
        "puts no space before a text": not found.add_dummy_prefix,
        "keeps repeated spaces": not found.remove_extra_whitespaces,
        "writes spaces as they are": not found.escape_whitespaces,
        "has entries of other kinds": not {entry.kind for entry in found.entries} <= {*kinds},
    }
    if reasons := [why for why, is_so in other.items() if is_so]:
        raise BadInput(f"it {reasons[0]}, which {family}'s rules have no place for; give a model of {family}'s kind")


def train(texts: Iterable[str], vocab: int) -> dict[str, Any]:
    """A tokenizer.json of up to `vocab` entries: pad, end and unknown, pieces, the most likely first, and the sentinels.

    Raises:
        BadInput: a vocabulary too small for the characters of the texts, or no text.
    """
    require(vocab > SENTINELS, "tokenizer.vocab", vocab, f"{SENTINELS} entries are sentinels; choose a few hundred or more")
    with explained(vocab):
        return read(sentencepiece_proto.parse(model(texts, vocab - SENTINELS)))


@contextlib.contextmanager
def explained(vocab: int) -> Iterator[None]:
    """Where the library cannot make a model, say so as one line.

    Raises:
        BadInput: instead of the library's error.
    """
    try:
        yield
    except RuntimeError as error:
        why = " ".join(str(error).split())
        raise BadInput(f"--tokenizer.vocab {vocab}: no unigram model of this text ({why}); choose a larger one") from None


def model(texts: Iterable[str], vocab: int) -> bytes:
    """T5's spiece.model of up to `vocab` entries, without sentinels.

    Raises:
        RuntimeError: the library cannot make one.
    """
    return trained(
        list(lines(texts)),
        vocab,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        pad_piece=TEXT["pad"],
        eos_piece=TEXT["end"],
        unk_piece=TEXT["unk"],
    )


def trained(text: Sequence[str], vocab: int, *, coverage: float = 1.0, **options: Any) -> bytes:
    """A spiece.model of up to `vocab` entries.

    Args:
        text: in lines.
        coverage: share of its characters that are not unknown; less where it has too many different ones.
        options: further ones of the library.

    Raises:
        RuntimeError: the library cannot make one.
    """
    often = collections.Counter(character for line in text for character in line)
    most = min(CHARACTERS, vocab // 2)
    kept = sum(count for _, count in often.most_common(most))
    made = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text),
        model_writer=made,
        model_type="unigram",
        vocab_size=vocab,
        # A text too small for so many gives fewer.
        hard_vocab_limit=False,
        character_coverage=coverage if len(often) <= most else min(coverage, max(kept / often.total(), LEAST_COVERED)),
        # As many parts of a sum whatever the machine: so it is rounded alike.
        num_threads=16,
        minloglevel=2,
        **options,
    )
    return made.getvalue()


def lines(texts: Iterable[str]) -> Iterator[str]:
    """All words of some texts, in their order, in lines of about `LONGEST_WORD` characters.

    The same lines whether the texts are whole or in the pieces of `train.data.chunking.cut`.
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


_SENTINEL = re.compile(r"<extra_id_\d+>")
_CONTINUES = re.compile(r"[\u3001\u3002\uff01\uff0c\uff1f]")
"""What begins a piece that goes on with a word, where `train.data.chunking.cut` cuts without a space."""


def _numbered(entries: Entries, charsmap: bytes, sentinels: int) -> dict[str, Any]:
    """With the sentinels after all entries: <extra_id_0> has the highest id."""
    names = [entry for entry, _ in entries]
    if missing := [name for name in TEXT.values() if name not in names]:
        raise BadInput(f"it has no {' and no '.join(missing)}, and T5 needs {', '.join(TEXT.values())}; give one of T5's kind")
    return content([*entries, *((sentinel(number), 0.0) for number in reversed(range(sentinels)))], charsmap)


def _words(texts: Iterable[str]) -> Iterator[str]:
    """A word that pieces divide is whole again; one that is too long is in parts."""
    rest = ""
    for text in texts:
        if not _CONTINUES.match(text):
            yield from _parts(rest)
            rest = ""
        *words, rest = re.split(r"[ \n\r\t]+", rest + text)
        for word in words:
            yield from _parts(word)
    yield from _parts(rest)


def _parts(word: str) -> Iterator[str]:
    return (word[start : start + LONGEST_WORD] for start in range(0, len(word), LONGEST_WORD))
