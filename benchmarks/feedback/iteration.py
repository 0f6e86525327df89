"""One iteration of learning by sampling, as the trainer computes it, and the seconds of its parts."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float32, Int32

from benchmarks.core.memory import planned_memory
from train.config.data_options import PromptData
from train.config.objectives import PolicyGradientOptions
from train.config.policy_gradient_options import PolicyGradientLoss
from train.config.rollout_options import Rollout
from train.config.run_config import Optim, Run
from train.data.example_types import Prompt
from train.data.text_files import Document
from train.engine import device_mesh
from train.engine.state_init import init_state
from train.inputs.prompt_inputs import PromptInputs, PromptRows
from train.objectives import objective
from train.rollouts.rewards import RewardFunction
from train.rollouts.rollout_feed import RolloutFeed
from train.rollouts.sampler import Responses, Sampler, cache_slots
from train.rows.batch_feed import FeedSource
from train.rows.batches import Batches
from train.rows.feedback.preference_rows import Side
from train.rows.feedback.response_rows import ResponseRow
from train.rows.mixture import Component, Mixture
from train.run.run_dir import RunDir
from train.step.assembly import assemble
from train.tokenizers.tokenizer import Tokenizer
from zoo import models
from zoo.batch import Batch
from zoo.configs import Precision
from zoo.generation.decoding_settings import GREEDY
from zoo.models import Model
from zoo.precision import DTYPES

ITERATION = "iteration"
PARTS = ("rollout", "policy", "reference", "step", "rest")
"""Parts of an iteration: the responses, their log-probabilities under the policy and under the reference, the training step, and
what is left, such as rewards, advantages and rows."""
SIZES = ("prompts", "group", "prompt_length", "tokens")
"""Fields of a shape, and options, that are its sizes."""
REFERENCE_FACTOR = 0.5
"""Factor from the policy's first weights to those of the reference; with equal weights the KL divergence would be 0 at first."""
NO_END = -1
"""Id that ends a response: no token has it, so that all responses have the same length."""
DATA = 4096
"""Number of prompts in the data. With few rows, shuffling takes 20 ms for each row, because grain permutes a larger range."""
FIRST_BYTES = 257
"""Entries of the smallest tokenizer."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
    """A policy and the sizes of its iteration."""

    size: str
    """The published name of the model."""
    config: Any
    prompts: int
    group: int
    """Responses to each prompt."""
    prompt_length: int
    tokens: int
    """Tokens of each response."""
    precision: Precision

    @property
    def rows(self) -> int:
        """Responses of an iteration."""
        return self.prompts * self.group

    @property
    def length(self) -> int:
        """Tokens of a prompt with a response."""
        return self.prompt_length + self.tokens

    def prompt_ids(self) -> Int32[np.ndarray, "D P"]:
        """Return the prompts of the data, random ids that are the same in every process."""
        rng = np.random.default_rng(self.prompt_length)
        return rng.integers(0, self.config.vocab, (max(DATA, self.prompts), self.prompt_length), dtype=np.int32)

    def run(self) -> Run:
        """Return the shape as a run of the trainer: GRPO with the KL divergence in the loss, as in TRL, and AdamW."""
        policy = PolicyGradientLoss(advantage="group_std", aggregation="sequences", beta=0.04, kl="loss")
        return Run(
            recipe=self.size,
            model=self.config,
            options=PolicyGradientOptions(
                policy_gradient=policy, rollout=Rollout(samples=self.group, tokens=self.tokens, write_every=0)
            ),
            steps=1 << 30,
            data=PromptData(length=self.length, batch=self.rows),
            optim=Optim(lr=1e-4, schedule="constant", warmup=0, b2=0.999, weight_decay=0.0),
            precision=self.precision,
        )

    def tokens_of(self, part: str) -> int:
        """Return the tokens that a part is measured by: those of the responses, or all that a forward pass reads."""
        return self.rows * (self.tokens if part in ("rollout", "rest", ITERATION) else self.length)

    def flops_of(self, part: str) -> float:
        """Return the FLOPs of the matrix products that a part needs: only the tokens of responses are predicted."""
        forward, rollout = self._forward(self.length), self._forward(self.length - 1)
        parts = {"rollout": rollout, "policy": forward, "reference": forward, "step": 3 * forward, "rest": 0.0}
        # The log-probabilities under the policy are not needed: those of sampling are the same.
        return parts["rollout"] + parts["reference"] + parts["step"] if part == ITERATION else parts[part]

    def _forward(self, length: int) -> float:
        total = models.model(self.config).flops(Batch(tokens=np.zeros((self.rows, length), np.int32)))
        return total - 2.0 * self.rows * (length - self.tokens) * self.config.width * self.config.vocab


class FirstSteps(NamedTuple):
    """Numbers that every implementation of an iteration must reproduce, given the same weights."""

    prompts: Int32[np.ndarray, "B P"]
    responses: Int32[np.ndarray, "B R"]
    """Sampled responses of the first iteration."""
    old: Float32[np.ndarray, "B R"]
    """Their log-probabilities under the first weights."""
    losses: tuple[float, float]
    """Losses of the training step on these responses, and of a second one on the same."""


class _Clock:
    """The seconds of the parts of an iteration."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def call(self, part: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """Return the result of a function, when it is complete, and add its time to a part."""
        began = time.perf_counter()
        result = jax.block_until_ready(function(*arguments))
        self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - began
        return result


@dataclasses.dataclass(frozen=True, eq=False)
class _TimedSampler(Sampler):
    """The sampler of a rollout; the copy of the parameters that it decodes with is part of its time."""

    clock: _Clock = dataclasses.field(kw_only=True)

    def decoding_params(self, params: Any) -> Any:
        return self.clock.call("rollout", super().decoding_params, params)

    def sample(self, params: Any, prompts: Any, numbers: Any) -> Responses:
        return self.clock.call("rollout", super().sample, params, prompts, numbers)


class _TimedFeed(RolloutFeed):
    """The rollouts of the trainer, whose sampler and forward passes are timed."""

    def __init__(self, source: FeedSource, estimator: Any, reference: Any, clock: _Clock) -> None:
        super().__init__(source, estimator, reference)
        fields = {field.name: getattr(self._sampler, field.name) for field in dataclasses.fields(Sampler)}
        self._sampler = _TimedSampler(**fields, clock=clock)
        log_probs: Any = self._log_probs

        def timed(params: Any, batch: Batch) -> Any:
            return clock.call("reference" if params is self._reference else "policy", log_probs, params, batch)

        self._log_probs: Any = timed

    def greedy(self, params: Any, prompts: Int32[np.ndarray, "B P"]) -> Int32[np.ndarray, "B R"]:
        """Return the likeliest tokens after prompts, one at a time."""
        sampler = dataclasses.replace(self._sampler, settings=GREEDY)
        rows = [_row(ids, -1) for ids in prompts]
        return sampler.sample(sampler.decoding_params(params), rows, np.zeros((2, len(rows)), np.uint32)).tokens


class Iteration:
    """An iteration with random weights: first `first_steps`, which compiles it, then `run` repeatedly."""

    def __init__(self, shape: Shape, params: Any) -> None:
        """Prepare it without computing anything.

        Args:
            params: float32 parameters of the model, which are copied.
        """
        self.shape, run = shape, shape.run()
        self._mesh = device_mesh.make_mesh(run.mesh, jax.devices()[:1])
        model, self._params = models.model(shape.config), params
        bound: Any = objective(run.objective).bind_abstract(run, self._mesh)
        assembled = assemble(run, bound, self._mesh)
        self._engine = assembled.engine
        copied = jax.tree.map(lambda leaf: leaf.copy(), params)
        self._state = init_state(run, model, assembled.tx, self._mesh, copied)
        self._clock, self._iteration = _Clock(), 0
        self._step: Any = None
        self._feed = _TimedFeed(
            _source(run, model, self._mesh, shape),
            bound.estimator(),
            jax.tree.map(lambda leaf: REFERENCE_FACTOR * leaf, params),
            self._clock,
        )

    def greedy(self, prompts: Int32[np.ndarray, "B P"]) -> Int32[np.ndarray, "B R"]:
        """Return the responses to prompts under the first weights, the likeliest token at a time."""
        return self._feed.greedy(self._params, prompts)

    def first_steps(self) -> FirstSteps:
        """Compile the iteration, and return the numbers of two steps on the responses of the first rollout."""
        host = self._feed.batch(0, self._state)
        self._iteration = 1
        assert self._engine.trace is not None and host.extra is not None
        placed = self._engine.shard_batch(host)
        self._step = self._engine.trace(self._state, placed, {}).lower().compile()
        losses = self._take_step(placed), self._take_step(placed)
        tokens, first = np.asarray(host.tokens), self.shape.prompt_length
        old = host.extra["old"][:, first - 1 : self.shape.length - 1]
        return FirstSteps(tokens[:, :first], tokens[:, first : self.shape.length], old, losses)

    def run(self) -> dict[str, float]:
        """Compute an iteration to its end, and return the seconds of its parts and of the whole."""
        self._clock.seconds = {}
        began = time.perf_counter()
        host = self._feed.batch(self._iteration, self._state)
        step_began = time.perf_counter()
        self._take_step(self._engine.shard_batch(host))
        ended = time.perf_counter()
        self._iteration += 1
        seconds = {**self._clock.seconds, "step": ended - step_began}
        return {**seconds, "rest": ended - began - sum(seconds.values()), ITERATION: ended - began}

    def memory(self) -> dict[str, int]:
        """Return the bytes of parts: what XLA planned for the step, and the weights and the cache of a rollout."""
        dtype, model = DTYPES[self.shape.precision], models.model(self.shape.config)
        slots = cache_slots(self.shape.prompt_length, self.shape.tokens)
        cache = jax.eval_shape(lambda: model.init_cache(self.shape.rows, slots, dtype))
        weights = sum(leaf.size for leaf in jax.tree.leaves(self._params)) * np.dtype(dtype).itemsize
        rollout = weights + sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(cache))
        return {"rollout": rollout, "step": planned_memory(self._step)["memory"]}

    def _take_step(self, batch: Batch) -> float:
        with jax.set_mesh(self._mesh):
            self._state, metrics = self._step(self._state, batch, {}, {})
            return float(metrics["loss"])


def share_of_low_ids(ids: list[list[int]], vocabulary: int) -> list[float]:
    """Return the reward of each response: the share of its tokens in the lower half of the vocabulary."""
    return [sum(token < vocabulary // 2 for token in response) / len(response) for response in ids]


def _source(run: Run, model: Model, mesh: Any, shape: Shape) -> FeedSource:
    """Return what a feed of the shape's prompts reads."""
    tokenizer = _tokenizer(shape.config.vocab)
    prompt_rows = tuple(_row(ids, number) for number, ids in enumerate(shape.prompt_ids()))
    examples = [Prompt(origin=f"prompt {number}", prompt="", columns={}) for number in range(len(prompt_rows))]
    rows = PromptRows(examples, prompt_rows, run.data.length, "")
    mixture = Mixture((Component("prompts", 1.0, [Document("prompts", "")], rows),))

    def reward(ids: list[list[int]], **_: Any) -> list[float]:
        return share_of_low_ids(ids, shape.config.vocab)

    rewards = (RewardFunction(f"{__name__}:share_of_low_ids", reward),)
    inputs = PromptInputs(tokenizer, mixture, rows, rewards=rewards, chat_end=NO_END)
    local = device_mesh.local_rows(mesh, run.data.batch)
    build = objective(run.objective).builder(run, tokenizer, inputs.counts)
    return FeedSource(
        run=run,
        model=model,
        mesh=mesh,
        dtype=DTYPES[run.precision],
        data=inputs,
        batches=Batches(mixture, build, run.seed, run.data.batch, local, repeat=run.repeat),
        local=local,
        saved={},
        params=lambda state: state.params,
        folder=RunDir("absent"),
        process=1,
        notify=lambda line: None,
        progress=lambda activity: None,
    )


def _row(ids: Int32[np.ndarray, " P"], example: int) -> ResponseRow:
    return ResponseRow(Side(ids, len(ids)), example=example)


def _tokenizer(vocabulary: int) -> Tokenizer:
    """Return a tokenizer with as many entries as the model, so that all of them are sampled; what they spell does not matter."""
    content = Tokenizer.train([], FIRST_BYTES).content()
    # No merge leads to them, and text has no such characters beside each other.
    content["model"]["vocab"] |= {f"\u0100{number}": number for number in range(FIRST_BYTES, vocabulary)}
    return Tokenizer(content)
