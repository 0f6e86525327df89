"""`zoo fill-mask`: the likeliest words for the masks of a text, or how likely given words are."""

import dataclasses
import json
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from eval.commands import terminal
from eval.generation.settings import Texts
from eval.scoring import encoder_runner
from eval.scoring.encoder_runner import Encoder, Row, Text
from train.config import run_config
from train.engine import device_mesh
from train.tokenizers.special_tokens import BERT, ROBERTA
from train.tokenizers.tokenizer import Tokenizer
from train.tokenizers.wordpiece import CONTINUES
from train.weights.load import load
from zoo.batch import Batch
from zoo.errors import BadInput, require
from zoo.models import Model
from zoo.nn import heads

SPELLED = re.compile("|".join(re.escape(names["mask"]) for names in (BERT, ROBERTA)))
"""How a mask is written in a text: as BERT names it, or as RoBERTa and XLNet do, whatever the model."""


@dataclasses.dataclass(frozen=True)
class Candidate:
    """What may stand for a mask."""

    token: str
    """As the tokenizer spells it: RoBERTa's and XLNet's with the space before a word, BERT's pieces with their ##."""
    id: int
    probability: float
    """Of it among the whole vocabulary, at this mask, all masks of the text being masked."""
    start: int
    end: int
    """Its characters in `text`."""
    text: str
    """With it in the mask's place; other masks stay."""


@dataclasses.dataclass(frozen=True)
class Filled:
    """A mask and its candidates, the likeliest first."""

    text: str
    number: int
    """Which of the text's masks, from 1."""
    start: int
    end: int
    """The mask's characters in `text`."""
    candidates: tuple[Candidate, ...]


def main(
    where: str,
    asked: Texts,
    *,
    top: int,
    targets: Sequence[str],
    step: int | None,
    batch: int,
    precision: run_config.Precision,
    mesh: run_config.Mesh,
    as_json: bool,
) -> int:
    """Fill in the masks of texts and print what for. Returns the exit code.

    Args:
        where, step: what to load, see `train.weights.load.load`.
        as_json: an object a line for each mask.

    Raises:
        BadInput: see `train.weights.load.load`, `encoding.read` and `fill`.
    """
    require(top >= 1, "top", top, "choose 1 or more words")
    require(all(map(str.strip, targets)), "targets", "''", "write a word")
    texts = encoder_runner.read(asked)
    _masks(texts)
    encoder = Encoder.of(load(where, device_mesh.make(mesh), step), batch=batch, dtype=encoder_runner.dtype_of(precision))
    found = fill(encoder, texts, top=top, targets=targets, truncate=asked.truncate)
    for number, each in enumerate(found, 1):
        if as_json:
            terminal.say(json.dumps(_record(each), ensure_ascii=False) + "\n")
        else:
            title = f"--- mask {number} of {len(found)}\n" if len(found) > 1 else ""
            terminal.say(title + table(each, terminal.columns()))
    return 0


def fill(
    encoder: Encoder, texts: Sequence[Text], *, top: int, targets: Sequence[str] = (), truncate: bool = False
) -> list[Filled]:
    """The `top` likeliest entries for every mask of the texts, in their order; or the targets, the likeliest first.

    Each mask is judged alone, the text's others being masked. RoBERTa's mask and XLNet's take the white space before them: their
    entries have a space of their own. A target of RoBERTa's gets one there, of XLNet's everywhere.

    Raises:
        BadInput: a text without a mask, too long or with a mask beyond its cut; a model without a head for masked words, a target
            that is no entry of the vocabulary, or more entries asked for than there are.
    """
    tokenizer = encoder.loaded.tokenizer
    encoder.check_masked()
    require(top <= tokenizer.vocab_size, "top", top, f"the tokenizer has {tokenizer.vocab_size:,} entries; choose at most those")
    masks = _masks(texts)
    rows = _rows(encoder, texts, masks, truncate)
    # The same word is one entry after a space and another one elsewhere; both are asked for everywhere.
    ids = {spaced: _entries(tokenizer, targets, spaced) for spaced in {_spaced(tokenizer, mask) for mask in masks}}
    judge = _Judge(tokenizer.vocab_size, top, tuple(sorted(set().union(*ids.values()))))
    found: dict[int, Filled] = {}
    for row, (chances, entries) in encoder.run(rows, judge):
        mask = masks[row.number]
        pairs = zip(chances.tolist(), entries.tolist(), strict=True)
        wanted = [pair for pair in pairs if not targets or pair[1] in ids[_spaced(tokenizer, mask)]]
        ranked = sorted(wanted, key=lambda pair: (-pair[0], pair[1]))
        candidates = tuple(_candidate(tokenizer, mask, entry, chance) for chance, entry in ranked)
        found[row.number] = Filled(mask.text, mask.number, mask.start, mask.end, candidates)
        terminal.progress(len(found), len(masks))
    return [found[number] for number in range(len(masks))]


def table(filled: Filled, columns: int | None) -> str:
    """A mask's candidates as lines of at most so many columns; texts that are longer are cut around the mask."""
    names = [json.dumps(each.token, ensure_ascii=False) for each in filled.candidates]
    wide = max(len("token"), *map(terminal.cell_len, names))
    room = columns and max(20, columns - len("probability") - wide - 4)
    lines = [
        terminal.excerpt(filled.text, filled.start, filled.end, columns),
        f"probability  {'token':<{wide}}  text",
    ]
    for name, each in zip(names, filled.candidates, strict=True):
        padding = " " * (wide - terminal.cell_len(name))
        lines.append(
            f"{_number(each.probability):>11}  {name}{padding}  {terminal.excerpt(each.text, each.start, each.end, room)}"
        )
    return "\n".join(lines) + "\n"


class _Mask(NamedTuple):
    """A mask and where it stands."""

    source: int
    """Number of its text."""
    text: str
    number: int
    """Which of the text's masks, from 1."""
    start: int
    end: int
    """Its characters."""


def _masks(texts: Sequence[Text]) -> list[_Mask]:
    """The masks of all texts, in their order."""
    masks = []
    for source, (where, text) in enumerate(texts):
        found = [_Mask(source, text, number, *each.span()) for number, each in enumerate(SPELLED.finditer(text), 1)]
        if not found:
            raise BadInput(f"{where}: holds no mask; write {BERT['mask']} where a word is to be filled in")
        masks += found
    return masks


def _rows(encoder: Encoder, texts: Sequence[Text], masks: Sequence[_Mask], truncate: bool) -> list[Row]:
    """A row for each mask, in which all masks of its text are masked."""
    tokenizer, mark = encoder.loaded.tokenizer, encoder.marks.mask
    pieces = [SPELLED.split(text) for _, text in texts]
    if tokenizer.kind == "roberta":
        # The mask takes the white space before it.
        pieces = [[*(piece.rstrip() for piece in several[:-1]), several[-1]] for several in pieces]
    ids = tokenizer.encode_many(piece for several in pieces for piece in several)
    tokens = []
    for (where, _), several in zip(texts, pieces, strict=True):
        parts = [next(ids)]
        for _ in several[1:]:
            parts += [np.array([mark], np.int32), next(ids)]
        tokens.append(encoder.framed(np.concatenate(parts), where, truncate=truncate))
    rows = []
    for number, mask in enumerate(masks):
        where, at = texts[mask.source].where, np.flatnonzero(tokens[mask.source] == mark)
        if mask.number > len(at):
            beyond = f"mask {mask.number} is beyond the model's {encoder.room} positions"
            raise BadInput(f"{where}: {beyond}; shorten the text before it")
        rows.append(Row(number, where, tokens[mask.source], int(at[mask.number - 1])))
    return rows


def _spaced(tokenizer: Tokenizer, mask: _Mask) -> bool:
    """Whether what fills the mask begins with a space of its own."""
    return tokenizer.kind == "roberta" and mask.text[: mask.start][-1:].isspace()


def _entries(tokenizer: Tokenizer, targets: Sequence[str], spaced: bool) -> list[int]:
    """The id of each target."""
    ids = []
    for target in targets:
        shown = f" {target}" if spaced and not target[0].isspace() else target
        pieces = tokenizer.encode(shown).tolist()
        if len(pieces) != 1 or (tokenizer.marks and pieces == [tokenizer.marks.unk]):
            told = " + ".join(json.dumps(tokenizer.decode([piece]), ensure_ascii=False) for piece in pieces[:8]) or "nothing"
            raise BadInput(
                f"--targets {target!r}: to the vocabulary it is {told}; a mask stands for one entry, choose such a word"
            )
        ids += pieces
    return ids


def _candidate(tokenizer: Tokenizer, mask: _Mask, entry: int, chance: float) -> Candidate:
    token, before = tokenizer.spell(entry), mask.text[: mask.start]
    continues = tokenizer.kind == "wordpiece" and token.startswith(CONTINUES)
    word = token.removeprefix(CONTINUES) if continues else token
    if continues or tokenizer.kind in ("roberta", "xlnet"):
        before = before.rstrip()
    if tokenizer.kind == "xlnet" and not before:
        word = word.lstrip()
    return Candidate(token, entry, chance, len(before), len(before + word), before + word + mask.text[mask.end :])


def _number(probability: float) -> str:
    return f"{probability:.4f}" if probability >= 0.0001 else f"{probability:.1e}"


def _record(filled: Filled) -> dict[str, Any]:
    shown = ("token", "id", "probability", "text")
    candidates = [{name: getattr(each, name) for name in shown} for each in filled.candidates]
    return {"text": filled.text, "mask": filled.number, "candidates": candidates}


@dataclasses.dataclass(frozen=True)
class _Judge:
    """What is computed: probabilities and ids, [B, some]."""

    entries: int
    """Of the tokenizer: a model's vocabulary may be larger, and those ids have no text."""
    top: int
    ids: tuple[int, ...]
    """Those asked for; none: the likeliest."""

    def __call__(self, net: Model, params: Any, batch: Batch) -> tuple[jax.Array, jax.Array]:
        hidden = heads.predictions(net.apply(params, batch), batch)
        chances = jax.nn.softmax(net.unembed(params, hidden), axis=-1)[:, 0]
        if not self.ids:
            found = jax.lax.top_k(chances[:, : self.entries], self.top)
            return found[0], found[1]
        ids = jnp.array(self.ids, jnp.int32)
        return chances[:, ids], jnp.broadcast_to(ids, (len(chances), len(self.ids)))
