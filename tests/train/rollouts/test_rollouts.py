"""Rollouts: responses of a small model, the training rows made of them, and runs that learn from them."""

import dataclasses
import functools
import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import jax
import numpy as np
import pytest

from eval.scoring import scorers
from tests.support import preferences, published, tiny
from tests.support.small import random_params, small
from train import trainer
from train.checkpoints.checkpoints import Checkpoints
from train.checkpoints.manifest import by_path
from train.config import run_config
from train.config.data_options import PromptData
from train.config.lora_options import Lora
from train.config.policy_options import Policy
from train.config.ppo_options import Ppo
from train.config.rollout_options import Rollout
from train.data.example_types import Prompt
from train.data.text_files import Document
from train.engine import device_mesh
from train.engine.state_init import init_state
from train.engine.step import assemble
from train.inputs import prompt_inputs
from train.objectives import objective
from train.rollouts import rollout_feed, rollout_metrics
from train.rollouts.batch_feed import FeedSource
from train.rollouts.reward_functions import sentence_chrf
from train.rollouts.rewards import Judge, RewardFunction, Scores
from train.rollouts.rollout_feed import RolloutFeed
from train.rollouts.rollout_metrics import MOST_EQUAL
from train.rollouts.sampler import Sampler
from train.rows.batches import Batches
from train.rows.mixture import Component, Mixture
from train.run import metrics_file
from train.run.run_dir import RunDir
from train.tokenizers.tokenizer import Tokenizer
from train.weights import import_export
from train.weights.load import load
from zoo import models
from zoo.batch import Batch
from zoo.errors import BadInput
from zoo.models import Model

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
    name: str = "policy",
    beta: float = 0.0,
    judges: tuple[Judge, ...] = (),
    streak: int = 0,
    function: Callable[..., Any] = low_ids,
    **changes: Any,
) -> RolloutFeed:
    """Return rollouts of 4 responses to 2 of 5 prompts of different lengths, for an objective with this KL divergence.

    They follow `streak` rollouts from which nothing was learned.
    """
    tokenizer = BYTES if net.family == "gpt" else preferences.tokenizer(net.family)
    options: dict[str, Any] = dict(rollout=ROLLOUT, data=PromptData(length=16, batch=2 * GROUP), precision="float32")
    options |= dict(checkpoint=run_config.Checkpoint(every=4)) | changes
    run = tiny.run(name, model=net.config, **{name: (Policy if name == "policy" else Ppo)(beta=beta)}, **options)
    examples = [Prompt(origin=f"p:{n}", prompt=" ".join(preferences.WORDS[:n])[: 2 * n], columns={}) for n in range(5)]
    rows = prompt_inputs.rows_of(examples, run, tokenizer)
    mixture = Mixture((Component("p", 1.0, [Document("p", "")], rows),))
    inputs = prompt_inputs.PromptInputs(tokenizer, mixture, rows, rows, rewards=(RewardFunction("t:f", function), *judges))
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
        notify=lambda line: None,
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
    source = rollouts._source
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
    values, timing = rollouts.metrics()
    assert values["ratio_error"] < 1e-4 and 1 <= values["response_length"] <= TOKENS and timing["rollout_tokens_per_s"] > 0
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


@pytest.mark.full
def test_responses_that_a_reward_model_reads_in_part_are_counted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Bytes that are no text become characters of three bytes: a response of 6 tokens needs up to 18 of the reward model."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    run = prepared(tmp_path)
    config = published.config("gpt", "sequence", published.GPT2 | {"vocab_size": 257, "n_positions": 12})
    published.write(tmp_path / "short", config)
    BYTES.save(tmp_path / "short")
    rollout = dataclasses.replace(run.options.rollout, reward=("short",))
    run = dataclasses.replace(tiny.with_options(run, policy=Policy(), rollout=rollout), steps=2, name="long")
    with pytest.raises(BadInput, match=r"--rollout.reward short: .* has 12 positions; add --rollout.reward-truncate to"):
        trainer.run(run, evaluate=scorers.scorer, on_end=lambda folder: None)
    run = tiny.with_options(run, rollout=dataclasses.replace(rollout, reward_truncate=True))
    trainer.run(run, evaluate=scorers.scorer, on_end=lambda folder: None)
    trained, valid = metrics_file.read_rows(tmp_path / "long" / "metrics.jsonl")
    assert 0 < trained["rollout"]["truncated_share"] < 1 and 0 <= valid["truncated_share"] <= 1
    share = f"{trained['rollout']['truncated_share']:.1%}"
    assert f"{share} of the responses are too long for a reward model, which reads only their" in capsys.readouterr().out


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


@pytest.mark.full
@pytest.mark.parametrize(
    ("name", "family", "function"),
    [("policy", "gpt", low_ids), ("ppo", "gpt", low_ids), ("policy", "transformer", references)],
)
def test_the_reward_of_a_small_model_rises(name: str, family: str, function: Callable[..., Any]) -> None:
    """The Transformer learns from the chrF of its texts."""
    net = NET if family == "gpt" else preferences_net(family)
    rollouts = feed(net, name=name, function=function, optim=run_config.Optim(lr=3e-2, warmup=0, schedule="constant"))
    source, learned = rollouts._source, []
    policy = objective(name).bind(source.run, source.mesh)
    built, trained = assemble(source.run, net, policy, source.mesh), policy.trained(net)
    rollouts._source = dataclasses.replace(source, params=lambda state: state.params)
    first = {**jax.tree.map(jax.numpy.copy, params(family)), **policy.added_params(net).place(source.mesh, 0)}
    state = init_state(source.run, net, built.tx, source.mesh, first, trained.init, trained.sharding)
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
    policy = objective("policy").bind(run, mesh)
    arrays = jax.tree.map(jax.numpy.asarray, batch)
    options: dict[str, Any] = dict(seeds=None, carry={}, smoothing=0.0, chunk=0)
    gradient = jax.jit(jax.grad(lambda params: policy.loss(net, params, arrays, {}, **options)[0]["policy"]))(params("t5"))
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


def prepared(folder: Path, name: str = "policy", **options: Any) -> run_config.Run:
    """Return a run of an objective on prompts, judged by a function and a model in files. It begins with `base`."""
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt": f"{n}="}) + "\n" for n in range(20)))
    (folder / "low_ids.py").write_text(
        "def share(ids, **_):\n    return [sum(id < 64 for id in row) / max(len(row), 1) for row in ids]\n"
    )
    for weights, factor in (("base", 1.0), ("other", 1.5), ("judge", 1.0), ("other_judge", 1.5)):
        task = "sequence" if "judge" in weights else "causal"
        config = published.config("gpt", task, published.GPT2 | {"vocab_size": 257, "n_positions": 32})
        published.write(folder / weights, config, factors={"ln_f.bias": factor})
        BYTES.save(folder / weights)
    data = PromptData(paths=(str(folder / "prompts.jsonl"),), length=16, batch=32)
    return tiny.run(
        name,
        model=load(folder / "base").model.config,
        init=str(folder / "base"),
        **{"policy": Policy(beta=0.05)} if name == "policy" else {},
        rollout=Rollout(samples=4, tokens=TOKENS, steps=2, reward=("low_ids:share", "judge@0.1"), **options),
        optim=run_config.Optim(lr=3e-2, warmup=0, schedule="constant"),
        data=data,
        out=str(folder),
        steps=8,
        precision="float32",
        checkpoint=run_config.Checkpoint(every=4),
        log=run_config.Log(every=2, validate_every=4, validate_rows=8, samples=0),
    )


@pytest.mark.full
def test_a_run_ends_with_the_same_bits_when_it_is_stopped(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """A stop that is requested within a rollout waits for its end. pmap samples the same texts, and `zoo eval` the same score."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    run = prepared(tmp_path)

    def train(name: str, stop_at: int = 0, **changes: Any) -> None:
        monkeypatch.setattr(trainer.StopSignals, "agreed", lambda self, step: step == stop_at)
        trainer.run(dataclasses.replace(run, name=name, **changes), evaluate=scorers.scorer, on_end=lambda folder: None)

    train("steady")
    train("stopped", stop_at=5)
    assert [folder.name for folder in sorted((tmp_path / "stopped" / "checkpoints").glob("????????"))] == ["00000004", "00000006"]
    for name, other, key in (("base", "other", "reference"), ("judge", "other_judge", "reward judge")):
        (tmp_path / name).rename(tmp_path / "away")
        (tmp_path / other).rename(tmp_path / name)
        with pytest.raises(BadInput, match=f"trained on other data: {key}: "):
            train("stopped")
        (tmp_path / name).rename(tmp_path / other)
        (tmp_path / "away").rename(tmp_path / name)
    train("stopped")
    rows = [
        [
            {key: value for key, value in row.items() if key != "time"}
            for row in metrics_file.read_rows(tmp_path / name / "metrics.jsonl")
        ]
        for name in ("steady", "stopped")
    ]
    assert rows[0] == rows[1] and rows[0][0]["rollout"].keys() >= {"reward", "kl", "equal_groups"}
    texts = [
        {file.name: file.read_bytes() for file in (tmp_path / name / "rollouts").iterdir()} for name in ("steady", "stopped")
    ]
    assert texts[0] == texts[1] and len(texts[0]) == 4
    assert (tmp_path / "steady" / "scores.json").read_bytes() == (tmp_path / "stopped" / "scores.json").read_bytes()
    assert "  reward 0." in capsys.readouterr().out
    score = json.loads((tmp_path / "steady" / "scores.json").read_text())
    assert all(0 < row["time"]["rollout_share"] < 1 for row in metrics_file.read_rows(tmp_path / "steady" / "metrics.jsonl")[:1])
    # Greedy responses need no reference.
    (tmp_path / "base").rename(tmp_path / "away")
    assert scorers.main(str(tmp_path / "steady"), step=None, batch=32, stride=0, mesh=run_config.Mesh()) == 0
    assert f"reward         {score['reward']:.6f}" in capsys.readouterr().out
    (tmp_path / "away").rename(tmp_path / "base")
    # Adapters begin as the model that they are added to.
    train("adapted", steps=2, engine="pmap", lora=Lora(rank=2))
    assert (tmp_path / "adapted" / "rollouts" / "00000000.jsonl").read_bytes() == texts[0]["00000000.jsonl"]


def test_a_feed_continues_to_count_rollouts_without_a_signal() -> None:
    """No response of this model ends, so that all of them have the same reward."""
    rollout = dataclasses.replace(ROLLOUT, missing_end=0.0)
    feeds = feed(rollout=rollout), feed(rollout=rollout, streak=MOST_EQUAL - 1)
    for rollouts in feeds:
        rollouts.batch(0, params())
    assert [rollouts.saved() for rollouts in feeds] == [{rollout_feed.EQUAL: 1}, {rollout_feed.EQUAL: MOST_EQUAL}]
    assert [bool(rollouts.exhausted()) for rollouts in feeds] == [False, True]


@pytest.mark.full
def test_a_run_without_a_signal_ends_at_the_same_step_when_it_is_stopped_and_stays_ended(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(rollout_metrics, "MOST_EQUAL", 3)
    (tmp_path / "equal_rewards.py").write_text("def zero(ids, **_):\n    return [0.0] * len(ids)\n")
    run = prepared(tmp_path)
    rollout = dataclasses.replace(run.options.rollout, reward=("equal_rewards:zero",))
    run = tiny.with_options(run, policy=Policy(), rollout=rollout)

    def train(name: str, stop_at: int = 0, code: int = 0) -> tuple[str, list[str]]:
        def agreed(self: trainer.StopSignals, step: int) -> bool:
            self.signal = signal.SIGTERM if step == stop_at else self.signal
            return step == stop_at

        monkeypatch.setattr(trainer.StopSignals, "agreed", agreed)
        ended = trainer.run(dataclasses.replace(run, name=name), evaluate=scorers.scorer, on_end=lambda folder: None)
        assert ended == code
        return capsys.readouterr().out, [folder.name for folder in sorted((tmp_path / name / "checkpoints").glob("????????"))]

    reason = "ended at step 6 of 8: 3 rollouts in a row: all responses to a prompt have the same reward (mean 0)"
    out, saved = train("steady")
    assert reason in out and saved == ["00000004", "00000006"]
    scores = tmp_path / "stopped" / "scores.json"
    assert train("stopped", stop_at=3, code=128 + signal.SIGTERM)[1] == ["00000004"] and not scores.exists()
    out, saved = train("stopped")
    assert reason in out and saved == ["00000004", "00000006"]
    # Killed before its score: nothing is left but to score it.
    before = scores.read_bytes()
    scores.unlink()
    out, saved = train("stopped")
    assert reason in out and saved[-1] == "00000006" and scores.read_bytes() == before
    out, saved = train("stopped")
    assert "stopped is finished" in out and "compiling the step" not in out and saved[-1] == "00000006"


@pytest.mark.full
def test_a_run_of_ppo_continues_with_its_value_head_and_exports_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A run that stopped ends with the bits of one that did not; adapters train beside the head."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    run = dataclasses.replace(prepared(tmp_path, "ppo", epochs=2), steps=4, checkpoint=run_config.Checkpoint(every=2))
    mesh = device_mesh.make_mesh(run.mesh)

    def train(name: str, stop_at: int = 0, **changes: Any) -> Path:
        monkeypatch.setattr(trainer.StopSignals, "agreed", lambda self, step: step == stop_at)
        changed = dataclasses.replace(run, name=name, **changes)
        trainer.run(changed, evaluate=scorers.scorer, on_end=lambda folder: None)
        return tmp_path / name

    def leaves(name: str) -> dict[str, Any]:
        built = assemble(run, models.model(run.model), objective("ppo").bind(run, mesh), mesh)
        restored = Checkpoints(tmp_path / name / "checkpoints", 2, notify=print).restore(built.state)
        assert restored is not None
        return by_path(restored[0])

    steady, stopped = train("steady"), train("stopped", stop_at=1)
    assert [folder.name for folder in (stopped / "checkpoints").glob("????????")] == ["00000002"]
    train("stopped")
    expected, reached = leaves("steady"), leaves("stopped")
    assert expected.keys() == reached.keys() and all(np.array_equal(expected[path], reached[path]) for path in expected)
    assert np.asarray(expected["params/value/kernel"]).any()
    params, base = load(steady).params, load(tmp_path / "base").params
    assert by_path(params).keys() == by_path(base).keys()
    import_export.export(str(steady), str(tmp_path / "out"), step=None, last=0, shard=1.0, mesh=run_config.Mesh())
    exported = load(tmp_path / "out").params
    assert all(np.array_equal(*pair) for pair in zip(jax.tree.leaves(exported), jax.tree.leaves(params), strict=True))
    adapted = train("adapted", steps=2, lora=Lora(rank=2))
    texts = [(folder / "rollouts" / "00000000.jsonl").read_text() for folder in (steady, adapted)]
    assert texts[0] == texts[1] and by_path(load(adapted).params).keys() == by_path(base).keys()
