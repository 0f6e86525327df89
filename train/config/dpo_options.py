"""Options of direct preference optimization and its variants."""

import dataclasses
import math
from typing import Literal

from zoo.errors import require

PreferenceLoss = Literal["sigmoid", "robust", "hinge", "ipo", "length_normalised", "simpo", "orpo"]
PAPER_GAMMA = 0.5
REFERENCE_FREE = ("simpo", "orpo")
"""Losses that are defined without a reference."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dpo:
    """Loss of pairs of answers, one of which was preferred (Rafailov et al. 2023)."""

    kind: PreferenceLoss = "sigmoid"
    """Loss of a pair. It compares the log-ratios to the reference, which are sums over tokens (mean: per token).
    sigmoid: DPO. robust: unbiased if a share --dpo.smoothing of the labels is wrong. hinge: SLiC. ipo: squared, mean.
    length_normalised: sigmoid, mean. simpo: sigmoid of mean log-probabilities with the margin --dpo.gamma, no reference.
    orpo: log of the ratio of odds, mean, no reference; it needs --dpo.sft."""
    beta: float = 0.1
    """Strength of the pull towards the reference: the factor of the log-ratios (orpo: of the loss of a pair)."""
    smoothing: float = 0.0
    """Share of the pairs that are taken to be labelled the wrong way round (sigmoid: conservative DPO; robust)."""
    gamma: float = PAPER_GAMMA
    """Margin that the reward of the chosen answer should have (simpo)."""
    sft: float = 0.0
    """Weight of the mean loss per token of the chosen answers, which is added."""
    reference: Literal["init", "none"] = "init"
    """init: the parameters of --init, whose log-probabilities are computed once. none: a reference of probability 1."""

    def __post_init__(self) -> None:
        require(0 < self.beta < math.inf, "dpo.beta", self.beta, "choose a number above 0, such as 0.1")
        require(0 <= self.smoothing < 0.5, "dpo.smoothing", self.smoothing, "choose a share of 0 to below 0.5")
        smoothed = self.smoothing == 0 or self.kind in ("sigmoid", "robust")
        require(smoothed, "dpo.smoothing", self.smoothing, f"it has no effect on {self.kind}; choose 0")
        require(0 <= self.gamma < math.inf, "dpo.gamma", self.gamma, "choose 0 (none) or a margin")
        fix = f"it has no effect on {self.kind}; remove it"
        require(self.gamma == PAPER_GAMMA or self.kind == "simpo", "dpo.gamma", self.gamma, fix)
        require(0 <= self.sft < math.inf, "dpo.sft", self.sft, "choose 0 (off) or a weight")
        fix = "orpo has no reference and is defined with this term (Hong et al. 2024, equation 6); choose 1"
        require(self.sft > 0 or self.kind != "orpo", "dpo.sft", self.sft, fix)

    @property
    def has_reference(self) -> bool:
        """True if the loss reads log-probabilities of a reference."""
        return self.reference == "init" and self.kind not in REFERENCE_FREE
