"""XLM-R's unigram model (Conneau et al. 2020, section 3): T5's rules of words, RoBERTa's special tokens, fairseq's ids.

fairseq's dictionary has four special tokens before all entries of the SentencePiece model, whose own three it leaves out, and the
mask after them. So an entry has its id in that model plus 1.
"""

from typing import Any

from tokenizers import AddedToken, normalizers, processors

from train.tokenizers import sentencepiece_proto, unigram
from train.tokenizers.special_tokens import ROBERTA
from train.tokenizers.unigram import Entries
from zoo.errors import BadInput

LEFT_OUT = (ROBERTA["unk"], ROBERTA["cls"], ROBERTA["sep"])
"""The first entries of the SentencePiece model, which have other ids in fairseq's dictionary."""


def xlmr_tokenizer_json(entries: Entries, charsmap: bytes) -> dict[str, Any]:
    """Return a tokenizer.json of XLM-R's rules.

    The template in it is for other programs; this one adds special tokens itself.

    Args:
        entries: all entries, special tokens included.
        charsmap: the normalization of characters, the first step of encoding, as SentencePiece compiles it into its models.
    """
    names = [entry for entry, _ in entries]
    cls, sep, mask = ROBERTA["cls"], ROBERTA["sep"], ROBERTA["mask"]
    return unigram.space_divided_content(
        entries,
        unknown=ROBERTA["unk"],
        normalizer=normalizers.Precompiled(charsmap) if charsmap else None,
        # As released, the mask absorbs the space before it (`lstrip`).
        special=[AddedToken(name, lstrip=name == mask, special=True, normalized=False) for name in ROBERTA.values()],
        template=processors.TemplateProcessing(
            single=f"{cls} $A {sep}",
            pair=f"{cls} $A {sep} {sep} $B {sep}",
            special_tokens=[(cls, names.index(cls)), (sep, names.index(sep))],
        ),
    )


def convert_xlm_unigram(proto: sentencepiece_proto.Model) -> dict[str, Any]:
    """Return a tokenizer.json of a sentencepiece.bpe.model, with fairseq's ids.

    Raises:
        BadInput: the model has rules or special tokens that are not XLM-R's.
    """
    unigram.check_unigram(proto, "XLM-R", unigram.KINDS)
    if tuple(entry.name for entry in proto.entries[: len(LEFT_OUT)]) != LEFT_OUT:
        raise BadInput(f"its first entries are not {', '.join(LEFT_OUT)}, as XLM-R's are; give one of XLM-R's kind")
    first = [ROBERTA[role] for role in ("cls", "pad", "sep", "unk")]
    entries = [(entry.name, entry.score) for entry in proto.entries[len(LEFT_OUT) :]]
    if repeated := {*first, ROBERTA["mask"]}.intersection(name for name, _ in entries):
        raise BadInput(f"it has an ordinary entry {min(repeated)}, which XLM-R adds itself; give one of XLM-R's kind")
    return xlmr_tokenizer_json([*((name, 0.0) for name in first), *entries, (ROBERTA["mask"], 0.0)], proto.charsmap)
