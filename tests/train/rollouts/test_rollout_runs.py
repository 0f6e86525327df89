"""Runs that learn from rollouts: stopped and continued, they end with the same bits."""

import dataclasses
import json
import signal
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from eval.commands import eval_run
from eval.tasks.held_out import scorers
from tests.support import published, tiny
from train import trainer
from train.checkpoints.checkpoints import Checkpoints
from train.checkpoints.manifest import by_path
from train.config import run_config
from train.config.data_options import PromptData
from train.config.lora_options import Lora
from train.config.policy_gradient_options import PolicyGradientLoss
from train.config.rollout_options import Rollout
from train.engine import device_mesh
from train.objectives import objective
from train.rollouts import rollout_metrics
from train.run import metrics_file
from train.step.assembly import assemble
from train.tokenizers.tokenizer import Tokenizer
from train.weights import import_export
from train.weights.load import load_model
from zoo.errors import BadInput

BYTES = Tokenizer.train([], 257)


def prepared(folder: Path, name: str = "policy_gradient", **options: Any) -> run_config.Run:
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
        model=load_model(folder / "base").model.config,
        init=str(folder / "base"),
        **{"policy_gradient": PolicyGradientLoss(beta=0.05)} if name == "policy_gradient" else {},
        rollout=Rollout(samples=4, tokens=6, steps=2, reward=("low_ids:share", "judge@0.1"), **options),
        optim=run_config.Optim(lr=3e-2, warmup=0, schedule="constant"),
        data=data,
        out=str(folder),
        steps=8,
        precision="float32",
        checkpoint=run_config.Checkpoint(every=4),
        log=run_config.Log(every=2, validate_every=4, validate_rows=8, samples=0),
    )


@pytest.mark.slow
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
    assert rows[0] == rows[1] and rows[0][1]["rollout"].keys() >= {"reward", "kl", "equal_groups"}
    texts = [
        {file.name: file.read_bytes() for file in (tmp_path / name / "rollouts").iterdir()} for name in ("steady", "stopped")
    ]
    assert texts[0] == texts[1] and len(texts[0]) == 4
    assert (tmp_path / "steady" / "scores.json").read_bytes() == (tmp_path / "stopped" / "scores.json").read_bytes()
    assert "  reward 0." in capsys.readouterr().out
    score = json.loads((tmp_path / "steady" / "scores.json").read_text())
    assert 0 < metrics_file.read_rows(tmp_path / "steady" / "metrics.jsonl")[1]["time"]["rollout_share"] < 1
    # Greedy responses need no reference.
    (tmp_path / "base").rename(tmp_path / "away")
    assert eval_run.run_eval(str(tmp_path / "steady"), step=None, batch=32, stride=0, mesh=run_config.Mesh()) == 0
    assert f"reward         {score['reward']:.6f}" in capsys.readouterr().out
    (tmp_path / "away").rename(tmp_path / "base")
    # Adapters begin as the model that they are added to.
    train("adapted", steps=2, engine="pmap", lora=Lora(rank=2))
    assert (tmp_path / "adapted" / "rollouts" / "00000000.jsonl").read_bytes() == texts[0]["00000000.jsonl"]


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
    run = tiny.with_options(run, policy_gradient=PolicyGradientLoss(), rollout=rollout)

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


@pytest.mark.slow
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
        built = assemble(run, objective("ppo").bind(run, mesh), mesh)
        restored = Checkpoints(tmp_path / name / "checkpoints", 2, notify=print).restore(built.state)
        assert restored is not None
        return by_path(restored[0])

    steady, stopped = train("steady"), train("stopped", stop_at=1)
    assert [folder.name for folder in (stopped / "checkpoints").glob("????????")] == ["00000002"]
    train("stopped")
    expected, reached = leaves("steady"), leaves("stopped")
    assert expected.keys() == reached.keys() and all(np.array_equal(expected[path], reached[path]) for path in expected)
    assert np.asarray(expected["params/value/kernel"]).any()
    params, base = load_model(steady).params, load_model(tmp_path / "base").params
    assert by_path(params).keys() == by_path(base).keys()
    import_export.export_run(str(steady), str(tmp_path / "out"), step=None, last=0, shard=1.0, mesh=run_config.Mesh())
    exported = load_model(tmp_path / "out").params
    assert all(np.array_equal(*pair) for pair in zip(jax.tree.leaves(exported), jax.tree.leaves(params), strict=True))
    adapted = train("adapted", steps=2, lora=Lora(rank=2))
    texts = [(folder / "rollouts" / "00000000.jsonl").read_text() for folder in (steady, adapted)]
    assert texts[0] == texts[1] and by_path(load_model(adapted).params).keys() == by_path(base).keys()


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
    run = dataclasses.replace(tiny.with_options(run, policy_gradient=PolicyGradientLoss(), rollout=rollout), steps=2, name="long")
    with pytest.raises(BadInput, match=r"--rollout.reward short: .* has 12 positions; add --rollout.reward-truncate to"):
        trainer.run(run, evaluate=scorers.scorer, on_end=lambda folder: None)
    run = tiny.with_options(run, rollout=dataclasses.replace(rollout, reward_truncate=True))
    trainer.run(run, evaluate=scorers.scorer, on_end=lambda folder: None)
    before, trained, valid = metrics_file.read_rows(tmp_path / "long" / "metrics.jsonl")
    assert (before["kind"], before["step"], valid["step"]) == ("valid", 0, 2)
    assert 0 < trained["rollout"]["truncated_share"] < 1 and 0 <= valid["truncated_share"] <= 1
    share = f"{trained['rollout']['truncated_share']:.1%}"
    out = capsys.readouterr().out
    assert f"{share} of the responses are too long for a reward model, which reads only their" in out
    rewards = (f"reward {row['reward']:.4f}" for row in (before, valid))
    assert "  validation: {} before the first step, {} after step 2\n".format(*rewards) in out
