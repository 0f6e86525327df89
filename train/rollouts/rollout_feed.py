"""Training batches of responses that the model samples itself: rollouts.

A rollout is a function of the parameters at its start, the seed, and the numbers of its prompts and samples. A checkpoint lies
between two rollouts, so a run that continues from it samples the same texts again, and nothing of a rollout is saved but whether
anything was learned from it.
"""

import functools
import math
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Float32, Int64

from train.engine import device_mesh
from train.engine.log_probs import token_log_probs
from train.engine.micro_batches import map_rows
from train.engine.value_head import token_values
from train.rollouts import rollout_files
from train.rollouts.advantage_estimators import Estimator, ScoredBatch
from train.rollouts.response_judges import ResponseJudges
from train.rollouts.rewards import Completion, with_missing_end
from train.rollouts.rollout_metrics import EqualRewards, RolloutPart, rollout_numbers
from train.rollouts.sampler import SALT, Responses, Sampler
from train.rows.batch_feed import Feed, FeedMetrics, FeedSource
from train.rows.feedback.preference_rows import Side
from train.rows.feedback.response_rows import row_builder
from zoo.batch import Batch
from zoo.errors import BadInput
from zoo.fault_points import fault_point
from zoo.generation.decoding_settings import Sampling
from zoo.precision import cast_params
from zoo.runtime.progress import this_process

RATIO_ERROR = 1e-2
"""Largest difference from 1, in float32, of the ratio of a token's probability in training to its probability when sampled."""
EQUAL = "rollouts_without_signal"
"""Name in the metadata of checkpoints."""
SHOWN = 1.0
"""Seconds that a rollout takes at least if its parts are shown as they are computed."""
SLOW = 5.0
"""Seconds of judging above which, if they are most of a rollout's time, there is a notice."""
UNENDED = 0.5
"""Share of responses without an end mark above which there is a notice."""


class _Responses(NamedTuple):
    """The responses to the prompts of a batch, before they have advantages."""

    fields: dict[str, Any]
    """Fields of `Batch` of this process's rows, without `extra`."""
    scored: ScoredBatch
    completions: list[Completion]
    truncated: Any
    """bool [B], see `RolloutPart.truncated`; None = reward models truncate no response."""
    lengths: Int64[np.ndarray, " B"]
    ratio_error: float


class RolloutFeed(Feed):
    """The batches of a policy: every `rollout.steps` steps, the model responds to the prompts of the batches of these steps."""

    category = "rollouts"

    def __init__(self, source: FeedSource, estimator: Estimator, reference: Any = None) -> None:
        """Prepare the programs, which are compiled at the first rollout.

        Args:
            reference: parameters of the reference of the KL divergence, float32, sharded over the mesh; None:
                there is no KL divergence.
        """
        run, rollout = source.run, source.run.options.rollout
        self._source, self._rollout, self._estimator = source, rollout, estimator
        self._sampler = Sampler(
            source.model,
            source.mesh,
            source.data.tokenizer,
            source.dtype,
            rows=run.data.batch,
            slots=source.data.training.longest,
            limit=rollout.tokens,
            settings=Sampling(temperature=rollout.temperature),
            end=source.data.end_mark,
            seed=(run.seed + SALT) % (1 << 32),
        )
        self._build = row_builder(run.model, source.data.tokenizer, target_length=rollout.tokens)
        self._cast = jax.jit(lambda params: cast_params(params, source.dtype))
        replicated = NamedSharding(source.mesh, PartitionSpec())
        self._log_probs = jax.jit(functools.partial(self._token_numbers, values=False), out_shardings=replicated)
        self._log_probs_and_values = jax.jit(functools.partial(self._token_numbers, values=True), out_shardings=replicated)
        self._reference = None if reference is None else self._cast(reference)
        self._number, self._batches, self._metrics = -1, list[Batch](), FeedMetrics({}, {})
        self._equal = EqualRewards(source.notify, estimator.equal, source.saved.get(EQUAL, 0))
        self._unended_noticed = self._truncated_noticed = self._slow_noticed = False
        self._seconds, self._judges = math.inf, ResponseJudges(source, self._show)

    def batch(self, step: int, state: Any) -> Batch:
        """Return this process's part of the batch of a step; the first step of a rollout samples those of all of its steps.

        Raises:
            BadInput: a reward function fails, logits are not finite, or sampling and training disagree about a probability.
        """
        number, offset = divmod(step, self._rollout.steps)
        if number != self._number:
            with this_process.phase("sampling a rollout"):
                self._batches, self._number = self._roll(number, state), number
        return self._batches[offset % self._rollout.batches]

    def rows_of(self, step: int) -> Int64[np.ndarray, " B"]:
        """Return the numbers of the prompts in the global batch of a step; each pass over a rollout has the same ones."""
        return self._source.batches.rows_of(self._source.run.batch_of(step))

    def at_boundary(self, step: int) -> bool:
        """Return whether the step after `step` steps begins a rollout."""
        return step % self._rollout.steps == 0

    def exhausted(self) -> str:
        """Return why nothing would be learned from further rollouts; "" = continue."""
        return self._equal.exhausted()

    def saved(self) -> dict[str, Any]:
        """Return the number of rollouts without a learning signal up to the last one, which decides when the run ends."""
        return {EQUAL: self._equal.count}

    def metrics(self) -> FeedMetrics:
        """Return the numbers about the rollout of the last step."""
        return self._metrics

    def _roll(self, number: int, state: Any) -> list[Batch]:
        began, source = time.perf_counter(), self._source
        self._judges.seconds.clear()
        params = self._cast(source.params(state))
        ends = (min(which * self._rollout.steps, source.run.steps) for which in (number, number + 1))
        batches, parts, numbers = self._sample(params, range(*map(self._rollout.batches_of, ends)))
        values = rollout_numbers(parts) | numbers
        if np.dtype(source.dtype) == np.float32 and values["ratio_error"] > RATIO_ERROR:
            size = f"{values['ratio_error']:.2g} of itself"
            what = f"a token's probability in training differs by {size} from that with which it was sampled"
            fix = "if the model has more entries than its tokenizer, choose another --init, or train with fewer (--model.vocab)"
            raise BadInput(f"rollout {number}: {what}; {fix}")
        self._seconds = time.perf_counter() - began
        self._notice(values, parts)
        if source.process == 0 and self._rollout.write_every and number % self._rollout.write_every == 0:
            rollout_files.write_rollout(source.folder, number, parts)
        tokens, judging = sum(int(part.lengths.sum()) for part in parts), sum(self._judges.seconds.values())
        timing = {"rollout_tokens_per_s": tokens / self._seconds, "judging_share": judging / self._seconds}
        self._metrics = FeedMetrics(values, timing)
        return batches

    def _sample(self, params: Any, numbers: range) -> tuple[list[Batch], list[RolloutPart], dict[str, float]]:
        """Return this process's parts of the batches with these numbers, what all of their rows are about, and metrics."""
        decoding_params = self._sampler.decoding_params(params)
        responses = []
        for done, number in enumerate(numbers, 1):
            self._show(f"sampling a rollout: batch {done} of {len(numbers)}")
            responses.append(self._respond(params, decoding_params, number))
        estimates, metrics = self._estimator.estimate([batch.scored for batch in responses])
        batches, parts = [], []
        for batch, estimate in zip(responses, estimates, strict=True):
            scored, local = batch.scored, {name: values[self._source.local] for name, values in estimate.extra.items()}
            batches.append(Batch(**batch.fields, extra=local))
            log_ratios = None if scored.reference is None else (scored.old - scored.reference).sum(1, dtype=np.float64)
            parts.append(
                RolloutPart(
                    completions=batch.completions,
                    samples=scored.samples,
                    lengths=batch.lengths,
                    ended=scored.ended,
                    rewards=scored.rewards,
                    advantages=estimate.advantages,
                    log_ratios=log_ratios,
                    log_probs=scored.old.sum(1, dtype=np.float64),
                    truncated=batch.truncated,
                    ratio_error=batch.ratio_error,
                )
            )
        return batches, parts, metrics

    def _respond(self, params: Any, decoding_params: Any, number: int) -> _Responses:
        """Return the responses to the prompts of a batch, with their rewards and log-probabilities."""
        fault_point("train.rollout")
        source, samples, rows = self._source, self._rollout.samples, self._source.data.rows
        prompts = [rows.row(row) for row in source.batches.rows_of(number).tolist()]
        examples = number * len(prompts) + np.arange(len(prompts))
        group, sample = np.divmod(examples, samples)
        responses = self._sampler.sample(decoding_params, prompts, np.stack([group % (1 << 32), sample]).astype(np.uint32))
        sides = [prompt.with_response(responses.ids(row)) for row, prompt in enumerate(prompts)]
        fields = self._training_rows(sides)
        local: dict[str, Any] = jax.tree.map(lambda array: array[source.local], fields)

        def score(program: Any, params: Any) -> Any:
            with jax.set_mesh(source.mesh):
                return jax.device_get(program(params, device_mesh.shard_batch(Batch(**local), source.mesh, len(sides))))

        program = self._log_probs_and_values if self._estimator.reads_values else self._log_probs
        token_numbers = score(program, params)
        completions = [
            Completion(source.data.training.examples[prompt.example], self._sampler.text(responses, row), responses.text_ids(row))
            for row, prompt in enumerate(prompts)
        ]
        fault_point("train.judge")
        judged = self._judges.scores(completions)
        scored = ScoredBatch(
            rewards=with_missing_end(judged.values, responses.ended, self._rollout.missing_end),
            ended=responses.ended,
            samples=samples,
            weights=fields["weights"],
            old=token_numbers["old"],
            reference=None if self._reference is None else score(self._log_probs, self._reference)["old"],
            values=token_numbers.get("value"),
        )
        local["index"] = (examples[source.local] % (1 << 32)).astype(np.uint32)
        error = _ratio_error(scored.old, responses, [max(side.first - 1, 0) for side in sides])
        truncated = judged.truncated if self._rollout.reward_truncate else None
        return _Responses(local, scored, completions, truncated, responses.lengths, error)

    def _show(self, activity: str) -> None:
        # Rollouts that follow each other within a second would make the line flicker.
        if self._seconds >= SHOWN:
            self._source.progress(activity)

    def _training_rows(self, sides: list[Side]) -> dict[str, Any]:
        """Return the fields of `Batch` of all rows, without `index` and `extra`."""
        rows = [self._build(side, self._source.run.data.length) for side in sides]
        return jax.tree.map(lambda *arrays: np.stack(arrays), *rows)

    def _token_numbers(self, params: Any, batch: Batch, *, values: bool) -> dict[str, jax.Array]:
        """Return "old", the log-probabilities of the targets as the training step computes them, and with `values` "value"."""
        run, model = self._source.run, self._source.model

        def numbers(batch: Batch) -> dict[str, jax.Array]:
            hidden = model.apply(params, batch).hidden
            rollout = self._rollout
            log_probs = token_log_probs(
                model,
                params,
                batch,
                hidden=hidden,
                chunk=run.loss_chunk,
                temperature=rollout.temperature,
                longest=rollout.tokens,
            )
            return {"old": log_probs} | ({"value": token_values(params, hidden)} if values else {})

        # As many rows at a time as in the training step.
        return map_rows(numbers, batch, run.accumulate)

    def _notice(self, values: dict[str, float], parts: Sequence[RolloutPart]) -> None:
        self._equal.count_rollout(values, parts)
        if values["unended_share"] > UNENDED and not self._unended_noticed:
            self._unended_noticed = True
            fix = f"choose more than --rollout.tokens {self._rollout.tokens}, or a model that ends its texts"
            self._source.notify(f"{values['unended_share']:.0%} of the responses are cut off before an end mark; {fix}")
        if (judging := sum(self._judges.seconds.values())) > max(SLOW, self._seconds / 2) and not self._slow_noticed:
            self._slow_noticed = True
            slowest, seconds = max(self._judges.seconds.items(), key=lambda item: item[1])
            what = f"a rollout took {self._seconds:.0f} s, of which {judging:.0f} s were spent on its rewards"
            self._source.notify(f"{what}, {seconds:.0f} s on {slowest}")
        if values.get("truncated_share", 0) and not self._truncated_noticed:
            self._truncated_noticed = True
            what = "of the responses are too long for a reward model, which reads only their beginning"
            self._source.notify(f"{values['truncated_share']:.1%} {what}")


def _ratio_error(old: Float32[np.ndarray, "B T"], responses: Responses, first: list[int]) -> float:
    """Return the largest |probability in training / probability when sampled - 1| of a response's token."""
    at = np.array(first)[:, None] + np.arange(responses.tokens.shape[1])  # [B, R]
    sampled = np.take_along_axis(old, np.minimum(at, old.shape[1] - 1), 1)
    counted = np.arange(at.shape[1]) < responses.lengths[:, None]
    return float(np.abs(np.expm1(np.where(counted, sampled - responses.log_probs, 0.0))).max())
