"""Files of the texts of rollouts, RUN/rollouts/NUMBER.jsonl: a line for each response."""

import json
from collections.abc import Sequence

from train.rollouts.rollout_metrics import RolloutPart
from train.run.run_dir import RunDir, write_text


def write_rollout(folder: RunDir, number: int, parts: Sequence[RolloutPart]) -> None:
    """Write the prompt, the completion, the reward and the advantage of each response of a rollout, in the order of the batches.

    A run that continues writes the same file again.

    Raises:
        BadInput: the file cannot be written.
    """
    folder.rollouts.mkdir(exist_ok=True)
    lines = [
        {
            "prompt": completion.prompt.content,
            "completion": completion.text,
            "reward": float(part.rewards[row]),
            "advantage": float(part.advantages[row]),
        }
        for part in parts
        for row, completion in enumerate(part.completions)
    ]
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    write_text(folder.rollouts / f"{number:08d}.jsonl", text)
