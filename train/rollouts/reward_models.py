"""Reward models as judges of responses: frozen models of any family that give a prompt with its completion one score.

A text is encoded with the reward model's own tokenizer, and its score is read where training and `zoo eval --task rewards` read
it (see `train.rows.feedback.preference_rows`). A response that the limit cut off is read with an end mark like every other.

The number of tokens that a response has for the reward model is known only after it has been sampled. Its bytes are a bound, but
hardly any model has positions for one token per byte. A response that is too long therefore ends the run, or its end is cut.

A classifier is a reward model if one of its labels is named: the score is the log-probability of that label for the text that
prompt and completion make together, or for the two as a pair if the classifier is a run that was trained on pairs of texts.
"""

import dataclasses
import functools
import json
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Bool

from train.config.run_config import Run
from train.data.example_types import Dialogue, Prompt
from train.engine import device_mesh
from train.engine.micro_batches import map_rows
from train.engine.reward_scores import is_reward_model, label_log_probs, reward_scores
from train.rollouts.rewards import OPTION, Completion, ModelName, Scores
from train.rows.feedback import preference_rows
from train.rows.feedback.preference_rows import Side
from train.rows.row_source import digest_of
from train.tokenizers.chat_template import ChatTemplate, chat_template, has_template
from train.tokenizers.chat_token_ids import CompletionText, check_contents, end_after_answer
from train.tokenizers.tokenizer import Tokenizer
from train.weights.load import Loaded, load_model
from train.weights.reference_log_probs import digest_of_parameters
from train.weights.reward_scale import RewardScale
from zoo.batch import Batch
from zoo.configs import longest_row
from zoo.errors import BadInput
from zoo.models import Model
from zoo.precision import DTYPES, cast_params


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Lengths of the rows of a reward model, in its tokens; one program is compiled for each length."""

    length: int
    """Number of tokens of most rows, or of an encoder-decoder's targets: the longest prompt and the most tokens of a response."""
    source: int
    """Number of tokens of an encoder-decoder's sources, the longest prompt; 0 for others."""
    limit: int | None
    """Largest length that the model has; None: there is none."""
    prompt_limit: int | None
    """Longest prompt in tokens; a longer one loses its beginning. None = prompts are not cut."""

    def fit(self, needed: int) -> int:
        """Return the length of the rows of a batch whose longest one needs so many tokens, at most `limit`.

        It is a function of the batch alone, so that a run that continues computes the same scores.
        """
        length = self.length
        while length < needed:
            length *= 2
        return length if self.limit is None else min(length, self.limit)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Capacity:
    """Numbers of responses and tokens that a reward model is prepared for."""

    tokens: int
    """Most tokens of a response, in tokens of the model that writes them."""
    rows: int
    """Number of responses that are scored at a time; it is rounded up to a number that the mesh divides."""
    num_micro: int = 1
    """Number of micro-batches in which they are computed."""
    dtype: Any
    """Dtype of the arithmetic."""
    truncate_prompts: bool = False
    """Cut the beginning of prompts that do not fit; otherwise they are refused."""
    truncate_responses: bool = False
    """Cut the end of responses that do not fit; otherwise they are refused."""

    @classmethod
    def of_run(cls, run: Run) -> "Capacity":
        """Return those of a run with rollouts."""
        return cls(
            tokens=run.options.rollout.tokens,
            rows=run.data.batch,
            num_micro=run.accumulate,
            dtype=DTYPES[run.precision],
            truncate_prompts=run.options.labelled.truncate,
            truncate_responses=run.options.rollout.reward_truncate,
        )


@dataclasses.dataclass(frozen=True, eq=False)
class RewardModel:
    """A frozen model whose score, normalized if it has a `reward_scale.json`, is the reward of a response.

    The score of a classifier is the log-probability of one of its labels.
    """

    collective: ClassVar[bool] = True
    """True: every process calls `scores` with the same completions, and the devices of all of them compute."""

    name: str
    """Folder of the model, or folder and label of a classifier, as written on the command line."""
    weight: float
    model: Model
    params: Any
    """Parameters in the dtype of the arithmetic, sharded over the mesh."""
    tokenizer: Tokenizer
    scale: RewardScale
    mesh: Mesh
    rows: int
    """Number of rows of a batch; the mesh divides it."""
    num_micro: int
    """Number of micro-batches in which the rows of a batch are computed."""
    sizes: Sizes
    digest: str
    """Changes with the parameters, the tokenizer and the normalization."""
    truncate: bool
    """Cut the end of completions that do not fit into the model's positions; otherwise they are refused."""
    own_tokenizer: bool
    """True if the tokenizer is another than that of the model in training."""
    template: ChatTemplate | None
    """Chat template of the reward model's tokenizer; None = it has none, and the policy's template renders conversations."""
    end: int | None = None
    """Id of the special token that this template writes after an answer, as in the rows of training; None: end-of-text."""
    label: int | None = None
    """Number of the label of a classifier whose log-probability is the score; None = the model has one score."""
    joined: bool = False
    """True if prompt and completion are read as one text, in the template of one text."""

    def __str__(self) -> str:
        normalized = "normalized" if self.scale != RewardScale() else "not normalized"
        facts = [self.model.family, normalized if self.label is None else "log-probability of the label"]
        facts += ["with its own tokenizer"] if self.own_tokenizer else []
        return f"{self.name}{f'@{self.weight:g}' if self.weight != 1 else ''} ({', '.join(facts)})"

    def scores(self, completions: Sequence[Completion]) -> Scores:
        """Return the score of each completion, in batches of `rows`.

        Raises:
            BadInput: a completion does not fit into the model's positions and is not truncated, or its score is not finite.
        """
        chunks = [completions[first : first + self.rows] for first in range(0, len(completions), self.rows)]
        values, truncated = zip(*map(self._scores_of_batch, chunks), strict=True)
        return Scores(self.scale.gain * np.concatenate(values) + self.scale.bias, np.concatenate(truncated))

    def _encode(self, completions: Sequence[Completion]) -> tuple[list[Side], Bool[np.ndarray, " n"]]:
        """Return the ids of completions with their prompts, and whether the end of each is cut."""
        sizes = self.sizes
        texts = [
            CompletionText(text_of(item.prompt, self.template), item.text, bool(item.prompt.messages), self.end)
            for item in completions
        ]
        row_limit = None if sizes.prompt_limit is None else sizes.limit
        limits = (self.tokenizer, self.model.config, sizes.prompt_limit, row_limit)
        sides = preference_rows.encode_sides(texts, *limits, joined=self.joined)
        too_long = np.array([sizes.limit is not None and len(side.ids) > sizes.limit for side in sides])
        if too_long.any() and self.truncate:
            sides = preference_rows.encode_sides(texts, *limits, longest=sizes.limit, joined=self.joined)
        needed = [len(side.ids) for side in sides]
        if sizes.limit is not None and max(needed) > sizes.limit:
            worst = completions[int(np.argmax(needed))]
            what = (
                f"{max(needed)} tokens with the completion {worst.text[:40]!r}, and the reward model has {sizes.limit} positions"
            )
            fix = _SHORTER if self.truncate else _CUT
            raise BadInput(f"{OPTION} {self.name}: {worst.prompt.origin}: {what}; {fix}")
        return sides, too_long

    def _scores_of_batch(self, completions: Sequence[Completion]) -> Scores:
        sides, truncated = self._encode(completions)
        # Rows beyond the last completion repeat it.
        sides += sides[-1:] * (self.rows - len(sides))
        length = self.sizes.fit(max(len(side.ids) for side in sides))
        build = _row_builder(self.model.config, self.tokenizer, self.sizes.source, length)
        local = [build(sides[row]) for row in device_mesh.local_rows(self.mesh, self.rows).tolist()]
        host = Batch(**jax.tree.map(lambda *arrays: np.stack(arrays)[:, None], *local))  # [B, 1, ...]
        with jax.set_mesh(self.mesh):
            results = self._program(self.params, device_mesh.shard_batch(host, self.mesh, self.rows))
            values = np.asarray(jax.device_get(results), np.float64)[: len(completions)]
        if not np.isfinite(values).all():
            item = completions[int(np.argmin(np.isfinite(values)))]
            fix = "its weights are too large for --precision bfloat16, or damaged"
            raise BadInput(f"{OPTION} {self.name}: the score of a completion of {item.prompt.origin} is not finite; {fix}")
        return Scores(values, truncated)

    @functools.cached_property
    def _program(self) -> Callable[[Any, Batch], jax.Array]:
        def score(params: Any, batch: Batch) -> jax.Array:
            return map_rows(lambda rows: self._row_scores(params, rows)[:, 0], batch, self.num_micro)

        return jax.jit(score, out_shardings=NamedSharding(self.mesh, PartitionSpec()))

    def _row_scores(self, params: Any, rows: Batch) -> jax.Array:
        if self.label is None:
            return reward_scores(self.model, params, rows)
        return label_log_probs(self.model, params, rows, self.label)


def load_reward_model(
    named: ModelName, capacity: Capacity, mesh: Mesh, prompts: Sequence[Prompt], tokenizer: Tokenizer
) -> RewardModel:
    """Return the reward model or classifier in a folder.

    Args:
        prompts: all prompts; the longest one determines the shapes of its batches.
        tokenizer: that of the model in training.

    Raises:
        BadInput: nothing to load there, a model without a head of one score and without the named label, a prompt that leaves no
            room for a response and that --labelled.truncate does not cut, or a message that spells a special token of the model's
            tokenizer.
    """
    where = f"{OPTION} {named.name}"
    try:
        loaded = load_model(named.folder, mesh)
        digest = digest_of_parameters(named.folder)
    except BadInput as error:
        raise BadInput(f"{where}: {error}") from None
    label = _label_number(where, loaded.model, named)
    joined = label is not None and not _reads_pairs(loaded)
    # The scale of a folder is that of one score, not of a log-probability.
    scale = loaded.reward_scale if label is None else RewardScale()
    template, end = None, None
    if prompts[0].messages and has_template(loaded.tokenizer):
        template = chat_template(loaded.tokenizer, named.folder)
        end = end_after_answer(loaded.tokenizer, template, where)
    for prompt in prompts:
        # In a rendered text, the name of a special token is that token.
        check_contents(Dialogue(origin=f"{where}: {prompt.origin}", messages=prompt.messages), loaded.tokenizer)
    texts = [text_of(prompt, template) for prompt in prompts]
    identity = [digest, loaded.tokenizer.fingerprint, scale.gain, scale.bias]
    identity += [] if label is None else [label, joined]
    identity += [] if end is None else [f"end {end}"]
    with jax.set_mesh(mesh):
        params = jax.jit(lambda params: cast_params(params, capacity.dtype))(loaded.params)
    return RewardModel(
        name=named.name,
        weight=named.weight,
        model=loaded.model,
        params=params,
        tokenizer=loaded.tokenizer,
        scale=scale,
        mesh=mesh,
        rows=device_mesh.round_up_rows(mesh, capacity.rows),
        num_micro=capacity.num_micro,
        sizes=_sizes(
            where,
            loaded,
            prompts,
            texts,
            capacity.tokens,
            truncate=capacity.truncate_prompts,
            joined=joined,
        ),
        digest=digest_of(json.dumps(identity), ()),
        truncate=capacity.truncate_responses,
        own_tokenizer=loaded.tokenizer.fingerprint != tokenizer.fingerprint,
        template=template,
        end=end,
        label=label,
        joined=joined,
    )


def text_of(prompt: Prompt, template: ChatTemplate | None) -> str:
    """Return the text of a prompt. A conversation is rendered by `template`; if it is None, by the template of the policy."""
    if template is None or not prompt.messages:
        return prompt.prompt
    return template.render(prompt.messages, prompt.origin, generation_prompt=True)


_CUT = "add --rollout.reward-truncate to the same command: the run continues, and the end of such responses is cut and counted"
_SHORTER = "choose fewer --rollout.tokens or shorter prompts, or cut the beginning of prompts with --labelled.truncate"


def _label_number(where: str, model: Model, named: ModelName) -> int | None:
    """Return the number of the named label of a classifier; None for a reward model.

    Raises:
        BadInput: the model gives no text a score or a class, a classifier does not have the label or none is named, or a label
            of a reward model is named.
    """
    labels: list[str] = list(getattr(model.config, "labels", ()))
    is_classifier = model.task == "sequence" and not is_reward_model(model)
    if is_classifier and named.label in labels:
        return labels.index(named.label)
    if is_reward_model(model) and named.label is None:
        return None
    what = f"a {model.family} for the task {model.task}"
    if is_reward_model(model):
        raise BadInput(f"{where}: {what} gives one score and has no labels to choose from; write {named.folder}")
    if is_classifier and named.label is not None:
        raise BadInput(f"{where}: the classifier has no label {named.label!r}; choose one of {', '.join(labels)}")
    fix = "name a run of the recipe reward-model, or published weights whose head has one label"
    if labels:
        names = ", ".join(labels[:4]) + (", ..." if len(labels) > 4 else "")
        what = f"{what} with {len(labels)} label{'s' if len(labels) > 1 else ''} ({names})"
        fix = f"name the label to reward, such as {named.folder}:{labels[-1]}" if is_classifier else fix
    raise BadInput(f"{where}: {what} gives no single score; {fix}")


def _reads_pairs(loaded: Loaded) -> bool:
    """Return whether a classifier was trained on pairs of texts; published weights do not say so."""
    return loaded.run is not None and bool(getattr(loaded.run.options.labelled, "pair", ""))


def _sizes(
    where: str,
    loaded: Loaded,
    prompts: Sequence[Prompt],
    texts: Sequence[str],
    tokens: int,
    *,
    truncate: bool,
    joined: bool,
) -> Sizes:
    """Return the lengths of rows for prompts, whose texts are `texts`, and responses of at most `tokens` tokens.

    Raises:
        BadInput: there is no room for a prompt, or a prompt is too long and not cut.
    """
    cfg, tokenizer = loaded.model.config, loaded.tokenizer
    limit, special = longest_row(cfg), preference_rows.template_size(tokenizer, cfg, joined=joined)
    in_source = cfg.is_encoder_decoder
    beside = special if in_source else special + tokens
    if limit is not None and beside >= limit:
        what = f"the reward model has {limit} positions, which leave no room for a prompt beside --rollout.tokens {tokens}"
        raise BadInput(f"{where}: {what}; choose fewer")
    rendered = bool(prompts[0].messages)
    only_prompts = [CompletionText(text, "", rendered) for text in texts]
    sides = preference_rows.encode_sides(only_prompts, tokenizer, cfg, joined=joined)
    sizes = [len(_prompt_row(side)) - special for side in sides]
    longest = int(np.argmax(sizes))
    room = None if limit is None else limit - beside
    if room is not None and sizes[longest] > room and not truncate:
        what = f"a prompt of {sizes[longest]} tokens, and the reward model's {limit} positions have room for {room}"
        raise BadInput(f"{where}: {prompts[longest].origin}: {what} beside --rollout.tokens {tokens}; {_SHORTER}")
    size = sizes[longest] if room is None else min(sizes[longest], room)
    prompt_limit = room if truncate else None
    if in_source:
        length = tokens + 1 if limit is None else min(tokens + 1, limit)
        return Sizes(length=length, source=size + special, limit=limit, prompt_limit=prompt_limit)
    return Sizes(length=size + beside, source=0, limit=limit, prompt_limit=prompt_limit)


def _prompt_row(side: Side) -> np.ndarray:
    return side.ids if side.source is None else side.source


def _row_builder(cfg: Any, tokenizer: Tokenizer, source: int, length: int) -> Callable[[Side], dict[str, Any]]:
    """Return the function from the ids of a completion to its fields of `Batch`, without weights and targets."""
    build = preference_rows.side_builder(cfg, tokenizer, length if source else 0)

    def row(side: Side) -> dict[str, Any]:
        fields = build(side, source or length)
        return {name: value for name, value in fields.items() if name not in ("targets", "weights")}

    return row
