"""Options of low-rank adapters, which a run of any objective may train instead of the parameters of its model."""

import dataclasses
import math

from zoo.errors import require


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lora:
    """Low-rank adapters (Hu et al. 2021): a trained product B A of two thin matrices is added to each target, a frozen matrix."""

    rank: int = 0
    """Rank of B A, its inner size; 0 = no adapters, and all parameters are trained."""
    alpha: float = 8.0
    """Scale of the adapters: the product B A is multiplied by alpha / rank before it is added to the frozen matrix."""
    targets: tuple[str, ...] = ()
    """Published modules that get adapters, by the end of their names (c_attn, query, attention.output.dense); none = the
    defaults of peft for the family."""
    rslora: bool = False
    """Multiply B A by alpha / sqrt(rank) instead of alpha / rank (Kalajdzievski 2023)."""

    dropout: float = 0.0
    """Rate of the dropout of the input of A in training, independent for each module, as lora_dropout in peft."""

    def __post_init__(self) -> None:
        require(0 <= self.rank <= 65536, "lora.rank", self.rank, "choose 0 (no adapters) or the inner size of B A")
        require(0 < self.alpha < math.inf, "lora.alpha", self.alpha, "choose a number above 0")
        require(0 <= self.dropout < 1, "lora.dropout", self.dropout, "choose 0 (no dropout) or a rate below 1")
        require(all(self.targets), "lora.targets", " ".join(self.targets), "a name is empty; name modules, or leave it out")
        if not self.rank:
            for field in dataclasses.fields(self):
                value = getattr(self, field.name)
                text = " ".join(value) if isinstance(value, tuple) else value
                require(value == field.default, f"lora.{field.name}", text, "it needs adapters; add --lora.rank 8, or remove it")
