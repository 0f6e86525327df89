"""Sampled responses of a run's first and last rollout, with their rewards, for the report."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from eval.metrics.best_of_n import kl_bound, powers_of_two, prompt_groups
from eval.pages.html_page import Block, Sample
from eval.pages.value_text import format_number
from zoo.errors import BadInput
from zoo.file_access import read_regular_text
from zoo.json_shapes import Number, shape_problem

LARGEST_ROLLOUT = 256 << 20
"""Bytes of the largest file of a rollout that is read."""
PROMPTS = 3
"""Prompts of a rollout that are shown, each with its responses of the highest and the lowest reward."""
SHAPE = {"prompt": (str, [object]), "completion": str, "reward": Number, "advantage": Number}
"""Shape of a line of RUN/rollouts/NUMBER.jsonl, which `train.rollouts.rollout_files` writes; see `zoo.json_shapes`."""


def rollout_blocks(folder: Path, samples: int, steps: int) -> list[Block]:
    """Return responses of the first and the last rollout in a folder; nothing if it has none.

    Args:
        folder: RUN/rollouts.
        samples: responses to a prompt, which follow each other.
        steps: training steps on a rollout.

    Raises:
        BadInput: a line of these two files has other content; it is named.
    """
    files = sorted(file for file in folder.glob("*.jsonl") if file.stem.isdecimal())
    return [block for file in dict.fromkeys((*files[:1], *files[-1:])) for block in _rollout(file, samples, steps)]


def best_of_n(folder: Path, samples: int) -> list[tuple[float, float]]:
    """Return the best of n = 1, 2, 4, ... up to `samples` responses of rollout 0, which the parameters at the start sampled.

    An element is (bound of the divergence from these parameters in nats, mean reward of the best). The list is empty without the
    texts of that rollout, or with one response to a prompt.

    Raises:
        BadInput: see `rollout_blocks`.
    """
    file = folder / f"{0:08d}.jsonl"
    if samples < 2 or not file.exists():
        return []
    rewards = np.array([float(response["reward"]) for response in _responses(file)])
    groups = rewards[: len(rewards) // samples * samples].reshape(-1, samples)
    return [(kl_bound(n), float(prompt_groups(groups, n).max(1).mean())) for n in powers_of_two(samples)] if len(groups) else []


def _rollout(file: Path, samples: int, steps: int) -> list[Block]:
    responses = list(_responses(file))
    groups = [responses[first : first + samples] for first in range(0, len(responses), samples)]
    what = f"Rollout {int(file.stem):,}, before step {int(file.stem) * steps + 1:,}"
    kind = f"the responses of highest and lowest reward to {min(PROMPTS, len(groups))} of its {len(groups):,} prompts"
    return [f"{what}: {kind}.", *map(_sample, groups[:PROMPTS])]


def _responses(file: Path) -> Iterator[Mapping[str, Any]]:
    """Yield the lines of a file as dicts.

    Raises:
        BadInput: the file cannot be read, or a line has other content.
    """
    fix = "remove the file, or write it again by continuing the run"
    try:
        # JSON leaves the other ends of lines of Unicode as they are, and `splitlines` would divide a text there.
        lines = read_regular_text(file, LARGEST_ROLLOUT).removesuffix("\n").split("\n")
    except (OSError, ValueError) as error:
        raise BadInput(f"{file} cannot be read ({error}); {fix}") from None
    for place, line in enumerate(lines, 1):
        try:
            content = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise BadInput(f"{file}:{place} is invalid JSON ({error}); {fix}") from None
        if problem := shape_problem(content, SHAPE):
            raise BadInput(f"{file}:{place} has unexpected content ({problem}); {fix}")
        yield content


def _extremes(group: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the responses of highest and lowest reward; one of them if all rewards are equal."""
    best, worst = (choose(group, key=lambda response: response["reward"]) for choose in (max, min))
    return [best] if best["reward"] == worst["reward"] else [best, worst]


def _sample(group: Sequence[Mapping[str, Any]]) -> Sample:
    """Return a prompt with its responses."""
    texts = []
    for response in _extremes(group):
        reward, advantage = (format_number(float(response[name])) for name in ("reward", "advantage"))
        texts.append((f"Reward {reward}, advantage {advantage}", response["completion"]))
    return Sample(_prompt_text(group[0]["prompt"]), texts, folded=True)


def _prompt_text(prompt: str | list[Any]) -> str:
    """Return a prompt as text; a conversation with the role before each message."""
    if isinstance(prompt, str):
        return prompt
    messages = [message if isinstance(message, dict) else {} for message in prompt]
    return "\n".join(f"{message.get('role', '')}: {message.get('content', '')}" for message in messages)
