"""What a run reads, from its files to the rows it trains on and the rows it is scored on: text, labelled examples, or pairs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from train.config import run_config
from train.inputs import labelled_inputs, pair_inputs, text_inputs
from train.objectives import objective
from train.rows.mixture import Mixture
from train.run.run_dir import Folder
from train.tokenizers.tokenizer import Tokenizer
from zoo import configs, models
from zoo.errors import require


@runtime_checkable
class Inputs(Protocol):
    """Data, tokenized and planned. Rows are what `train.rows.lm_rows.Rows` are: numbered, and made into arrays by `build`."""

    tokenizer: Tokenizer
    rows: Mixture
    """What the run trains on."""

    def scored(self, run: run_config.Run, stride: int) -> Any:
        """Rows of what is held out, all of it once; `stride` new tokens each, where rows are windows."""
        ...

    def counts(self) -> np.ndarray:
        """How often each id occurs in the training data, int64[V]."""
        ...

    def fingerprints(self) -> dict[str, str]:
        """What a checkpoint remembers of its data, so that it is never resumed on other data."""
        ...

    def facts(self, run: run_config.Run) -> dict[str, str]:
        """The data and what the run does with it, as the console and the report show it."""
        ...


READERS: dict[str, Any] = {"text": text_inputs, "labelled": labelled_inputs, "pairs": pair_inputs}
"""What an objective calls its data -> the module that reads it."""


def settled(run: run_config.Run, folder: Folder) -> run_config.Run:
    """The run with what its data decides filled in: the labels of a classifier.

    Raises:
        BadInput: an objective that the family is not trained by, data that cannot be read, or that does not fit the run.
    """
    able = models.family(configs.family_of(run.model)).OBJECTIVES
    fix = f"a {configs.family_of(run.model)} is trained by {', '.join(able)}; choose the recipe of another family"
    require(run.objective in able, "objective", run.objective, fix)
    return _reader(run).settled(run, folder)


def read(run: run_config.Run, folder: Folder, cache: Path, *, quiet: bool = False) -> Any:
    """The `Inputs` of a settled run. A resumed run uses the tokenizer in its folder.

    Args:
        cache: where tokenized text is kept.
        quiet: show no progress: another process does.

    Raises:
        BadInput: data that cannot be read, or that does not fit the run; see the module that reads it.
    """
    return _reader(run).read(run, folder, cache, quiet=quiet)


def builder(run: run_config.Run, data: Inputs) -> Callable[..., dict[str, Any]]:
    """The function that makes a row the arrays of a `Batch`."""
    return objective(run.objective).builder(run, data.tokenizer, data.counts)


def _reader(run: run_config.Run) -> Any:
    return READERS[objective(run.objective).DATA]
