"""The input and the output of every model.

Shape letters (the legend for the whole project): B batch, T query positions, S key positions, N query heads, K key/value
heads, H head size, D model width, F feed-forward width, V vocabulary, L layers, P predicted positions, Q sequences in a row,
C choices of a question or completions of a preference, O outputs of a classifier, A examples: B of them, except that the rows of
choices are [A, C].
"""

import dataclasses
from typing import Any

import jax
from jaxtyping import Array, Bool, Float, Int, UInt32

IGNORED = -100
"""The label of tokens and rows that are not scored, as in published data sets."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Batch:
    """A batch of examples, of one type for all families; fields that a family does not use are None.

    Every leaf has the batch axis first (under `pmap`, after a device axis), so one rule shards, splits and pads all of them.
    Arrays are numpy on the host and `jax.Array` on devices; where only shapes matter, `jax.ShapeDtypeStruct` takes the place of
    either.
    """

    tokens: Int[Any, "*B T"]
    """Input ids."""
    segments: Int[Any, "*B T"] | None = None
    """0 for padding, then 1, 2, ... for the documents packed into a row. Tokens of different segments do not see each other."""
    key_segments: Int[Any, "*B T"] | None = None
    """Segments as which the tokens are seen, if others than those as which they see: 0 for a token of a segment that none sees.
    None: `segments`."""
    positions: Int[Any, "*B T"] | None = None
    """Position ids, restarting in each packed document. None: 0 .. T-1."""
    types: Int[Any, "*B T"] | None = None
    """Token types (sentence A or B)."""
    predict_at: Int[Any, "*B P"] | None = None
    """Positions to predict. None: all of them, P = T."""
    query_at: Int[Any, "*B P"] | None = None
    """Positions that XLNet's query stream predicts from tokens of lower rank, without seeing the token at the position itself."""
    targets: Int[Any, "*B P"] | None = None
    """Token ids to predict at those positions."""
    weights: Float[Any, "*A P"] | None = None
    """Weight of each prediction in the loss; 0: it does not count."""
    order: Int[Any, "*B T"] | None = None
    """Ranks: a position sees those of its own rank and of lower ones. XLNet's ranks are places in the order of prediction, and -1
    for tokens that all positions see; its query stream sees lower ranks only. In a decoder-only model, a prefix has rank 0 and
    the positions after it 1, 2, ..."""
    backward: Bool[Any, "*B"] | None = None
    """True for rows whose text runs from right to left, where distances have the opposite sign (XLNet). None: no such rows."""
    summary_at: Int[Any, "*B Q"] | None = None
    """Position of the token whose hidden state summarizes a sequence (its CLS), if a row may have several sequences or it is not
    the first token. None: position 0. For choices [B, C, 1]."""
    labels: Any | None = None
    """Labels for the head; `IGNORED` where there is none. For sequences int32 (regression: float32) [B, Q], or int32 [B, O] if a
    sequence may have several labels, 1 for those it has and 0 for the others; for tokens int32 [B, T], for a span its first and
    last position, int32 [B, 2]. For choices int32 [B], and for vectors of texts the numbers of the texts, int32 [B, C], or the
    score of a pair, float32 [B, 1]; the other fields of both are [B, C, T]."""
    source: "Batch | None" = None
    """The encoder's input in an encoder-decoder, or where a decoder that belongs to training alone reads a vector of it."""
    index: UInt32[Any, "..."] | None = None
    """Number of each example in the global stream, [B]; with the seed and the step, it is the key of all random numbers."""
    extra: dict[str, Any] | None = None
    """Further numbers of each example, float32 arrays with the batch axis first: "margin" [B] of a preference,
    "reference" [B, 2], the log-probabilities of its completions under a reference, "desired" [B], 1 or 0, the label of a
    completion, and "z" [B], the reference point of Kahneman-Tversky optimization; of a sampled response "advantage" [B], and
    "old" and "reference" [B, T], the log-probabilities of its tokens when it was sampled and under a reference; of texts in
    micro-batches "losses" [B], and their gradients "vectors" [B, C, D] and "log_scale" [B]; of texts with a vector for each token
    "compared" [B, C, T], 1 for the tokens whose vectors are compared, else 0."""

    @property
    def predicted_positions(self) -> Int[Any, "*B P"] | None:
        """The positions to predict: `query_at` if it is set, else `predict_at`. None: all positions."""
        return self.predict_at if self.query_at is None else self.query_at


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Output:
    """The output of a model. It has no logits, which the model's `unembed` computes."""

    hidden: Float[Array, "B T D"]
    """Final hidden states, after the last norm."""
    predicted: Float[Array, "B P D"] | None = None
    """Final hidden states of the query stream at `batch.query_at`; with a cache, at the position after each token."""
    summaries: Float[Array, "B Q D"] | None = None
    """Summaries of sequences, in a model that does not take the hidden states at `batch.summary_at` (mean pooling)."""
    source_hidden: Float[Array, "B S D"] | None = None
    """The encoder's final hidden states."""
    losses: dict[str, Float[Array, " B"]] = dataclasses.field(default_factory=dict)
    """Terms of the loss that the model itself adds, such as that of a router of experts, one number for each row. Their names and
    factors are those of `Model.loss_factors`."""
    carry: Any = dataclasses.field(default_factory=dict)
    """State for the next step (XLNet's memory), batch axis first; `{}` for a model without state."""
    cache: Any = None
    """The `zoo.nn.kv_cache.Cache` with the batch's tokens; None in a call without a cache."""
