"""What decides which held-out tokens are scored: it differs where losses are unlike, and only there."""

import dataclasses
from typing import Any

import numpy as np
import pytest

from tests.support import tiny
from train.config.data_options import EncoderData
from train.config.option_groups import Denoising, Masking, Permutation
from train.config.run_config import Run
from train.objectives import objective
from zoo import configs

COUNTS = np.arange(10)
XLNET = dataclasses.replace(configs.find_size("xlnet-nano")[1].config, memory=0)
MASKED, PERMUTED, DENOISED = tiny.run("masked"), tiny.run("permutation", model=XLNET), tiny.run("denoising")


def targets(run: Run, counts: np.ndarray = COUNTS) -> dict[str, Any]:
    return objective(run.objective).target_options(run, lambda: counts)


def rows(kind: Any, **changes: Any) -> Run:
    return tiny.run("masked", data=EncoderData(length=32, rows=kind, **changes))


UNLIKE = [
    *((MASKED, tiny.run("masked", masking=Masking(**{name: value}))) for name, value in [("rare", 0.7), ("whole_words", True)]),
    *((MASKED, tiny.run("masked", masking=Masking(**{name: value}))) for name, value in [("rate", 0.3), ("random", 0.2)]),
    (rows("windows"), rows("full_sentences")),
    (rows("windows"), rows("windows", pack=True)),
    (PERMUTED, tiny.run("permutation", model=XLNET, permutation=Permutation(kind="denoising"))),
    (PERMUTED, tiny.run("permutation", model=XLNET, permutation=Permutation(bidirectional=True))),
    *((DENOISED, tiny.run("denoising", denoising=Denoising(kind=kind))) for kind in ("iid", "bert", "deshuffle")),
    (DENOISED, tiny.run("denoising", denoising=Denoising(mean_span=2.0))),
]
ALIKE = [
    (MASKED, tiny.run("masked", masking=Masking(static=4), seed=1, steps=40)),
    (MASKED, dataclasses.replace(MASKED, data=dataclasses.replace(MASKED.data, batch=8))),
    (MASKED, tiny.run("distilled")),
    (PERMUTED, dataclasses.replace(PERMUTED, model=dataclasses.replace(XLNET, memory=16))),
    tuple(tiny.run("denoising", denoising=Denoising(kind="deshuffle", density=share)) for share in (0.15, 0.5)),
    (tiny.run(), tiny.run(data=dataclasses.replace(tiny.run().data, length=16))),
]


@pytest.mark.planted(len(UNLIKE))
def test_unlike_losses_have_unlike_targets() -> None:
    for first, second in UNLIKE:
        assert targets(first) != targets(second)
    for first, second in ALIKE:
        assert targets(first) == targets(second)
    rare = tiny.run("masked", masking=Masking(rare=0.7))
    assert targets(rare) != targets(rare, COUNTS + 1)
