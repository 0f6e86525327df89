"""Rows of labelled completions: a prompt with its own completion, and often the same prompt with that of another example.

The second, mismatched completion is what Kahneman-Tversky optimization estimates a KL divergence from (Ethayarajh et al. 2024).
It is a function of the data alone, so that a reference is computed once. Without a reference there is no such divergence.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32

from train.config.option_groups import Preferences
from train.data.example_types import Content, UnpairedPreference
from train.rows.batches import Build
from train.rows.feedback import preference_rows
from train.rows.feedback.preference_rows import Completions, Limits, Side
from train.tokenizers.chat_template import ChatTemplate
from train.tokenizers.tokenizer import Tokenizer
from zoo.errors import BadInput

NAMES = ("labelled", "mismatched")
"""Names of the two completions of a row, for messages."""


class UnpairedRow(NamedTuple):
    """A labelled completion as ids."""

    sides: tuple[Side, ...]
    """The prompt with its own completion, and with a mismatched completion if an objective reads it."""
    desired: bool
    example: int
    """Number of its example."""
    reference: Float32[np.ndarray, " 2"] | None = None
    """Log-probabilities of both completions under a reference, if an objective reads them."""


def encode_rows(
    examples: Sequence[UnpairedPreference],
    tokenizer: Tokenizer,
    cfg: Any,
    options: Preferences,
    limits: Limits,
    template: ChatTemplate | None = None,
    *,
    mismatched: bool = True,
) -> tuple[list[UnpairedRow], list[str]]:
    """Return the rows of labelled completions, and a message for each that --labelled.skip-bad leaves out.

    Args:
        mismatched: give each row a mismatched completion. One that --labelled.skip-bad leaves out is not used as such.

    Raises:
        BadInput: there is no mismatched completion for an example, some examples are texts and others conversations, or see
            `preference_rows.encode_example_completions`.
    """
    if other := next((item for item in examples if type(item.prompt) is not type(examples[0].prompt)), None):
        first, second = ("a text" if isinstance(item.prompt, str) else "a conversation" for item in (other, examples[0]))
        what = f"{other.origin} is {first}, and {examples[0].origin} is {second}"
        raise BadInput(f"{what}; kto compares examples with each other: write all of them alike")

    def encode(completions: dict[int, tuple[Content, ...]]) -> tuple[list[UnpairedRow], list[str]]:
        """Return rows of the examples with these numbers and completions, and a message for each that is left out."""
        numbers = list(completions)
        texts = [Completions(examples[at].origin, examples[at].prompt, completions[at]) for at in numbers]
        encoded, messages = preference_rows.encode_example_completions(texts, tokenizer, cfg, options, limits, NAMES, template)
        return [UnpairedRow(sides, examples[numbers[at]].desired, numbers[at]) for at, sides in encoded], messages

    own: dict[int, tuple[Content, ...]] = {number: (item.completion,) for number, item in enumerate(examples)}
    if not mismatched:
        return encode(own)
    messages: list[str] = []
    if options.skip_bad:
        rows, messages = encode(own)
        own = {row.example: own[row.example] for row in rows}
    numbers, pairs = list(own), dict[int, tuple[Content, ...]]()
    for number, other in zip(numbers, mismatched_examples([examples[number] for number in numbers]), strict=True):
        if other is not None:
            pairs[number] = (*own[number], *own[numbers[other]])
            continue
        what = "kto compares an example with one that has another prompt and another completion"
        count = f"none of the {len(own)} examples of the same split (training or held out) has both"
        fix = "add examples, hold out more of them with --data.valid-fraction or --data.valid-paths, or add --labelled.skip-bad"
        messages.append(f"{examples[number].origin}: {what}, and {count}; {fix}")
        if not options.skip_bad:
            raise BadInput(messages[0])
    rows, too_long = encode(pairs)
    return rows, messages + too_long


def mismatched_examples(examples: Sequence[UnpairedPreference]) -> list[int | None]:
    """Return, for each example, the number of the example whose completion is used as its mismatched completion.

    It is the next example whose prompt and completion both differ; the first example follows the last one. None: there is none,
    for instance because there is only one example.
    """
    prompts, completions = [item.prompt for item in examples], [item.completion for item in examples]
    past_prompt, past_completion = _runs(prompts), _runs(completions)
    numbers: list[int | None] = []
    for number, example in enumerate(examples):
        distance = 1
        while distance < len(examples):
            other = (number + distance) % len(examples)
            # A run of equal texts is skipped at once: data sorted by prompt or by completion takes no quadratic time.
            if prompts[other] == example.prompt:
                distance += past_prompt[other]
            elif completions[other] == example.completion:
                distance += past_completion[other]
            else:
                numbers.append(other)
                break
        else:
            numbers.append(None)
    return numbers


def _runs(texts: Sequence[Content]) -> list[int]:
    """Return the distance from each text to the next different one, the first after the last; n if all n texts are equal."""
    count = len(texts)
    distances = [count] * count
    # The second time around, the distances behind the end are final.
    for number in reversed(range(2 * count)):
        at, following = number % count, (number + 1) % count
        distances[at] = 1 if texts[at] != texts[following] else min(1 + distances[following], count)
    return distances


def builder(cfg: Any, tokenizer: Tokenizer, target_length: int = 0) -> Build:
    """Return `build(rng, row, length)`, which converts an `UnpairedRow` to fields of `Batch` with an axis C, its own first.

    The fields are those of `preference_rows.builder`, but extra has "desired", float32 [], which is 1 or 0.

    Raises:
        BadInput: the tokenizer does not fit the model.
    """
    all_sides = preference_rows.sides_builder(cfg, tokenizer, target_length)

    def build(rng: np.random.Generator, row: UnpairedRow, length: int) -> dict[str, Any]:
        return all_sides(row.sides, length) | {"extra": {"desired": np.array(row.desired, np.float32)}}

    return build


def row_bytes(rows: Iterable[UnpairedRow]) -> Iterator[bytes]:
    """Yield the bytes of all ids and labels, for a fingerprint."""
    for row in rows:
        yield from preference_rows.side_bytes(row.sides, row.desired)
