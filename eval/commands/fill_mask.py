"""`zoo fill-mask`: the most likely words for the masks of a text, or the probabilities of given words."""

import dataclasses
import json
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from eval.commands import terminal_output
from eval.commands.model_options import ModelOptions
from eval.inference import encoder_runner
from eval.inference.encoder_inputs import Texts
from eval.inference.encoder_runner import Encoder, EncoderRow, Text
from train.run.progress_display import ProgressBar
from train.tokenizers.special_tokens import BERT, ROBERTA
from train.tokenizers.tokenizer import Tokenizer
from train.tokenizers.wordpiece import CONTINUES
from zoo.batch import Batch
from zoo.errors import BadInput, require
from zoo.models import Model
from zoo.nn import task_heads

SPELLED = re.compile("|".join(re.escape(names["mask"]) for names in (BERT, ROBERTA)))
"""Spelling of a mask in a text: BERT's, or that of RoBERTa and XLNet, for every model."""


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A token to fill a mask with."""

    token: str
    """The entry of the vocabulary: RoBERTa and XLNet include the space before a word, BERT the ## of a word's later tokens."""
    id: int
    probability: float
    """Probability over the full vocabulary, at this mask, with all masks of the text masked."""
    start: int
    end: int
    """The token's characters in `text` are [start, end)."""
    text: str
    """The text with the token in place of the mask; other masks are unchanged."""


@dataclasses.dataclass(frozen=True)
class FilledMask:
    """A mask and its candidates, the most likely first."""

    text: str
    number: int
    """Number of the mask in its text, from 1."""
    start: int
    end: int
    """The mask's characters in `text` are [start, end)."""
    candidates: tuple[Candidate, ...]


def run_fill_mask(model: ModelOptions, source: Texts, *, top: int, targets: Sequence[str], as_json: bool) -> int:
    """Fill the masks of texts and print the candidates; return the exit code.

    Args:
        as_json: print a JSON object for each mask.

    Raises:
        BadInput: see `train.weights.load.load_model`, `encoder_runner.read_texts` and `fill_masks`.
    """
    require(top >= 1, "top", top, "choose 1 or more words")
    require(all(map(str.strip, targets)), "targets", "''", "write a word")
    texts = encoder_runner.read_texts(source)
    _masks(texts)
    encoder = Encoder.of(model.load(), batch=model.batch, dtype=model.dtype())
    filled = fill_masks(encoder, texts, top=top, targets=targets, truncate=source.truncate, quiet=as_json)
    for number, mask in enumerate(filled, 1):
        if as_json:
            terminal_output.write_output(json.dumps(mask_record(mask), ensure_ascii=False) + "\n")
        else:
            title = f"--- mask {number} of {len(filled)}\n" if len(filled) > 1 else ""
            terminal_output.write_output(title + candidates_table(mask, terminal_output.terminal_width()))
    return 0


def fill_masks(
    encoder: Encoder, texts: Sequence[Text], *, top: int, targets: Sequence[str] = (), truncate: bool = False, quiet: bool = False
) -> list[FilledMask]:
    """Return the `top` most likely entries, or the `targets`, for every mask of the texts, in order, most likely first.

    Each mask is predicted alone, with the text's other masks masked. The masks of RoBERTa and XLNet include the white space
    before them, since their entries have a space of their own: a RoBERTa target gets one there, an XLNet target everywhere.

    Raises:
        BadInput: a text without a mask, too long or with a mask in the part cut off; a model without a head for masked words, a
            target that is not one entry of the vocabulary, or `top` larger than the vocabulary.
    """
    tokenizer = encoder.loaded.tokenizer
    encoder.check_masked()
    require(
        top <= tokenizer.vocab_size, "top", top, f"the tokenizer has {tokenizer.vocab_size:,} entries; choose at most that many"
    )
    masks = _masks(texts)
    rows = _rows(encoder, texts, masks, truncate)
    # The same word is one entry after a space and another one elsewhere; both are computed for every mask.
    ids = {spaced: _entries(tokenizer, targets, spaced) for spaced in {_spaced(tokenizer, mask) for mask in masks}}
    compute = _TopEntries(tokenizer.vocab_size, top, tuple(sorted(set().union(*ids.values()))))
    results: dict[int, FilledMask] = {}
    with ProgressBar("filling", "masks", before="compiling", quiet=quiet or jax.process_index() != 0) as progress:
        for row, (probabilities, entries) in encoder.run(rows, compute):
            mask = masks[row.number]
            pairs = zip(probabilities.tolist(), entries.tolist(), strict=True)
            selected = [pair for pair in pairs if not targets or pair[1] in ids[_spaced(tokenizer, mask)]]
            ranked = sorted(selected, key=lambda pair: (-pair[0], pair[1]))
            candidates = tuple(_candidate(tokenizer, mask, entry, probability) for probability, entry in ranked)
            results[row.number] = FilledMask(mask.text, mask.number, mask.start, mask.end, candidates)
            progress(len(results), len(masks))
    return [results[number] for number in range(len(masks))]


def candidates_table(filled: FilledMask, columns: int | None) -> str:
    """Return a mask's candidates as lines of at most `columns` columns; longer texts are cut around the mask."""
    names = [json.dumps(candidate.token, ensure_ascii=False) for candidate in filled.candidates]
    name_width = max(len("token"), *map(terminal_output.cell_len, names))
    text_width = columns and max(20, columns - len("probability") - name_width - 4)
    lines = [
        terminal_output.text_excerpt(filled.text, filled.start, filled.end, columns),
        f"probability  {'token':<{name_width}}  text",
    ]
    for name, candidate in zip(names, filled.candidates, strict=True):
        padding = " " * (name_width - terminal_output.cell_len(name))
        text = terminal_output.text_excerpt(candidate.text, candidate.start, candidate.end, text_width)
        lines.append(f"{_number(candidate.probability):>11}  {name}{padding}  {text}")
    return "\n".join(lines) + "\n"


class _Mask(NamedTuple):
    """A mask and its position."""

    source: int
    """Number of its text."""
    text: str
    number: int
    """Number of the mask in its text, from 1."""
    start: int
    end: int
    """The mask's characters in `text` are [start, end)."""


def _masks(texts: Sequence[Text]) -> list[_Mask]:
    """Return the masks of all texts, in order."""
    masks = []
    for source, (where, text) in enumerate(texts):
        text_masks = [_Mask(source, text, number, *match.span()) for number, match in enumerate(SPELLED.finditer(text), 1)]
        if not text_masks:
            raise BadInput(f"{where}: has no mask; write {BERT['mask']} in place of a word")
        masks += text_masks
    return masks


def _rows(encoder: Encoder, texts: Sequence[Text], masks: Sequence[_Mask], truncate: bool) -> list[EncoderRow]:
    """Return a row for each mask, in which all masks of its text are masked."""
    tokenizer, mask_id = encoder.loaded.tokenizer, encoder.special_tokens.mask
    segments = [SPELLED.split(text) for _, text in texts]
    if tokenizer.mask_absorbs_space:
        # The mask includes the white space before it.
        segments = [[*(part.rstrip() for part in parts[:-1]), parts[-1]] for parts in segments]
    ids = tokenizer.encode_many(part for parts in segments for part in parts)
    tokens = []
    for (where, _), parts in zip(texts, segments, strict=True):
        encoded = [next(ids)]
        for _ in parts[1:]:
            encoded += [np.array([mask_id], np.int32), next(ids)]
        tokens.append(encoder.with_special_tokens(np.concatenate(encoded), where, truncate=truncate))
    rows = []
    for number, mask in enumerate(masks):
        where, at = texts[mask.source].where, np.flatnonzero(tokens[mask.source] == mask_id)
        if mask.number > len(at):
            beyond = f"mask {mask.number} is beyond the model's {encoder.room} positions"
            raise BadInput(f"{where}: {beyond}; shorten the text before it")
        rows.append(EncoderRow(number, where, tokens[mask.source], int(at[mask.number - 1])))
    return rows


def _spaced(tokenizer: Tokenizer, mask: _Mask) -> bool:
    """Return whether the token for the mask begins with a space of its own."""
    return tokenizer.mask_absorbs_space and mask.text[: mask.start][-1:].isspace()


def _entries(tokenizer: Tokenizer, targets: Sequence[str], spaced: bool) -> list[int]:
    """Return the id of each target."""
    ids = []
    for target in targets:
        spelled = f" {target}" if spaced and not target[0].isspace() else target
        tokens = tokenizer.encode(spelled).tolist()
        if len(tokens) != 1 or (tokenizer.special_tokens and tokens == [tokenizer.special_tokens.unk]):
            spelling = " + ".join(json.dumps(tokenizer.decode([token]), ensure_ascii=False) for token in tokens[:8]) or "nothing"
            raise BadInput(f"--targets {target!r}: the tokenizer splits it into {spelling}; choose a word that is one entry")
        ids += tokens
    return ids


def _candidate(tokenizer: Tokenizer, mask: _Mask, entry: int, probability: float) -> Candidate:
    token, before = tokenizer.spell(entry), mask.text[: mask.start]
    continues = tokenizer.kind == "wordpiece" and token.startswith(CONTINUES)
    word = token.removeprefix(CONTINUES) if continues else token
    if continues or tokenizer.mask_absorbs_space or tokenizer.kind == "xlnet":
        before = before.rstrip()
    if tokenizer.kind == "xlnet" and not before:
        word = word.lstrip()
    return Candidate(token, entry, probability, len(before), len(before + word), before + word + mask.text[mask.end :])


def _number(probability: float) -> str:
    return f"{probability:.4f}" if probability >= 0.0001 else f"{probability:.1e}"


def mask_record(filled: FilledMask) -> dict[str, Any]:
    """Return a mask with its candidates as it is written as JSON."""
    fields = ("token", "id", "probability", "text")
    candidates = [{name: getattr(candidate, name) for name in fields} for candidate in filled.candidates]
    return {"text": filled.text, "mask": filled.number, "candidates": candidates}


@dataclasses.dataclass(frozen=True)
class _TopEntries:
    """The computation of probabilities and ids at the masks, both [B, `top` or number of `ids`]."""

    entries: int
    """Number of entries of the tokenizer: a model's vocabulary may be larger, and its further ids have no text."""
    top: int
    ids: tuple[int, ...]
    """Ids to compute probabilities of; empty: the most likely ones."""

    def __call__(self, model: Model, params: Any, batch: Batch) -> tuple[jax.Array, jax.Array]:
        hidden = task_heads.predicting_states(model.apply(params, batch), batch)
        probabilities = jax.nn.softmax(model.unembed(params, hidden), axis=-1)[:, 0]
        if not self.ids:
            best = jax.lax.top_k(probabilities[:, : self.entries], self.top)
            return best[0], best[1]
        ids = jnp.array(self.ids, jnp.int32)
        return probabilities[:, ids], jnp.broadcast_to(ids, (len(probabilities), len(self.ids)))
