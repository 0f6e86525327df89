"""The rollouts of a policy in its report: curves of rewards and divergence, tiles, and sampled responses."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eval.report import report, rollout_texts, run_charts
from tests.eval.report.run_folder import RUN, folder, page, rows
from train.config.data_options import PromptData
from train.config.objectives import PolicyGradientOptions
from train.config.rollout_options import Rollout
from train.run import metrics_file
from zoo.errors import BadInput

POLICY = dataclasses.replace(
    RUN, recipe="grpo", data=PromptData(), options=PolicyGradientOptions(rollout=Rollout(samples=2, steps=2))
)
SPOKEN = [{"role": "system", "content": "Be <brief>."}, {"role": "user", "content": "7+5="}]


def policy_rows(count: int, kl: bool = True) -> list[dict[str, Any]]:
    """Return rows of training on rollouts whose rewards rise, and one of validation after ten of them."""
    made = []
    for number, row in enumerate(rows(count), 1):
        if row["kind"] == "valid":
            made.append(metrics_file.valid_row(step=row["step"], seconds=2.0, reward=0.5, response_length=4.0, unended_share=0.0))
            continue
        numbers = {"reward": number / 100, "reward_deviation": 0.5, "response_length": 5.0, "unended_share": 0.25}
        numbers |= {"entropy": 1.5, "truncated_share": 0.25, "equal_groups": 0.125, "ratio_error": 1e-6}
        numbers |= {"kl": number / 50 - 0.01} if kl else {}
        made.append(row | {"loss": -0.01, "rollout": numbers})
    return made


def responses(file: Path, *groups: tuple[Any, list[tuple[str, float]]]) -> None:
    file.parent.mkdir(exist_ok=True)
    lines = [
        {"prompt": prompt, "completion": text, "reward": reward, "advantage": reward - 0.5}
        for prompt, texts in groups
        for text, reward in texts
    ]
    file.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")


@pytest.mark.parametrize("kl", [True, pytest.param(False, marks=pytest.mark.full)])
def test_rewards_lead_the_page_of_a_policy(kl: bool, tmp_path: Path) -> None:
    shown = page(folder(tmp_path, run=POLICY, rows=policy_rows(20, kl), scores={"reward": 0.625, "examples": 9, "step": 200}))
    drawings = [str(each["aria-label"]) for tag, each in shown.tags if tag == "svg" and each.get("class") != "wide"]
    divergence = ["Reward over the square root of the KL divergence", run_charts.ROLLOUTS["kl"]] if kl else []
    rest = [title for name, title in run_charts.ROLLOUTS.items() if name not in ("kl", "explained_variance")]
    more = ["Loss", "Tokens a second; right: MFU", "Learning rate", "Gradient norm, before clipping"]
    assert [label.partition(". ")[0] for label in drawings] == ["Reward", *divergence, *rest, *more]
    assert drawings[0].startswith("Reward. Training reward from 0.01 at step 10 to 0.21 at step 200; validation reward from 0.5")
    assert ("from 0.01 at 0.1 to 0.21 at 0.6403" in drawings[1]) == kl
    assert "reaches reward 0.6250 on its held-out data." in shown.words
    assert "reward, last rollout 0.2100" in shown.words
    assert ("KL divergence, last rollout" in shown.words) == kl and "training loss, last row" not in shown.words


def test_responses_of_the_first_and_the_last_rollout_are_shown_with_their_rewards(tmp_path: Path) -> None:
    folder(tmp_path, run=POLICY)
    files = tmp_path / "rollouts"
    responses(files / "00000000.jsonl", (SPOKEN, [("12", 1.0), ("<b>", 0.0)]), ("1+1=", [("5", 0.25), ("6", 0.25)]))
    responses(files / "00000001.jsonl", ("between=", [("x", 0.0), ("y", 1.0)]))
    responses(files / "00000012.jsonl", *[(f"q{n}=", [(f"low{n}\u2028\x85", -1.5), ("", 2.0)]) for n in range(5)])
    words = page(tmp_path).words
    assert "Rollout 0, before step 1: the responses of highest and lowest reward to 2 of its 2 prompts." in words
    first = "system: Be <brief>.\nuser: 7+5= Reward 1, advantage 0.5 12 Reward 0, advantage -0.5 <b> 1+1= Reward 0.25"
    assert first in words and "between=" not in words and "advantage -0.25 5 Rollout 12" in words
    assert "Rollout 12, before step 25: the responses of highest and lowest reward to 3 of its 5 prompts." in words
    assert "q2= Reward 2, advantage 1.5 no text Reward -1.5, advantage -2 low2" in words and "q3=" not in words


DAMAGED = {
    "[1]": r"00000000\.jsonl:1 has unexpected content \(the whole: list instead of dict\); remove the file",
    '{"prompt": "a", "completion": 1, "reward": 1.0}': r":1 has unexpected content \(no advantage\)",
    '{"prompt": "a", "completion": 1, "reward": 1.0, "advantage": 1}': r":1 has unexpected content \(completion: int\)",
    '{"prompt": "a", "completion": "", "reward": 1%s, "advantage": 1}' % ("0" * 400): r"\(reward: an integer of more than 64",
    '{"prompt"': r"00000000\.jsonl:1 is invalid JSON",
    "\xff": r"00000000\.jsonl cannot be read",
}


@pytest.mark.planted(len(DAMAGED))
def test_damaged_rollouts_are_refused_in_one_line(tmp_path: Path) -> None:
    folder(tmp_path, run=POLICY)
    file = tmp_path / "rollouts" / "00000000.jsonl"
    file.parent.mkdir()
    for content, message in DAMAGED.items():
        file.write_text(content, encoding="latin-1")
        with pytest.raises(BadInput, match=message) as refused:
            report.write_report(tmp_path)
        assert "\n" not in str(refused.value)


def test_the_best_of_n_at_the_start_is_beside_the_curve_over_the_divergence(tmp_path: Path) -> None:
    """Of 3 samples the best of 2 is of the first two; later rollouts have no part in it."""
    files, groups = (
        tmp_path / "rollouts",
        [("a", [("x", 0.0), ("y", 1.0), ("z", 5.0)]), ("b", [("x", 2.0), ("y", 1.0), ("z", -1.0)])],
    )
    assert rollout_texts.best_of_n(files, 3) == []
    responses(files / "00000001.jsonl", ("a", [("x", 9.0)] * 3))
    assert rollout_texts.best_of_n(files, 3) == []
    responses(files / "00000000.jsonl", *groups)
    assert rollout_texts.best_of_n(files, 1) == []
    assert rollout_texts.best_of_n(files, 3) == [(0.0, pytest.approx(8 / 6)), (pytest.approx(np.log(2) - 0.5), 1.5)]
    run = dataclasses.replace(POLICY, options=PolicyGradientOptions(rollout=Rollout(samples=3)))
    shown = page(folder(tmp_path, run=run, rows=policy_rows(20)))
    labels = [str(each["aria-label"]) for tag, each in shown.tags if tag == "svg"]
    assert any("0.6403; best of 1 to 2, at the start, from 1.333 to 1.5" in label for label in labels)


def test_a_run_without_texts_has_no_section(tmp_path: Path) -> None:
    assert rollout_texts.rollout_blocks(tmp_path / "rollouts", 2, 1) == []
    assert "Rollouts" not in page(folder(tmp_path, run=POLICY, rows=policy_rows(1))).words


def test_a_negative_estimate_of_the_divergence_is_drawn(tmp_path: Path) -> None:
    """The frame reaches below 0, and the square root takes it as 0."""
    made = [row for row in policy_rows(2) if row["kind"] == "train"]
    made[0]["rollout"]["kl"] = -0.5
    label = "from -0.5 at step 10 to 0.03 at step 20"
    shown = page(folder(tmp_path, run=POLICY, rows=made))
    assert any(label in str(each.get("aria-label")) for tag, each in shown.tags if tag == "svg")
    assert np.any(["from 0.01 at 0 to" in str(each.get("aria-label")) for tag, each in shown.tags if tag == "svg"])
