"""`--task masked:all` hides every predicted token from models of any objective, and predicts the same tokens with all of them."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eval.tasks import masked
from eval.tasks.task import Result, Settings
from tests.support import encoders, tiny
from train.config.option_groups import Permutation
from train.engine.losses import token_losses
from train.targets import masking
from zoo.batch import Batch
from zoo.errors import BadInput
from zoo.models import model

LENGTH = 20


def quiet(done: int, count: int) -> None:
    pass


def score(subject: Any, folder: Path, argument: str = "all") -> Result:
    (folder / "a.txt").write_text(encoders.TEXT)
    settings = Settings(length=LENGTH, batch=3, argument=argument)
    return masked.TASK.score(subject, masked.TASK.read([str(folder / "a.txt")], settings), settings, quiet)


def with_run(subject: Any, **options: Any) -> Any:
    """The model as that of a run with options of the permutation objective."""
    return dataclasses.replace(subject, run=tiny.run("permutation", permutation=Permutation(**options)))


@pytest.mark.planted
def test_an_xlnet_predicts_each_target_from_all_tokens_that_are_not_predicted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The oracle is a row at a time, in an order in which one target comes first and the others after it."""
    subject = encoders.loaded("xlnet", "permutation")
    remembers = dataclasses.replace(subject, model=model(dataclasses.replace(subject.model.config, memory=8)))
    sequences: list[tuple[np.ndarray, np.ndarray]] = []
    choose = masking.choose_masks

    def noted(rng: np.random.Generator, tokens: np.ndarray, *rest: Any) -> Any:
        result = choose(rng, tokens, *rest)
        sequences.append((tokens, result[0]))
        return result

    monkeypatch.setattr("train.objectives.masked.choose_masks", noted)
    result = score(remembers, tmp_path)
    monkeypatch.undo()
    compute, nats, seen = jax.jit(_nll(subject)), 0.0, 0.0
    distinct = {tokens.tobytes(): (tokens, targets) for tokens, targets in sequences}
    for tokens, targets in distinct.values():
        padded = np.zeros((1, LENGTH), np.int32)
        padded[0, : len(tokens)] = tokens
        segments = (np.arange(LENGTH) < len(tokens)).astype(np.int32)[None]
        for place, at in enumerate(targets):
            order = np.full((1, LENGTH), -1, np.int32)
            order[0, np.roll(targets, -place)] = np.arange(len(targets))
            types = np.where(np.arange(LENGTH) == len(tokens) - 1, 2, 0).astype(np.int32)[None]
            batch = Batch(tokens=padded, segments=segments, types=types, order=order, query_at=np.array([[at]], np.int32))
            nats += float(compute(subject.params, batch, jnp.int32(tokens[at])))
            seen += float(
                compute(subject.params, dataclasses.replace(batch, order=np.minimum(order, 0) - (order > 0)), tokens[at])
            )
    assert sum(len(targets) for _, targets in distinct.values()) == result.metrics["predictions"] > len(distinct) > 1
    assert result.metrics["loss"] == pytest.approx(nats / result.metrics["predictions"], rel=1e-5)
    assert abs(seen / nats - 1) > 1e-4
    # The floor: the frequencies of the text, without what is never predicted and without entries that are absent.
    occurrences = np.bincount(subject.tokenizer.encode(encoders.TEXT), minlength=subject.model.config.vocab)
    assert not occurrences.all()
    floor = [np.log(occurrences.sum() / occurrences[tokens[targets]]).sum() for tokens, targets in distinct.values()]
    assert result.metrics["unigram_loss"] == pytest.approx(sum(floor) / result.metrics["predictions"], rel=1e-5)
    assert result.details == {"length": LENGTH, "hidden": "all"}
    rows = result.outcomes
    assert rows is not None and rows.count.sum() == result.metrics["predictions"] and len(rows.id) > 1
    assert rows.nats.sum() / rows.count.sum() == pytest.approx(result.metrics["loss"])
    assert rows.right.sum() / rows.count.sum() == pytest.approx(result.metrics["accuracy"])
    assert {name.split()[0] for name in rows.id} == {"a.txt"}


def _nll(subject: Any) -> Any:
    net = subject.model

    def nll(params: Any, batch: Batch, target: Any) -> Any:
        hidden = net.apply(params, batch).predicted
        targets = jnp.full((1, 1), target, jnp.int32)
        return token_losses(lambda states: net.unembed(params, states), hidden, targets, vocabulary=net.config.vocab)[0, 0]

    return nll


def test_all_models_of_a_tokenizer_predict_the_same_hidden_tokens(tmp_path: Path) -> None:
    xlnet = encoders.loaded("xlnet", "permutation")
    trained = [with_run(xlnet, kind=kind) for kind in ("permutation", "denoising")]
    permuted, denoised = (score(subject, tmp_path).metrics for subject in trained)
    assert permuted == score(xlnet, tmp_path).metrics
    assert permuted["predictions"] == denoised["predictions"] and abs(permuted["loss"] - denoised["loss"]) > 1e-4
    bert = encoders.loaded("bert")
    some, every = score(bert, tmp_path, "").metrics, score(bert, tmp_path).metrics
    assert some["predictions"] == every["predictions"] and abs(some["loss"] - every["loss"]) > 1e-4
    with pytest.raises(BadInput, match="a xlnet never sees a token that it predicts; choose --task masked:all"):
        score(xlnet, tmp_path, "")
    with pytest.raises(BadInput, match="--task masked:some: no such rule; choose masked, or masked:all"):
        score(bert, tmp_path, "some")
