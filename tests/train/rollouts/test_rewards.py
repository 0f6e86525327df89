"""Reward functions by name, and what they may not return."""

import gc
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support import tiny
from tests.support.small import small
from train.config import run_config
from train.config.data_options import PromptData
from train.config.rollout_options import Rollout
from train.data.example_types import Prompt
from train.engine import device_mesh
from train.rollouts.rewards import Completion, ModelName, RewardFunction, find_rewards, score_completions, with_missing_end
from train.rollouts.rollout_metrics import MOST_EQUAL, EqualRewards, RolloutPart, rollout_numbers
from zoo.errors import BadInput

TWO = [Completion(Prompt(origin=f"p:{n}", prompt="a", columns={"answer": n}), text, [n]) for n, text in enumerate(("x", "yy"))]


def test_a_function_reads_texts_ids_and_columns_and_several_are_summed():
    def first(prompts: list[str], completions: list[str], ids: list[list[int]], answer: list[int]) -> list[float]:
        return [len(text) + len(row) + value for text, row, value in zip(completions, ids, answer, strict=True)]

    def second(completions: list[str], **rest: Any) -> np.ndarray:
        return np.array([text == "yy" for text in completions])

    total = score_completions([RewardFunction("a:first", first), RewardFunction("a:second", second, -0.5)], TWO).values
    assert total.dtype == np.float64 and total.tolist() == [2.0, 3.5]


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (None, "returned None; return a list"),
        ([1.0], "returned 1 values for 2 completions; return a number for each"),
        ([1.0, None], "returned None for the completion 'yy' of p:1; return a finite number"),
        (["0.5", 1.0], "returned '0.5' for the completion 'x' of p:0; return a finite number"),
        (["a\nb", 1.0], "returned 'a\\nb' for the completion"),
        ([1.0, -(10**400)], "returned a number beyond ±1e+15 for the completion 'yy' of p:1; gradients would overflow; return"),
        ([1e39, 1.0], "returned a number beyond ±1e+15 for the completion 'x' of p:0"),
        (1.0, "returned a float; return a list with a number for each"),
        (np.ones(()), "returned an array with 0 axes; return a list"),
        (np.ones((2, 1)), "returned an array with 2 axes; return a list"),
        ([math.nan, 1.0], "returned nan for the completion 'x' of p:0; return a finite number"),
        (ValueError("no answer"), "raised ValueError: no answer at test_rewards.py:"),
    ],
)
def test_a_fault_of_a_function_names_it_with_the_prompt_and_the_value(result: Any, message: str):
    def function(**_: Any) -> Any:
        if isinstance(result, Exception):
            raise result
        return result

    with pytest.raises(BadInput) as error:
        score_completions([RewardFunction("m:f", function)], TWO)
    assert str(error.value).startswith(f"--rollout.reward m:f: {message}")


def test_an_error_of_a_function_is_named_with_its_place() -> None:
    def function(ids: list[list[int]], **_: Any) -> list[float]:
        return [1 / (len(row) - 1) for row in ids]

    with pytest.raises(BadInput) as refused:
        score_completions([RewardFunction("m:f", function)], TWO)
    line = function.__code__.co_firstlineno + 1
    what = f"raised ZeroDivisionError: division by zero at test_rewards.py:{line}"
    assert str(refused.value) == f"--rollout.reward m:f: {what} for 2 completions, the first of p:0; correct the function"
    # Arguments that a function does not take are no error inside it.
    with pytest.raises(BadInput, match=r"unexpected keyword argument 'prompts' for 2 completions, the first of p:0; correct"):
        score_completions([RewardFunction("m:f", lambda completions: [1.0])], TWO)


def test_a_coroutine_is_refused_without_a_warning() -> None:
    async def function(**_: Any) -> list[float]:
        return [1.0, 1.0]

    with pytest.raises(BadInput, match="returned a coroutine; return a list with a number for each"):
        score_completions([RewardFunction("m:f", function)], TWO)
    gc.collect()


def test_functions_are_imported_from_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    content = "def length(completions, **rest):\n    return [len(text) for text in completions]\nLIMIT = 3\n"
    (tmp_path / "judging.py").write_text(content)
    (tmp_path / "broken_judging.py").write_text("1 / 0\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*__import__("sys").path])
    (function,) = find_rewards(["judging:length@0.5"])
    assert isinstance(function, RewardFunction)
    assert (function.name, function.weight, score_completions([function], TWO).values.tolist()) == (
        "judging:length",
        0.5,
        [0.5, 1.0],
    )
    faults = {
        (): ": name what judges responses, MODULE:FUNCTION, a reward model or CLASSIFIER:LABEL",
        ("@0.5",): ": name what judges responses",
        ("judging",): " judging: neither a function nor a folder; write MODULE:FUNCTION, .* the folder of a reward model, or",
        ("runs/absent@0.5",): " runs/absent@0.5: neither a function nor a folder",
        (
            "judging:length@much",
        ): " judging:length@much: the weight 'much' is not a finite number; .* write judging:length@much@1",
        ("judging:lengths",): r" judging:lengths: judging \(.*judging.py\) has no function lengths; the nearest is length",
        ("judging:LIMIT",): r" judging:LIMIT: judging \(.*\) has the int, and not the function, LIMIT; its functions are length",
        ("judging:score",): r" judging:score: judging \(.*\) has no function score; its functions are length",
        ("absent_judging:f",): " absent_judging:f: absent_judging cannot be imported .*No module named .*run from the folder of",
        ("broken_judging:f",): " broken_judging:f: broken_judging cannot be imported .*ZeroDivisionError: division by zero",
    }
    for names, message in faults.items():
        with pytest.raises(BadInput, match=f"--rollout.reward{message}"):
            find_rewards(names)


def test_a_folder_is_a_reward_model_unless_it_may_also_be_a_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for name in ("judge", "judge@2", "math:sqrt"):
        (tmp_path / name).mkdir()
    assert find_rewards(["judge", "judge@0.5", "./judge@2", "judge@2@-1"]) == (
        ModelName("judge", 1.0),
        ModelName("judge", 0.5),
        ModelName("./judge@2", 1.0),
        ModelName("judge@2", -1.0),
    )
    assert find_rewards(["./math:sqrt", "math:floor"])[0] == ModelName("./math:sqrt", 1.0)
    with pytest.raises(BadInput, match=r"--rollout.reward math:sqrt: math:sqrt is a folder, and also .*; write ./math:sqrt for"):
        find_rewards(["math:sqrt"])


def test_a_colon_after_a_folder_names_a_label_of_a_classifier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*__import__("sys").path])
    for name in ("runs/judge", "judge", "judge:a", "functions"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "functions/__init__.py").write_text("def good(completions, **rest):\n    return [1.0] * len(completions)\n")
    (tmp_path / "judge/config.json").write_text("{}")
    assert find_rewards(
        ["runs/judge:1", "runs/judge:LOC:city@0.5", "runs/judge:a@b@-1", "judge:1", "./judge:good", "runs/judge:"]
    ) == (
        ModelName("runs/judge", 1.0, "1"),
        ModelName("runs/judge", 0.5, "LOC:city"),
        ModelName("runs/judge", -1.0, "a@b"),
        ModelName("judge", 1.0, "1"),
        ModelName("./judge", 1.0, "good"),
        ModelName("runs/judge", 1.0, ""),
    )
    assert find_rewards(["./judge:a"]) == (ModelName("./judge:a", 1.0),)
    assert find_rewards(["./judge:a:b"]) == (ModelName("./judge:a", 1.0, "b"),)
    # A package in the working directory is no model.
    assert isinstance(find_rewards(["functions:good"])[0], RewardFunction)
    both = r"judge:good names a label of the model in judge, and also has the form MODULE:FUNCTION; write ./judge:good for"
    for text, message in (("judge:good", both), (":good", "neither a function nor a folder; .* or CLASSIFIER:LABEL")):
        with pytest.raises(BadInput, match=f"--rollout.reward {text}: {message}"):
            find_rewards([text])


def test_a_response_without_an_end_mark_may_have_a_reward_of_its_own():
    values, ended = np.array([1.0, 2.0]), [True, False]
    assert with_missing_end(values, ended, -1.0).tolist() == [1.0, -1.0]
    assert with_missing_end(values, ended, None).tolist() == [1.0, 2.0]
    with pytest.raises(BadInput, match=r"--rollout\.missing-end nan: choose a finite number"):
        Rollout(missing_end=math.nan)


def rollout_part(advantages: np.ndarray, rewards: np.ndarray) -> tuple[dict[str, float], list[RolloutPart]]:
    ones = np.ones(4, np.int64)
    numbers: dict[str, Any] = {"lengths": ones, "ended": ones > 0, "rewards": rewards, "log_ratios": None, "log_probs": -rewards}
    parts = [RolloutPart(completions=[], samples=2, advantages=advantages, ratio_error=0.0, **numbers)]
    return rollout_numbers(parts), parts


def test_rollouts_without_a_signal_are_reported_once_and_end_the_run_after_many() -> None:
    lines: list[str] = []
    counter, equal, unequal = EqualRewards(lines.append, "all groups are equal"), np.zeros(4), np.array([0.0, 0.0, 1.0, -1.0])

    def note(advantages: np.ndarray) -> None:
        counter.count_rollout(*rollout_part(advantages, np.array([0.25, 0.25, 0.75, 0.75])))

    for advantages in (equal, equal, unequal, *[equal] * (MOST_EQUAL - 1)):
        note(advantages)
    reason = "all groups are equal (mean 0.5)"
    assert lines == [f"{reason} in this rollout, so nothing is learned from it"] * 2 and not counter.exhausted()
    note(equal)
    assert counter.exhausted() == f"{MOST_EQUAL} rollouts in a row: {reason}"
    # A run that continues has counted some of them before.
    counter = EqualRewards(lines.append, "all groups are equal", MOST_EQUAL - 2)
    note(equal)
    assert not counter.exhausted() and counter.count == MOST_EQUAL - 1
    note(equal)
    assert counter.exhausted()


@pytest.mark.parametrize("equal", ["the values are exact", ""])
def test_equal_rewards_end_a_run_that_learns_from_values_or_a_divergence_alone(equal: str) -> None:
    lines: list[str] = []
    counter, advantages = EqualRewards(lines.append, equal), np.array([0.5, -0.5, 1.0, -1.0])
    for _ in range(MOST_EQUAL):
        counter.count_rollout(*rollout_part(advantages, np.full(4, 0.7)))
    reason = "all responses have the same reward (mean 0.7)"
    assert lines == [f"{reason} in this rollout, so nothing is learned from the rewards"]
    assert counter.exhausted() == f"{MOST_EQUAL} rollouts in a row: {reason}"
    counter.count_rollout(*rollout_part(advantages, np.array([0.7, 0.7, 0.7, 0.8])))
    assert counter.count == 0
    # Without an advantage, a divergence in the loss is still learned from.
    counter.count_rollout(*rollout_part(np.zeros(4), np.array([0.7, 0.7, 0.8, 0.8])))
    assert counter.count == bool(equal)


def test_groups_lie_on_one_device_and_checkpoints_between_rollouts():
    def run(samples: int, steps: int) -> Any:
        rollout, data = Rollout(samples=samples, steps=steps), PromptData(length=80, batch=24)
        model = small("gpt", context=96).config
        return tiny.run("policy_gradient", model=model, rollout=rollout, data=data, checkpoint=run_config.Checkpoint(every=5))

    mesh = device_mesh.make_mesh(run_config.Mesh(fsdp=2, tensor=2))
    device_mesh.check_mesh(run(3, 5), mesh)
    with pytest.raises(
        BadInput, match=r"--rollout.samples 8: it does not divide the 6 rows .* --data.batch 24\); choose 2, 3, 6"
    ):
        device_mesh.check_mesh(run(8, 5), mesh)
    with pytest.raises(BadInput, match=r"--checkpoint.every 5: .* --rollout.steps 3; choose a multiple, such as 6"):
        (wrong := run(3, 3)).options.check_run(wrong)


def test_rows_with_dynamic_scaling_are_not_sampled() -> None:
    """Up to `original_context` tokens nothing is scaled."""
    model = small("llama", scaling="dynamic", scaling_factor=2.0, original_context=16).config

    def check(length: int) -> None:
        run = tiny.run("policy_gradient", model=model, rollout=Rollout(tokens=8), data=PromptData(length=length))
        run.options.check_run(run)

    check(16)
    with pytest.raises(BadInput, match=r"--data.length 17: .* at most --model.original-context 16, or --model.scaling yarn"):
        check(17)
