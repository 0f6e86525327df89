"""Options of the optimizer and of its schedule. Nothing here imports JAX."""

import dataclasses
import math
import re
from collections.abc import Collection
from typing import Literal, get_args

from zoo import plugins
from zoo.errors import BadInput, require

Schedule = Literal["cosine", "linear", "inverse_sqrt", "inverse_sqrt_flat", "constant", "wsd"]
Shape = Literal["linear", "sqrt", "cosine"]
Optimizer = Literal["adamw", "stable_adamw", "lamb", "lion", "adafactor", "muon", "sgd", "soap", "schedule_free_adamw"]
Moments = Literal["float32", "bfloat16"]
MuonScale = Literal["adam", "released"]
Decayed = Literal["matrices", "kernels", "all"]

NARROWEST, WIDEST = 0.001, 0.28
"""Bounds of a width of averages; that of the mean of all steps is the root of 1/12, 0.289."""

USES: dict[str, tuple[str, ...]] = {
    "adamw": ("b1", "b2", "eps"),
    "stable_adamw": ("b1", "b2", "eps"),
    "lamb": ("b1", "b2", "eps"),
    "lion": ("b1", "b2"),
    "adafactor": (),
    "muon": ("b1", "b2", "eps", "momentum", "muon_scale"),
    "sgd": ("momentum",),
    "soap": ("b1", "b2", "eps", "refresh"),
    "schedule_free_adamw": ("b1", "b2", "eps"),
    "cosine": ("final", "decay_steps"),
    "linear": ("final", "decay_steps"),
    "inverse_sqrt": (),
    "inverse_sqrt_flat": (),
    "constant": (),
    "wsd": ("final", "decay_steps", "decay_shape"),
}
"""Optimizer or schedule -> the options that it has besides those of all. A plug-in may use any."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optim:
    """Optimizer and learning-rate schedule.

    AdamW: Loshchilov and Hutter 2019. StableAdamW: Wortsman et al. 2023. LAMB: You et al. 2020. Lion: Chen et al. 2023.
    Adafactor: Shazeer and Stern 2018. Muon: Jordan et al. 2024. SOAP: Vyas et al. 2024. Schedule-free AdamW: Defazio et al.
    2024. SGD: with momentum, and with decoupled weight decay.
    """

    name: Optimizer | str = "adamw"
    """Optimizer, also one of a plug-in. stable_adamw: AdamW with smaller updates of tensors whose gradients have grown. lamb:
    updates in proportion to the norm of each tensor. muon: Muon for the matrices of the layers, AdamW for all others.
    soap: AdamW in the eigenbases of the gradients of each matrix. schedule_free_adamw: with a constant rate and an average of
    the parameters, which is validated, scored, exported and loaded."""
    lr: float = 1e-3
    """Peak learning rate."""
    schedule: Schedule = "cosine"
    """Learning-rate decay after the warm-up. wsd: constant, and the decay in the last steps."""
    warmup: int | float = 100
    """Steps of linear warm-up to the peak (inverse_sqrt_flat: steps at the peak); a number below 1 is a share of --steps."""
    decay_steps: int | float = 0
    """Steps of the decay, or a share of --steps below 1; at most those after the warm-up. wsd: the last ones; cosine, linear: the
    first ones after the warm-up, before a constant rate. 0 = all of them (wsd: a fifth of --steps)."""
    decay_shape: Shape = "linear"
    """Shape of the decay of wsd. sqrt: 1 - the square root of the share of the decay's steps."""
    final: float = 0.1
    """Learning rate that a decay ends at, one step after its last, as a fraction of the peak (cosine, linear, wsd)."""
    b1: float = 0.9
    """Decay of the first moment (adamw, stable_adamw, lamb, lion, muon, soap); share of the average in the parameters that are
    trained (schedule_free_adamw)."""
    b2: float = 0.95
    """Decay of the second moment (adamw, stable_adamw, lamb, muon, soap, schedule_free_adamw); of lion's momentum."""
    eps: float = 1e-8
    """Number that is added to the root of the second moment (adamw, stable_adamw, lamb, muon, soap, schedule_free_adamw)."""
    momentum: float = 0.95
    """Decay of the momentum (muon, of the matrices; sgd)."""
    muon_scale: MuonScale = "adam"
    """Scale of Muon's updates. adam: the root mean square of Adam's, so that both have one learning rate (Liu et al. 2025).
    released: the root of max(1, outputs / inputs), as in its released code, whose learning rate is about 0.02."""
    refresh: int = 10
    """Updates from one change of the bases to the next (soap)."""
    weight_decay: float = 0.1
    """Decoupled weight decay."""
    decayed: Decayed = "matrices"
    """Parameters with weight decay. matrices: kernels and embeddings; kernels: not the embeddings; all: also norms and biases."""
    independent_decay: bool = False
    """Multiply the weight decay by the schedule alone, lr / peak, and not by the learning rate."""
    rates: tuple[str, ...] = ()
    """Factors of the learning rate of some parameters: PATTERN=FACTOR, with a regular expression that is searched in the path,
    as in embed/=10 head=0.5; the first that matches counts."""
    clip: float = 1.0
    """Largest global gradient norm; larger gradients are scaled down. 0 = no clipping."""
    average: float = 0.0
    """Decay of an exponential moving average of the parameters, which is validated, scored, exported and loaded in their place;
    0 = none."""
    average_widths: tuple[float, ...] = ()
    """Widths of averages of the parameters over shares of the steps so far: 0.05 is about the last 12% of them. The first is used
    as that of --optim.average is; `zoo export --average-width` makes others from those of the kept checkpoints."""
    moments: Moments = "float32"
    """Number format of the stored moments. bfloat16: half the memory; rounded at random, so that the mean is exact."""
    offload: bool = False
    """Keep the moments of the layers' matrices in the memory of the host between updates (all but adafactor, soap and
    schedule_free_adamw)."""
    layer_decay: float = 1.0
    """Learning rate of each layer relative to the layer above; the embeddings are below the first layer."""
    freeze_layers: int = 0
    """Number of layers, from the first on, that are not trained."""
    freeze_embeddings: bool = False
    """Do not train the embeddings."""

    def __post_init__(self) -> None:
        plugins.check_name("zoo.optimizers", self.name, get_args(Optimizer), "optim.name")
        for name in ("warmup", "decay_steps"):
            value = getattr(self, name)
            if float(value).is_integer():
                # A checkpoint stores a number of steps as an integer, and a run is only resumed with the same value.
                object.__setattr__(self, name, value := int(value))
            fix = "choose 0 or more steps, or a share of --steps below 1"
            require(0 <= value < 1 or (value >= 1 and isinstance(value, int)), f"optim.{name}", value, fix)
        require(0 < self.lr <= 100, "optim.lr", self.lr, "choose a learning rate between 0 and 100")
        require(0 <= self.final <= 1, "optim.final", self.final, "choose a share between 0 and 1")
        for name in ("b1", "b2", "momentum"):
            require(0 <= getattr(self, name) < 1, f"optim.{name}", getattr(self, name), f"choose 0 <= {name} < 1")
        require(0 < self.eps <= 1, "optim.eps", self.eps, "choose 0 < eps <= 1")
        require(0 <= self.weight_decay <= 10, "optim.weight_decay", self.weight_decay, "choose 0 to 10")
        fix = "choose a number above 0 and up to 1 (1 = the same rate in all layers)"
        require(0 < self.layer_decay <= 1, "optim.layer_decay", self.layer_decay, fix)
        require(1 <= self.refresh <= 1_000_000, "optim.refresh", self.refresh, "choose 1 or more updates")
        fix = "lamb scales updates and decay together to the norm of the tensor; leave it out"
        require(not (self.independent_decay and self.name == "lamb"), "optim.independent_decay", self.independent_decay, fix)
        fix = "the bases of soap need float32; choose it, or another optimizer"
        require(self.moments == "float32" or self.can_round, "optim.moments", self.moments, fix)
        if self.offload and not self.can_offload:
            why = {
                "adafactor": "the moments of adafactor are sums over rows and columns, which are small",
                "soap": "an update of soap needs the bases of all layers",
            }.get(self.name, "only moments can be on the host, and not the average of the parameters")
            raise BadInput(f"--optim.offload: {why}; choose another optimizer, or leave it out")
        require(0 <= self.average < 1, "optim.average", self.average, "choose 0 (none) or a decay below 1, such as 0.999")
        if self.is_schedule_free:
            fix = "schedule_free_adamw averages the parameters in place of a decay; choose constant"
            require(self.schedule == "constant", "optim.schedule", self.schedule, fix)
            fix = "schedule_free_adamw has an average of its own; choose 0, or another optimizer"
            require(not self.average, "optim.average", self.average, fix)
            require(not self.average_widths, "optim.average_widths", " ".join(map(str, self.average_widths)), fix)
        self._check_widths()
        require(self.freeze_layers >= 0, "optim.freeze_layers", self.freeze_layers, "choose 0 (none) or a number of layers")
        require(0 <= self.clip < math.inf, "optim.clip", self.clip, "choose 0 (off) or a norm")
        for text in self.rates:
            _parse_rate(text)

    def _check_widths(self) -> None:
        widths, text = self.average_widths, " ".join(map(str, self.average_widths))
        valid = all(NARROWEST <= width <= WIDEST for width in widths) and len({*widths}) == len(widths)
        fix = f"choose different widths of {NARROWEST} to {WIDEST}, first that of the average to score, such as 0.05 0.1"
        require(valid, "optim.average_widths", text, fix)
        fix = "the parameters have one kind of average; leave out --optim.average, or this option"
        require(not (self.average and widths), "optim.average_widths", text, fix)

    @property
    def freezes(self) -> bool:
        """True if a part of the model is not trained."""
        return self.freeze_embeddings or self.freeze_layers > 0

    @property
    def is_schedule_free(self) -> bool:
        """True if the optimizer averages the parameters in place of a schedule."""
        return self.name == "schedule_free_adamw"

    @property
    def has_average(self) -> bool:
        """True if an average of the parameters is validated, scored, exported and loaded in their place."""
        return self.average > 0 or bool(self.average_widths) or self.is_schedule_free

    @property
    def can_round(self) -> bool:
        """True if the moments can be stored in bfloat16."""
        return self.name != "soap"

    @property
    def can_offload(self) -> bool:
        """True if the moments can be in the memory of the host."""
        return self.name not in ("adafactor", "soap") and not self.has_average

    @property
    def rate_factors(self) -> list[tuple[re.Pattern[str], float]]:
        """The patterns of paths and the factors of `rates`."""
        return [_parse_rate(text) for text in self.rates]

    def warmup_steps(self, steps: int) -> int:
        """Return the number of warm-up steps of a run of `steps` steps; a share is rounded."""
        return _number_of_steps(self.warmup, steps)

    def length_of_decay(self, steps: int) -> int:
        """Return the number of steps of the decay of a run of `steps` steps, at least 1."""
        rest = steps - min(self.warmup_steps(steps), steps)
        default = round(0.2 * steps) if self.schedule == "wsd" else rest
        return max(min(_number_of_steps(self.decay_steps, steps) if self.decay_steps else default, rest), 1)


def check_used(optim: Optim, names: Collection[str]) -> None:
    """Refuse options that the chosen optimizer or the chosen schedule does not have.

    Args:
        names: dotted names of the options that a user gave, such as "optim.b1"; those of a recipe may be unused.

    Raises:
        BadInput: an option has no effect; the message names it and the options with an effect.
    """
    for chosen in (optim.name, optim.schedule):
        if chosen not in USES:
            continue
        kind = "optimizer" if chosen == optim.name else "schedule"
        choices = get_args(Optimizer if kind == "optimizer" else Schedule)
        for option in sorted({option for name in choices for option in USES[name]} - {*USES[chosen]}):
            others = ", ".join(name for name in choices if option in USES[name])
            fix = f"the {kind} {chosen} does not use it; leave it out, or choose one of {others}"
            require(f"optim.{option}" not in names, f"optim.{option}", getattr(optim, option), fix)
    for option in ("decayed", "independent_decay") if not optim.weight_decay else ():
        fix = "there is no weight decay; leave it out, or set --optim.weight-decay"
        require(f"optim.{option}" not in names, f"optim.{option}", getattr(optim, option), fix)


def _number_of_steps(value: int | float, steps: int) -> int:
    return round(value * steps) if value < 1 else int(value)


def _parse_rate(text: str) -> tuple[re.Pattern[str], float]:
    """Return the pattern and the factor of an item of `Optim.rates`.

    Raises:
        BadInput: it is not PATTERN=FACTOR.
    """
    pattern, _, factor = text.rpartition("=")
    fix = "choose PATTERN=FACTOR, a regular expression and a number of 0 or more, such as embed/=10"
    try:
        parsed = re.compile(pattern), float(factor)
    except (re.error, ValueError):
        raise BadInput(f"--optim.rates {text}: {fix}") from None
    require(bool(pattern) and 0 <= parsed[1] < math.inf, "optim.rates", text, fix)
    return parsed
