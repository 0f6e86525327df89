"""The gain and the bias that give a reward model's scores mean 0 and deviation 1 over chosen texts, stored beside its weights.

With normalized scores, a coefficient of a KL penalty has the same effect for every reward model (Ziegler et al. 2019, code).
"""

import dataclasses
import json
import math
from pathlib import Path

from train.run.run_dir import write_json
from zoo.errors import BadInput
from zoo.file_access import read_regular_text

FILE = "reward_scale.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class RewardScale:
    """A normalized score is gain x score + bias."""

    gain: float = 1.0
    bias: float = 0.0
    step: int | None = None
    """Step of the parameters whose scores are normalized; None for published weights."""

    @classmethod
    def of(cls, mean: float, deviation: float, step: int | None) -> "RewardScale":
        """Return the scale of scores with a mean and a standard deviation above 0."""
        return cls(gain=1 / deviation, bias=-mean / deviation, step=step)


def write_scale(folder: Path, scale: RewardScale) -> None:
    """Write a scale into the folder of a run or of published weights."""
    write_json(folder / FILE, dataclasses.asdict(scale))


def read_scale(folder: Path, step: int | None) -> RewardScale:
    """Return the scale in a folder for the parameters of a step; gain 1 and bias 0 if there is none for this step.

    Raises:
        BadInput: the file is damaged.
    """
    file = folder / FILE
    if not file.exists():
        return RewardScale()
    fix = f"remove it, or normalize again with `zoo eval {folder} --task rewards:normalize --files ...`"
    try:
        scale = RewardScale(**json.loads(read_regular_text(file)))
        valid = all(type(value) is float and math.isfinite(value) for value in (scale.gain, scale.bias))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise BadInput(f"{file}: no gain and bias ({' '.join(str(error).split())[:80]}); {fix}") from None
    if not valid:
        raise BadInput(f"{file}: gain {scale.gain} and bias {scale.bias} must be finite numbers; {fix}")
    return scale if scale.step == step else RewardScale()
