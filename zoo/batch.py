"""The two values that cross the house: what goes into a model and what comes out.

Shape letters (the legend for the whole project): B batch, T query positions, S key positions, N query heads, K key/value
heads, H head size, D model width, F feed-forward width, V vocabulary, L layers, P predicted positions, Q sequences in a row,
C choices of a question, O outputs of a classifier, A examples: B of them, except that the rows of choices are [A, C].
"""

import dataclasses
from typing import Any

import jax
from jaxtyping import Array, Bool, Float, Int, UInt32

IGNORED = -100
"""The label of what is not asked, as published data sets write it."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Batch:
    """One batch of examples, the same for every family; a field a family does not use is None.

    Every leaf has the batch axis first (`pmap` a device axis before it): sharding, micro-batches and padding follow one rule.
    Arrays are numpy on the host and `jax.Array` once placed; a `jax.ShapeDtypeStruct` stands for either where only shapes count.
    """

    tokens: Int[Any, "*B T"]
    """Input ids."""
    segments: Int[Any, "*B T"] | None = None
    """0 = padding, then 1, 2, ... for the documents packed into a row; tokens of different segments do not see each other."""
    positions: Int[Any, "*B T"] | None = None
    """Position ids, restarting in each packed document. None: 0 .. T-1."""
    types: Int[Any, "*B T"] | None = None
    """Token types (sentence A or B)."""
    predict_at: Int[Any, "*B P"] | None = None
    """Which positions are predicted. None: all of them, P = T."""
    query_at: Int[Any, "*B P"] | None = None
    """The same, of positions that are predicted without being seen: by XLNet's query stream, from what is of lower rank."""
    targets: Int[Any, "*B P"] | None = None
    """What is to be predicted there."""
    weights: Float[Any, "*A P"] | None = None
    """Weight of each prediction in the loss; 0 = not counted."""
    order: Int[Any, "*B T"] | None = None
    """Ranks: a position sees those of its own rank and of lower ones. XLNet's are places in the order of prediction, -1 of what
    all see; where it predicts, only lower ones are seen. Of a decoder's prefix they are 0, and 1, 2, ... behind it."""
    backward: Bool[Any, "*B"] | None = None
    """Rows whose text runs from right to left: there a key's distance has the opposite sign (XLNet). None: no row."""
    summary_at: Int[Any, "*B Q"] | None = None
    """Positions whose hidden state stands for a sequence (its CLS), where several may be packed into a row, or it is not the
    first token. None: position 0. Of choices [B, C, 1]."""
    labels: Any | None = None
    """What a head on top is to say; `IGNORED` where nothing is asked. Of sequences int32 (regression: float32) [B, Q], of tokens
    int32 [B, T], of a span its first and last position int32 [B, 2], of choices int32 [B], the other fields being [B, C, T]."""
    source: "Batch | None" = None
    """The encoder side of an encoder-decoder."""
    index: UInt32[Any, "*A"] | None = None
    """Number of each example in the global stream of examples: with the seed and the step it keys every random draw."""

    @property
    def places(self) -> Int[Any, "*B P"] | None:
        """Which positions are predicted, whether they are seen or not. None: all of them."""
        return self.predict_at if self.query_at is None else self.query_at


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Output:
    """What a model returns. Logits are not among it: they exist only through the model's `unembed`."""

    hidden: Float[Array, "B T D"]
    """Final hidden states, after the last norm."""
    predicted: Float[Array, "B P D"] | None = None
    """Final hidden states of the query stream, of `batch.query_at`."""
    source_hidden: Float[Array, "B S D"] | None = None
    """The encoder's final hidden states."""
    carry: Any = dataclasses.field(default_factory=dict)
    """State for the next step (XLNet memory); `{}` for a model without any. Batch axis first."""
