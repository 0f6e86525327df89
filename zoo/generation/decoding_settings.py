"""Settings of generation: frozen dataclasses that validate their fields. This module does not import JAX."""

import dataclasses
import math
from typing import Literal

from zoo.errors import require


@dataclasses.dataclass(frozen=True, kw_only=True)
class Processors:
    """Changes of the logits before the next token is selected, by sampling and beam search alike.

    The fields are applied in their order here, which is that of `transformers`; their defaults change nothing. A token that is
    excluded has the logit -inf. The end tokens are those that end a text, see `zoo.generation.decode_loop.Decoder.ends`.
    """

    repetition_penalty: float = 1.0
    """Divides the positive logits of tokens already in the prompt or the output, and multiplies the negative ones; 1 = off."""
    no_repeat_ngram: int = 0
    """Never repeat this many consecutive tokens of the prompt and the output; 0 = off."""
    source_no_repeat_ngram: int = 0
    """Never repeat this many consecutive tokens of an encoder-decoder's source, or of a decoder's prompt; 0 = off."""
    bad_words: tuple[tuple[int, ...], ...] = ()
    """Sequences of ids that are never completed. Those of a single end token are ignored."""
    min_length: int = 0
    """Exclude the end tokens while prompt and output have fewer tokens; an encoder-decoder's first token counts; 0 = off."""
    min_tokens: int = 0
    """Exclude the end tokens while there are fewer new tokens; 0 = off."""
    forced_first: int | None = None
    """Id that follows the first token of all, which is the first new token of an encoder-decoder; None = off."""
    forced_end: tuple[int, ...] = ()
    """Ids one of which is the last token that the limit permits; empty = off."""
    suppressed: tuple[int, ...] = ()
    """Ids that are never generated."""
    begin_suppressed: tuple[int, ...] = ()
    """Ids that are not the first new token, or not the one after `forced_first`."""
    renormalize: bool = False
    """In a beam search, make the probabilities add up to 1 again."""

    def __post_init__(self) -> None:
        penalty = self.repetition_penalty
        require(0 < penalty < math.inf, "repetition_penalty", penalty, "choose a number above 0; 1 = off")
        for name in ("no_repeat_ngram", "source_no_repeat_ngram", "min_length", "min_tokens"):
            value = getattr(self, name)
            require(value >= 0, name, value, "choose 1 or more tokens; 0 = off")
        require(() not in self.bad_words, "bad_words", self.bad_words, "a sequence has no ids; remove it")
        first = () if self.forced_first is None else (self.forced_first,)
        ids = {"forced_first": first, "forced_end": self.forced_end, "suppressed": self.suppressed}
        ids |= {"begin_suppressed": self.begin_suppressed, "bad_words": sum(self.bad_words, ())}
        for name, values in ids.items():
            require(min(values, default=0) >= 0, name, getattr(self, name), "ids are 0 or more")

    @property
    def uses_ends(self) -> bool:
        """True if the result depends on which tokens end a text."""
        return bool(self.min_length or self.min_tokens or self.bad_words)

    @property
    def uses_text(self) -> bool:
        """True if the result depends on the tokens of the prompt or the output."""
        ngrams = self.no_repeat_ngram or self.source_no_repeat_ngram
        return bool(self.repetition_penalty != 1 or ngrams or any(len(word) > 1 for word in self.bad_words))


UNCHANGED = Processors()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """Settings of sampling. The fields are applied in their order here; their defaults do not change the probabilities."""

    temperature: float = 1.0
    """Divides the logits; below 1 the likely tokens become likelier. 0 = always the likeliest token (greedy)."""
    top_k: int = 0
    """Sample only from this many of the likeliest tokens; 0 = off."""
    top_p: float = 1.0
    """Sample only from the likeliest tokens that together have this probability; 1 = off."""
    min_p: float = 0.0
    """Sample only from tokens that have at least this fraction of the likeliest token's probability; 0 = off."""

    def __post_init__(self) -> None:
        # float32 can represent the quotient of any plausible logit and 1e-6.
        warm = self.temperature == 0 or 1e-6 <= self.temperature < math.inf
        require(warm, "temperature", self.temperature, "choose 0 for the likeliest token, or a number from 0.000001 on")
        require(self.top_k >= 0, "top_k", self.top_k, "choose 1 or more tokens; 0 = off")
        require(0 < self.top_p <= 1, "top_p", self.top_p, "choose more than 0 (which would leave no token) up to 1 (off)")
        require(0 <= self.min_p <= 1, "min_p", self.min_p, "choose 0 (off) up to 1 (more would leave no token)")


GREEDY = Sampling(temperature=0.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Beams:
    """Settings of beam search, which is not random: it keeps the best texts of every length."""

    beams: int = 1
    """Number of texts that the search keeps; 1 = no beam search. --samples sets how many of them are returned, the best first."""
    length_penalty: float = 1.0
    """A text's score is its log probability divided by its length to this power: 0 favours short texts, more than 1 long ones."""
    search_until: Literal["full", "unlikely", "impossible"] = "unlikely"
    """When a search ends. full: as many texts are finished as there are beams. unlikely: no unfinished text would be among the
    best at its present length. impossible: none could be at any length."""

    def __post_init__(self) -> None:
        require(1 <= self.beams <= 1024, "beams", self.beams, "choose 1 (no beam search) to 1,024")
        finite = abs(self.length_penalty) <= 100
        require(finite, "length_penalty", self.length_penalty, "choose 0 (off) or a power of -100 to 100")
