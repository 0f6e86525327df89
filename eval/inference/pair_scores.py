"""Scores of pairs of texts by a cross-encoder, which reads both texts in one row."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Array, Float, Float32, Int32

from eval.inference.batch_loop import Progress, no_progress
from eval.inference.encoder_runner import UNLIMITED, Encoder, EncoderRow, Text
from train.rows.example_rows import encoded_texts, fill_template
from train.weights.cross_encoder_settings import cross_encoder_settings, is_cross_encoder
from train.weights.load import Loaded
from zoo.batch import Batch
from zoo.cross_encoder_files import ScoreActivation
from zoo.errors import BadInput
from zoo.models import Model
from zoo.nn import task_heads


@dataclasses.dataclass(frozen=True, eq=False)
class CrossEncoder:
    """A loaded cross-encoder; `CrossEncoder.of` makes one."""

    encoder: Encoder
    activation: ScoreActivation
    truncate: bool
    """Cut pairs that are too long; otherwise they are refused."""
    cut: list[str] = dataclasses.field(default_factory=list)
    """Names of the second texts of pairs that were cut; they are reported."""

    @staticmethod
    def of(loaded: Loaded, *, batch: int, dtype: Any, truncate: bool = False) -> "CrossEncoder":
        """Return the cross-encoder of a model.

        Raises:
            BadInput: the model has no head of one score; see also `Encoder.of` and `cross_encoder_settings`.
        """
        encoder = Encoder.of(loaded, batch=batch, dtype=dtype)
        if not is_cross_encoder(loaded):
            labels = getattr(loaded.model.config, "labels", ())
            head = f"a head of {len(labels)} labels" if labels else "no head for pairs"
            fix = "name a model with a head of one, such as a run of finetune-rerank"
            raise BadInput(f"{loaded.where}: it has {head}, and a cross-encoder gives a pair one score; {fix}")
        activation, longest = cross_encoder_settings(loaded)
        encoder = dataclasses.replace(encoder, room=longest or UNLIMITED)
        return CrossEncoder(encoder, activation or "sigmoid", truncate)

    def logits(self, pairs: Sequence[Sequence[Text]], progress: Progress = no_progress) -> Float32[np.ndarray, " N"]:
        """Return the logit of each pair, by which pairs are ordered. Equal pairs are computed once, so they have equal logits.

        Of a pair that is too long the end of the longer text is cut until both are equally long.

        Args:
            progress: called with (pairs done, all pairs).

        Raises:
            BadInput: a pair is too long, and `truncate` is False; or a logit is not finite.
        """
        encoder, special = self.encoder, self.encoder.special_tokens
        unique = {(first.text, second.text): second.where for first, second in pairs}
        encoded = encoded_texts(encoder.loaded.tokenizer, (text for pair in unique for text in pair))
        rows = []
        for number, ((first, second), where) in enumerate(unique.items()):
            ids = encoded[first], encoded[second]
            inputs, size = fill_template(*ids, special, encoder.room)
            if size > encoder.room:
                if not self.truncate:
                    count = f"{size} tokens with the query and special tokens, and this model reads at most {encoder.room}"
                    raise BadInput(f"{where}: {count}; shorten it, or add --truncate to cut its end off")
                self.cut.append(where)
                inputs, _ = fill_template(*_cut_pair(*ids, encoder.room - size + sum(map(len, ids))), special, encoder.room)
            rows.append(EncoderRow(number, where, inputs.ids, types=inputs.types))
        logits = np.empty(len(rows), np.float32)
        for done, (row, (logit,)) in enumerate(encoder.run(rows, _pair_logits), 1):
            logits[row.number] = logit
            progress(done, len(rows))
        numbers = {pair: number for number, pair in enumerate(unique)}
        return logits[[numbers[first.text, second.text] for first, second in pairs]]

    def scores(self, logits: Float32[np.ndarray, " N"]) -> Float32[np.ndarray, " N"]:
        """Return the scores of logits, as `CrossEncoder.predict` of sentence-transformers."""
        if self.activation == "identity":
            return logits
        # Imported here, because the import takes a second.
        from scipy.special import expit

        return expit(logits)

    def details(self) -> dict[str, Any]:
        """Return what a result says about the pairs that were cut; nothing if there are none."""
        if not self.cut:
            return {}
        return {"too long": f"{len(self.cut):,} pairs were cut to {self.encoder.room:,} tokens, the first at {self.cut[0]}"}


def _cut_pair(
    first: Int32[np.ndarray, " a"], second: Int32[np.ndarray, " b"], room: int
) -> tuple[Int32[np.ndarray, " c"], Int32[np.ndarray, " d"]]:
    """Return both texts with `room` tokens together, as `transformers` cuts the longer one first.

    If both are longer than half of an odd number, the longer text gets the last token, and the second one of equally long texts;
    in training it is the first text, as in BERT's own program (`fill_template`).
    """
    half, rest = divmod(max(room, 0), 2)
    if min(len(first), len(second)) <= half:
        return first, second
    is_longer = len(first) > len(second)
    return first[: half + rest * is_longer], second[: half + rest * (not is_longer)]


def _pair_logits(model: Model, params: Any, batch: Batch) -> tuple[Float[Array, " B"]]:
    summaries = task_heads.sequence_summaries(model.apply(params, batch), batch)
    return (model.sequence_logits(params, summaries)[:, 0, 0],)
