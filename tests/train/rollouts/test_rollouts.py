"""Rollouts: responses of a small model, the training rows made of them, and steps that learn from them."""

import contextlib
import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import jax
import numpy as np
import pytest

from tests.support import preferences, tiny
from tests.support.small import random_params, small
from train.config import run_config
from train.config.data_options import PromptData
from train.config.policy_gradient_options import PolicyGradientLoss, Ppo
from train.config.rollout_options import Rollout
from train.data.example_types import Prompt
from train.data.text_files import Document
from train.engine import device_mesh
from train.engine.state_init import init_state
from train.inputs import prompt_inputs
from train.objectives import objective
from train.parametrization import parametrization_of
from train.rollouts import response_judges, rollout_feed
from train.rollouts.response_judges import ResponseJudges
from train.rollouts.reward_functions import sentence_chrf
from train.rollouts.rewards import Completion, Judge, RewardFunction, Scores
from train.rollouts.rollout_feed import RolloutFeed
from train.rollouts.rollout_metrics import MOST_EQUAL
from train.rollouts.sampler import Sampler
from train.rows.batch_feed import FeedSource
from train.rows.batches import Batches
from train.rows.mixture import Component, Mixture
from train.run.run_dir import RunDir
from train.step.assembly import assemble
from train.tokenizers.tokenizer import Tokenizer
from zoo.batch import Batch
from zoo.errors import BadInput
from zoo.models import Model
from zoo.runtime.progress import this_process

BYTES = Tokenizer.train([], 257)
NET = small("gpt", layers=1, vocab=257)
GROUP, TOKENS = 4, 6
ROLLOUT = Rollout(samples=GROUP, tokens=TOKENS, steps=2)


def low_ids(ids: list[list[int]], **_: Any) -> list[float]:
    """Return the share of tokens in the lower quarter of the vocabulary."""
    return [float(np.mean(np.array(row or [257]) < 64)) for row in ids]


def references(completions: list[str], prompts: list[str], **_: Any) -> list[float]:
    """Return the chrF of each response with its prompt, as if every text were its own translation."""
    return sentence_chrf(completions, prompts)


def feed(
    net: Model = NET,
    devices: int = 1,
    folder: Path | None = None,
    name: str = "policy_gradient",
    beta: float = 0.0,
    judges: tuple[Judge, ...] = (),
    streak: int = 0,
    function: Callable[..., Any] = low_ids,
    notify: Callable[[str], Any] = str,
    progress: Callable[[str], Any] = str,
    **changes: Any,
) -> RolloutFeed:
    """Return rollouts of 4 responses to 2 of 5 prompts of different lengths, for an objective with this KL divergence.

    They follow `streak` rollouts from which nothing was learned.
    """
    tokenizer = BYTES if net.family == "gpt" else preferences.tokenizer(net.family)
    options: dict[str, Any] = dict(rollout=ROLLOUT, data=PromptData(length=16, batch=2 * GROUP), precision="float32")
    options |= dict(checkpoint=run_config.Checkpoint(every=4)) | changes
    run = tiny.run(
        name, model=net.config, **{name: (PolicyGradientLoss if name == "policy_gradient" else Ppo)(beta=beta)}, **options
    )
    examples = [Prompt(origin=f"p:{n}", prompt=" ".join(preferences.WORDS[:n])[: 2 * n], columns={}) for n in range(5)]
    rows = prompt_inputs.rows_of_prompts(examples, run, tokenizer)
    mixture = Mixture((Component("p", 1.0, [Document("p", "")], rows),))
    inputs = prompt_inputs.PromptInputs(tokenizer, mixture, rows, rewards=(RewardFunction("t:f", function), *judges))
    mesh = device_mesh.make_mesh(run_config.Mesh(), jax.devices()[:devices])
    local = device_mesh.local_rows(mesh, run.data.batch)
    bound: Any = objective(name).bind_abstract(run, mesh)
    build = bound.builder(run, tokenizer, inputs.counts)
    source = FeedSource(
        run=run,
        model=net,
        mesh=mesh,
        dtype=np.float32,
        data=inputs,
        batches=Batches(mixture, build, run.seed, run.data.batch, local, repeat=run.repeat),
        local=local,
        params=lambda state: state,
        saved={rollout_feed.EQUAL: streak},
        folder=RunDir(folder or "absent"),
        process=0 if folder else 1,
        notify=notify,
        progress=progress,
    )
    return RolloutFeed(source, bound.estimator(), params() if beta else None)


@functools.cache
def params(family: str = "gpt") -> Any:
    return random_params(NET if family == "gpt" else preferences_net(family))


def preferences_net(family: str) -> Model:
    words = preferences.tokenizer(family)
    return small(family, vocab=words.vocab_size)


def shapes(batch: Batch) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(batch)
    return {jax.tree_util.keystr(keys): (leaf.shape, leaf.dtype) for keys, leaf in leaves}


def test_a_batch_has_groups_of_responses_in_the_shapes_of_the_data(tmp_path: Path) -> None:
    rollouts = feed(folder=tmp_path)
    batches = [rollouts.batch(step, params()) for step in range(2)]
    source, nats, tokens = rollouts._source, 0.0, 0.0
    for step, batch in enumerate(batches):
        assert shapes(batch) == shapes(source.batches.shapes())
        numbers = source.batches.rows_of(step)
        assert batch.weights is not None and batch.extra is not None
        np.testing.assert_array_equal(numbers, np.repeat(numbers[::GROUP], GROUP))
        np.testing.assert_array_equal(batch.index, np.arange(step * 2 * GROUP, (step + 1) * 2 * GROUP))
        for row, number in enumerate(numbers.tolist()):
            prompt = source.data.rows.row(number).prompt
            counted = np.flatnonzero(batch.weights[row])
            np.testing.assert_array_equal(batch.tokens[row, : len(prompt)], prompt)
            assert counted[0] == len(prompt) - 1 and np.ptp(counted) + 1 == len(counted) <= TOKENS
        assert not batch.extra["old"][batch.weights == 0].any() and (batch.extra["old"][batch.weights > 0] < 0).all()
        np.testing.assert_allclose(batch.extra["advantage"].reshape(-1, GROUP).sum(1), 0, atol=1e-6)
        nats, tokens = nats + float(batch.extra["old"].sum()), tokens + float(batch.weights.sum())
    values, timing = rollouts.metrics()
    assert values["ratio_error"] < 1e-4 and 1 <= values["response_length"] <= TOKENS and timing["rollout_tokens_per_s"] > 0
    assert values["entropy"] == pytest.approx(-nats / tokens, rel=1e-6) and 0 < values["entropy"] < np.log(BYTES.vocab_size)
    lines = [json.loads(line) for line in (tmp_path / "rollouts" / "00000000.jsonl").read_text().splitlines()]
    assert len(lines) == 4 * GROUP and lines[0].keys() == {"prompt", "completion", "reward", "advantage"}
    assert np.mean([line["reward"] for line in lines]) == pytest.approx(values["reward"])


def test_judges_that_compute_together_judge_all_responses_and_weights_are_factors() -> None:
    """A function judges the rows of this process only, which `local` names; without an end mark the reward is another one."""

    class Together:
        collective: ClassVar[bool] = True
        name, weight = "judge", -2.0
        counts: ClassVar[list[int]] = []

        def scores(self, completions: Any) -> Any:
            self.counts.append(len(completions))
            values = np.arange(len(completions), dtype=np.float64)
            return Scores(values, values == 3)

    judge = Together()
    rollouts = feed(), feed(judges=(judge,)), feed(rollout=dataclasses.replace(ROLLOUT, missing_end=-5.0))
    plain, summed, replaced = (rolled._respond(params(), rolled._sampler.decoding_params(params()), 0)[1] for rolled in rollouts)
    np.testing.assert_array_equal(summed.rewards, plain.rewards - 2 * np.arange(8))
    assert judge.counts == [8]
    np.testing.assert_array_equal(replaced.rewards, np.where(plain.ended, plain.rewards, -5))


def same(first: Batch, second: Batch) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True))


def test_a_rollout_depends_on_its_number_and_not_on_what_came_before() -> None:
    rollouts, again, other = feed(), feed(), feed(seed=1)
    batches = [rollouts.batch(step, params()) for step in (0, 1, 2)]
    assert same(again.batch(2, params()), batches[2])
    assert not np.array_equal(batches[0].tokens, batches[2].tokens)
    assert not np.array_equal(other.batch(0, params()).tokens, batches[0].tokens)
    assert [rollouts.at_boundary(step) for step in range(4)] == [True, False, True, False]


@pytest.mark.full
def test_devices_change_no_text_and_advantages_only_by_rounding() -> None:
    one, two = (feed(devices=devices).batch(0, params()) for devices in (1, 2))
    np.testing.assert_array_equal(one.tokens, two.tokens)
    assert one.extra is not None and two.extra is not None
    np.testing.assert_array_equal(one.extra["advantage"], two.extra["advantage"])
    np.testing.assert_allclose(one.extra["old"], two.extra["old"], atol=1e-5)


def test_the_divergence_from_a_reference_lowers_the_reward() -> None:
    """Log-ratios to the parameters that sampled are 0; they grow with the change of the parameters."""
    rollouts = feed(beta=2.0)
    rollouts.batch(0, params())
    assert rollouts.metrics().values["kl"] == pytest.approx(0, abs=1e-5)
    changed = jax.tree.map(lambda leaf: leaf * 1.05, params())
    (batch,), (part,), _ = rollouts._sample(changed, range(2, 3))
    assert part.log_ratios is not None and batch.extra is not None and np.abs(part.log_ratios).min() > 1e-3
    returns = (part.rewards - 2 * part.log_ratios).reshape(-1, GROUP)
    np.testing.assert_allclose(batch.extra["advantage"], (returns - returns.mean(1, keepdims=True)).ravel(), atol=1e-5)
    assert "reference" not in batch.extra


@pytest.mark.planted
def test_positions_that_count_padding_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens are then sampled with other probabilities than those in training."""
    prompts = Sampler._prompts

    def shifted(self: Sampler, rows: Any) -> Batch:
        batch = prompts(self, rows)
        return dataclasses.replace(batch, positions=np.tile(np.arange(self.slots, dtype=np.int32), (self.rows, 1)))

    monkeypatch.setattr(Sampler, "_prompts", shifted)
    with pytest.raises(BadInput, match=r"rollout 0: a token's probability in training differs by .* of itself from that with"):
        feed().batch(0, params())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "family", "function"),
    [("policy_gradient", "gpt", low_ids), ("ppo", "gpt", low_ids), ("policy_gradient", "transformer", references)],
)
def test_the_reward_of_a_small_model_rises(name: str, family: str, function: Callable[..., Any]) -> None:
    """The Transformer learns from the chrF of its texts."""
    net = NET if family == "gpt" else preferences_net(family)
    rollouts = feed(net, name=name, function=function, optim=run_config.Optim(lr=3e-2, warmup=0, schedule="constant"))
    source, learned = rollouts._source, []
    policy = objective(name).bind(source.run, source.mesh)
    built, trained = assemble(source.run, policy, source.mesh), parametrization_of(source.run, policy, source.mesh).trained
    rollouts._source = dataclasses.replace(source, params=lambda state: state.params)
    first = {**jax.tree.map(jax.numpy.copy, params(family)), **policy.added_params(net).place(source.mesh, 0)}
    state = init_state(source.run, net, built.tx, source.mesh, first, trained)
    for step in range(20):
        state, _ = built.engine.step(state, built.engine.shard_batch(rollouts.batch(step, state)), {})
        learned.append(rollouts.metrics().values["reward"])
    assert np.mean(learned[-4:]) > learned[0] + 0.2


@pytest.mark.full
def test_an_encoder_decoder_takes_a_step() -> None:
    net = preferences_net("t5")
    rollouts = feed(net)
    batch = rollouts.batch(0, params("t5"))
    assert batch.source is not None and batch.tokens.shape == (2 * GROUP, TOKENS)
    assert rollouts.metrics().values["ratio_error"] < 1e-4
    run, mesh = rollouts._source.run, rollouts._source.mesh
    policy = objective("policy_gradient").bind(run, mesh)
    arrays = jax.tree.map(jax.numpy.asarray, batch)
    options: dict[str, Any] = dict(seeds=None, carry={}, smoothing=0.0, chunk=0)
    gradient = jax.jit(jax.grad(lambda params: policy.loss(net, params, arrays, {}, **options)[0]["policy_gradient"]))(
        params("t5")
    )
    assert np.isfinite(np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(gradient)])).all()


def test_each_pass_over_a_rollout_has_the_same_batches_with_values() -> None:
    """The next rollout is of the prompts after them, and a run's last one of as many batches as it has steps."""
    rollout = dataclasses.replace(ROLLOUT, steps=4, epochs=2, samples=1)
    rollouts = feed(name="ppo", rollout=rollout, steps=9)
    source = rollouts._source
    kernel = np.random.default_rng(0).standard_normal((NET.config.width, 1)) / 8
    with_head = {**params(), "value": {"kernel": jax.numpy.asarray(kernel, np.float32)}}
    batches = [rollouts.batch(step, with_head) for step in range(9)]
    assert all(same(batches[step], batches[step + 2]) for step in (0, 1, 4, 5)) and not same(batches[0], batches[1])
    rows = [rollouts.rows_of(step).tolist() for step in range(9)]
    assert rows == [source.batches.rows_of(number).tolist() for number in (0, 1, 0, 1, 2, 3, 2, 3, 4)]
    assert shapes(batches[0]) == shapes(source.batches.shapes()) and source.run.batches == 5 and len(rollouts._batches) == 1
    batch = batches[0]
    assert batch.extra is not None and batch.weights is not None and batch.targets is not None
    counted = batch.weights > 0
    values = (np.asarray(NET.apply(with_head, jax.tree.map(jax.numpy.asarray, batch)).hidden) @ kernel)[..., 0]
    np.testing.assert_allclose(batch.extra["value"], np.where(counted, values, 0), atol=1e-5)
    metrics = rollouts.metrics().values
    assert metrics.keys() >= {"reward", "explained_variance", "mean_value", "mean_return"} and "equal_groups" not in metrics
    # Without a KL divergence, the return of the last token is its reward, the share of low ids.
    for row, tokens in enumerate(counted):
        last = np.flatnonzero(tokens)[-1]
        ids = [token for token in batch.targets[row][tokens].tolist() if token != BYTES.end_of_text]
        assert batch.extra["return"][row, last] == pytest.approx(low_ids([ids])[0], abs=1e-6)


def test_a_feed_continues_to_count_rollouts_without_a_signal() -> None:
    """No response of this model ends, so that all of them have the same reward."""
    rollout = dataclasses.replace(ROLLOUT, missing_end=0.0)
    feeds = feed(rollout=rollout), feed(rollout=rollout, streak=MOST_EQUAL - 1)
    for rollouts in feeds:
        rollouts.batch(0, params())
    assert [rollouts.saved() for rollouts in feeds] == [{rollout_feed.EQUAL: 1}, {rollout_feed.EQUAL: MOST_EQUAL}]
    assert [bool(rollouts.exhausted()) for rollouts in feeds] == [False, True]


def test_a_slow_reward_is_named_while_it_is_computed_and_in_a_notice(monkeypatch: pytest.MonkeyPatch) -> None:
    now, shown, notices = [0.0], list[str](), list[str]()
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    activities = set[str]()

    def slow(ids: Any, **_: Any) -> list[float]:
        now[0] += 10
        activities.add(this_process.read().activity)
        return [float(len(row)) for row in ids]

    rollouts = feed(function=slow, notify=notices.append, progress=shown.append)
    rollouts.batch(0, params())
    waiting = "waiting for the rewards of t:f: 8 responses"
    # The first batch is judged twice, to compare the rewards.
    sampled = [f"sampling a rollout: batch {number} of 2" for number in (1, 2)]
    assert shown == [sampled[0], waiting, waiting, sampled[1], waiting]
    assert activities == {"waiting for the rewards of t:f"} and rollouts.metrics().timing["judging_share"] == 1
    rollouts.batch(2, params())
    (notice,) = [line for line in notices if "took" in line]
    assert notice == "a rollout took 30 s, of which 30 s were spent on its rewards, 30 s on t:f"


def test_a_fast_rollout_shows_no_activity_after_the_first_one(monkeypatch: pytest.MonkeyPatch) -> None:
    shown, now = list[str](), [0.0]

    def tick() -> float:
        now[0] += 1e-3
        return now[0]

    monkeypatch.setattr("time.perf_counter", tick)
    rollouts = feed(progress=shown.append)
    rollouts.batch(0, params())
    before = len(shown)
    rollouts.batch(2, params())
    assert before == len(shown) > 0


@pytest.mark.planted
def test_a_function_that_returns_something_else_the_second_time_is_reported() -> None:
    notices, calls = list[str](), list[int]()

    def counts(ids: Any, **_: Any) -> list[float]:
        calls.append(len(ids))
        return [float(len(calls) - (row < 1)) for row in range(len(ids))]

    rollouts = feed(function=counts, notify=notices.append)
    for step in (0, 2):
        rollouts.batch(step, params())
    (notice,) = [line for line in notices if "returned" in line]
    assert notice.startswith("t:f returned 0 and then 1 for the completion ") and " of p:" in notice
    assert notice.endswith(", with the same arguments: a run that continues will differ from one that did not stop")
    assert calls == [2 * GROUP] * 5
    # One that repeats its rewards up to rounding is not reported.
    quiet = list[str]()
    feed(function=lambda ids, **_: [1 / 3 + 1e-12 * len(calls)] * len(ids), notify=quiet.append).batch(0, params())
    assert not [line for line in quiet if "returned" in line]


def test_processes_whose_functions_disagree_end_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rewards in process 0 are 0.25."""
    source = dataclasses.replace(feed(function=lambda ids, **_: [0.5] * len(ids))._source, process=1)
    monkeypatch.setattr("jax.process_count", lambda: 2)
    completion = Completion(Prompt(origin="p:0", prompt="a", columns={}), "x", [])
    with pytest.raises(BadInput) as refused:
        ResponseJudges(source, source.notify)._check_repeated(np.array([[0.25]]), [completion])
    what = "returned 0.25 in process 0 and 0.5 in process 1 for the completion 'x' of p:0, with the same arguments"
    fix = "its result must depend on them alone; remove random numbers, clocks and other state"
    assert str(refused.value) == f"--rollout.reward t:f: {what}; {fix}"


def test_an_error_of_another_process_is_raised_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each process passes its message, if it has one, and all raise the first."""
    others: list[str] = []

    def gather(text: np.ndarray) -> np.ndarray:
        padded = [np.frombuffer(other.encode().ljust(len(text), b"\0"), np.uint8) for other in others]
        return np.stack([text, *padded])

    monkeypatch.setattr("jax.process_count", lambda: 2)
    monkeypatch.setattr(response_judges.multihost_utils, "process_allgather", gather)
    for own, other in (("", ""), ("a: é", ""), ("", "b"), ("a", "b"), ("x" * 9999, "")):
        others[:] = [other]
        with contextlib.ExitStack() as stack:
            if own or other:
                stack.enter_context(pytest.raises(BadInput, match=f"^{(own or other)[: response_judges.LONGEST]}$"))
            with response_judges.raised_in_all_processes():
                if own:
                    raise BadInput(own)
