"""Options of Kahneman-Tversky optimization."""

import dataclasses
import math
from typing import Literal

from zoo.errors import require


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kto:
    """Loss of answers that are labelled as desired or undesired (Ethayarajh et al. 2024)."""

    beta: float = 0.1
    """Strength of the pull towards the reference: the factor of the log-ratios."""
    desired_weight: float = 1.0
    """Weight of the losses of desired answers. The paper's rule for unequal numbers of labels: this weight times the number of
    desired answers should be 1 to 4/3 of --kto.undesired-weight times the number of undesired ones; leave one of the two at 1."""
    undesired_weight: float = 1.0
    """Weight of the losses of undesired answers."""
    reference: Literal["init", "none"] = "init"
    """init: the parameters of --init, whose log-probabilities are computed once. none: a reference of probability 1."""

    def __post_init__(self) -> None:
        require(0 < self.beta < math.inf, "kto.beta", self.beta, "choose a number above 0, such as 0.1")
        for name in ("desired_weight", "undesired_weight"):
            value = getattr(self, name)
            require(0 < value < math.inf, f"kto.{name}", value, "choose a number above 0, such as 1")

    @property
    def has_reference(self) -> bool:
        """True if the loss reads log-probabilities of a reference."""
        return self.reference == "init"
