"""Cases of the benchmark: a model at a shape, and a batch of random text with targets of the family's first objective."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.core.options import Mode
from train.config.find_objective import find_options
from train.config.run_config import Optim, Run
from zoo import configs, models, plugins
from zoo.batch import Batch
from zoo.errors import BadInput, require
from zoo.models import Model

SHAPES: dict[str, tuple[int, int, int]] = {
    "causal": (2, 512, 0),
    "masked": (8, 128, 0),
    "denoising": (4, 64, 256),
    "text_to_text": (4, 64, 64),
    "permutation": (2, 256, 0),
}
"""Objective -> default rows, tokens of a row, and tokens of its source."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """A model at a shape, and the mode of its steps; the way of computing it is a `Variant`."""

    size: str
    """The published name."""
    config: Any
    objective: str
    mode: Mode
    batch: int
    length: int
    """Number of tokens of a row (encoder-decoder: of its target); in decoding, of slots of the cache, all full but the last."""
    source: int
    """Number of tokens of a row's source in an encoder-decoder; otherwise 0."""
    dropout: bool = False
    """True if the published dropout rates are used."""

    @property
    def axes(self) -> dict[str, Any]:
        """Return its part of the key of a cell."""
        names = ("mode", "batch", "length", "source", "dropout")
        return {"model": self.size, **{name: getattr(self, name) for name in names}}

    @property
    def tokens(self) -> int:
        """Number of tokens that a step reads; decoding writes one per row."""
        return self.batch * (1 if self.mode == "decode" else self.length + self.source)

    @property
    def model(self) -> Model:
        return models.model(self.config)

    def run(self, **changes: Any) -> Run:
        """Return the case as a run of the trainer: AdamW and clipping, at a constant rate."""
        kind = find_options(self.objective)
        return Run(
            recipe=self.size,
            options=kind(),
            steps=1 << 30,
            data=kind.data(length=self.source or self.length, batch=self.batch),
            optim=Optim(schedule="constant", warmup=0),
            **{"model": self.config, **changes},
        )

    def arrays(self) -> Batch:
        """Return its batch on the host, which is the same in every process."""
        rng = np.random.default_rng([self.batch, self.length, self.source])
        batch = BATCHES[self.objective](self, rng)
        return dataclasses.replace(batch, index=np.arange(self.batch, dtype=np.uint32))


def make_case(name: str, mode: Mode, *, batch: int = 0, length: int = 0, source: int = 0, dropout: bool = False) -> Case:
    """Return the case of a model by name; a number of 0 stands for the default of the model's family.

    Raises:
        BadInput: there is no such model, or the model does not support the mode or the shape.
    """
    name = resolve_size_name(name)
    size = configs.find_size(name)[1]
    objective = next((candidate for candidate in models.model(size.config).definition.objectives if candidate in BATCHES), None)
    if objective is None:
        raise BadInput(f"{name} has no objective that zoo bench step knows; it knows {', '.join(BATCHES)}")
    cfg = _with_head(size.config, objective, dropout)
    model = models.model(cfg)
    if mode == "decode" and not model.generates:
        families = ", ".join(family for family in models.families() if models.family(family).init_cache is not None)
        raise BadInput(f"--mode decode: {name} does not generate text; these families do: {families}")
    rows, tokens, read = SHAPES[objective]
    if source and not model.is_encoder_decoder:
        raise BadInput(f"--source-length {source}: {name} is not an encoder-decoder and reads no source; leave it out")
    context = getattr(cfg, "context", 1 << 20)
    shape = {
        "batch": batch or rows,
        "length": length or min(tokens, context),
        "source": (source or read) if model.is_encoder_decoder else 0,
    }
    fix = f"{name} has {context:,} positions; choose at most {context:,}"
    require(shape["length"] <= context, "length", shape["length"], fix)
    least = {"permutation": 8}.get(objective, 2)
    require(shape["length"] >= least, "length", shape["length"], f"choose {least} tokens or more")
    return Case(size=name, config=cfg, objective=objective, mode=mode, dropout=dropout, **shape)


def resolve_size_name(name: str) -> str:
    """Return a published name, or the first one that begins with a shorter name: bert-base is bert-base-uncased.

    Raises:
        BadInput: there is neither.
    """
    if name in configs.REFUSED:
        configs.find_size(name)
    names = [size for family in configs.families() for size in configs.family(family).SIZES]
    if name not in names and not plugins.plugin_owner("zoo.models", name):
        name = next((size for size in names if size.startswith(f"{name}-") and not size.endswith("-nano")), name)
    configs.find_size(name)
    return name


def _with_head(cfg: Any, objective: str, dropout: bool) -> Any:
    """Return the configuration with the head of the objective, without memory, and without dropout unless `dropout`."""
    changes: dict[str, Any] = {}
    fields = {field.name for field in dataclasses.fields(cfg)}
    if "task" in fields:
        changes["task"] = objective
    # Rows here do not continue each other.
    changes |= {name: 0 for name in ("memory", "reuse") if name in fields}
    if not dropout:
        changes |= {name: 0.0 for name in fields if name.endswith("dropout")}
    return dataclasses.replace(cfg, **changes)


# --- batches --------------------------------------------------------------------------------------------------------------------


MASKED = 0.15
"""Share of the positions that are predicted (Devlin et al. 2019, section 3.1)."""
MASK = 103
"""Id of BERT's [MASK]; its value does not matter here."""


def _causal(case: Case, rng: np.random.Generator) -> Batch:
    text = _text(case, rng, case.length + 1)
    return Batch(tokens=text[:, :-1], targets=text[:, 1:], weights=np.ones((case.batch, case.length), np.float32))


def _masked(case: Case, rng: np.random.Generator) -> Batch:
    text, predicted = _text(case, rng, case.length), max(1, math.ceil(MASKED * case.length))
    at = _places(rng, case, predicted)
    tokens = text.copy()
    np.put_along_axis(tokens, at, min(MASK, case.config.vocab - 1), axis=1)
    return Batch(
        tokens=tokens,
        segments=np.ones_like(text),
        positions=np.broadcast_to(np.arange(case.length, dtype=np.int32), text.shape),
        types=np.zeros_like(text),
        predict_at=at,
        targets=np.take_along_axis(text, at, axis=1),
        weights=np.ones(at.shape, np.float32),
    )


def _text_to_text(case: Case, rng: np.random.Generator) -> Batch:
    read, written = _text(case, rng, case.source), _text(case, rng, case.length)
    # Padding, id 0, comes before the first token.
    before = np.concatenate([np.zeros_like(written[:, :1]), written[:, :-1]], axis=1)
    return Batch(
        tokens=before,
        targets=written,
        weights=np.ones(written.shape, np.float32),
        segments=np.ones_like(written),
        positions=np.broadcast_to(np.arange(case.length, dtype=np.int32), written.shape),
        source=Batch(
            tokens=read,
            segments=np.ones_like(read),
            positions=np.broadcast_to(np.arange(case.source, dtype=np.int32), read.shape),
        ),
    )


def _permutation(case: Case, rng: np.random.Generator) -> Batch:
    """Predict a sixth of the tokens in a random order, each from all others and the predicted ones before it."""
    text, predicted = _text(case, rng, case.length), max(1, case.length // 6)
    at = _places(rng, case, predicted)
    order = np.full_like(text, -1)
    np.put_along_axis(order, at, np.stack([rng.permutation(predicted) for _ in text]).astype(np.int32), axis=1)
    return Batch(
        tokens=text,
        types=np.zeros_like(text),
        order=order,
        query_at=at,
        targets=np.take_along_axis(text, at, axis=1),
        weights=np.ones(at.shape, np.float32),
    )


BATCHES: dict[str, Callable[[Case, np.random.Generator], Batch]] = {
    "causal": _causal,
    "masked": _masked,
    "denoising": _text_to_text,
    "text_to_text": _text_to_text,
    "permutation": _permutation,
}


def _text(case: Case, rng: np.random.Generator, length: int) -> np.ndarray:
    """Return random ids without 0 and 1, which are padding in some families."""
    return rng.integers(2, case.config.vocab, (case.batch, length), dtype=np.int32)


def _places(rng: np.random.Generator, case: Case, count: int) -> np.ndarray:
    sampled = [np.sort(rng.choice(case.length, count, replace=False)) for _ in range(case.batch)]
    return np.stack(sampled).astype(np.int32)
