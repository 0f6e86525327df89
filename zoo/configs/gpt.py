from dataclasses import dataclass
from typing import Literal
@dataclass(frozen=True, kw_only=True)
class Config:
    vocab: int = 100
    pattern: tuple[Literal["full","window"], ...] = ("full",)
