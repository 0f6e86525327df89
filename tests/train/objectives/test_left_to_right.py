"""Left-to-right encoders: rows of masked models without masks, what a token sees, and what such a model is not used for."""

import dataclasses
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from eval.inference.encoder_runner import Encoder
from tests.support import finetuned, tiny
from tests.support.encoder_text import sentences_of, uncased
from tests.support.small import random_params, row, sees, small
from train.config.data_options import EncoderData
from train.config.option_groups import Masking
from train.config.run_config import Mesh
from train.engine import device_mesh
from train.objectives.left_to_right import LeftToRight
from train.objectives.masked import Masked
from train.weights.load import Loaded
from zoo import published_weights
from zoo.errors import BadInput

TOKENIZER = uncased()
TEXT = sentences_of([(7, 5, 9, 4, 6, 8) * 3, (5, 7, 11) * 4, (30,)], TOKENIZER)


def run(objective: str = "left_to_right", causal: bool = True, task: Any = "masked", **data: Any) -> Any:
    model = small("bert", task=task, vocab=TOKENIZER.vocab_size, causal=causal).config
    options: dict[str, Any] = {"masking": Masking(masked=0.0, random=0.0)} if objective == "masked" else {}
    data = {"length": 32, "batch": 4, "rows": "full_sentences"} | data
    return tiny.run(objective, model=model, data=EncoderData(**data), **options)


@pytest.mark.parametrize("data", [{}, {"rows": "segment_pairs"}, {"rows": "doc_sentences", "pack": True}], ids=str)
def test_rows_are_those_of_masked_models_and_targets_the_next_tokens(data: dict[str, Any]) -> None:
    asked, masked = run(**data), run("masked", causal=False, **data)
    planned = LeftToRight.plan_rows(TEXT, asked, TOKENIZER)
    assert planned.fingerprint == Masked.plan_rows(TEXT, masked, TOKENIZER).fingerprint
    build, other = (kind.builder(cfg, TOKENIZER, pytest.fail) for kind, cfg in ((LeftToRight, asked), (Masked, masked)))
    special, counted = TOKENIZER.special_tokens.special, 0
    for number in range(len(planned)):
        arrays, shown = (make(np.random.default_rng(0), planned.row(number), 32) for make in (build, other))
        assert all((arrays[name] == shown[name]).all() for name in ("tokens", "segments", "positions", "types"))
        for at, (target, weight) in enumerate(zip(arrays["targets"], arrays["weights"], strict=True)):
            after = at + 1 if at < 31 and arrays["segments"][at] == arrays["segments"][at + 1] > 0 else None
            text = after is not None and arrays["tokens"][after] not in special
            assert weight == text and (not text or target == arrays["tokens"][after])
        counted += int(arrays["weights"].sum())
    # A special token stands before the first token of each text, so every token is a target.
    assert counted == planned.targets


@pytest.mark.planted(2)
@pytest.mark.parametrize("family", ["bert", pytest.param("distilbert", marks=pytest.mark.full)])
def test_a_token_sees_those_before_it_in_its_segment(family: str) -> None:
    net = small(family, task="masked", causal=True)
    params, segments = random_params(net), np.array([1] * 5 + [2] * 4 + [0] * 3)
    batch = row(12, segments=jnp.int32(segments[None]), positions=jnp.int32([[*range(5), *range(4), *range(3)]]))
    expected = np.tril(segments[:, None] == segments) & (segments > 0)[:, None]
    real = segments > 0
    assert (sees(net, params, batch)[real] == expected[real]).all()
    for wrong in (small(family, task="masked"), net):
        other = batch if wrong is not net else dataclasses.replace(batch, segments=None)
        assert (sees(wrong, params, other)[real] != expected[real]).any()


def test_a_text_is_summarized_by_its_last_token() -> None:
    for goal in ("classification", "choice"):
        cfg = finetuned.run(goal)
        cfg = dataclasses.replace(cfg, model=dataclasses.replace(cfg.model, causal=True))
        batch = finetuned.batch(cfg, finetuned.rows(cfg, finetuned.examples(goal)))
        np.testing.assert_array_equal(batch.summary_at[..., 0], (batch.segments > 0).sum(-1) - 1)


def test_a_causal_encoder_is_neither_trained_on_masks_nor_exported(tmp_path: Path) -> None:
    for wrong, message in (
        (run(causal=False), "--model.causal False: every token would see the one that it predicts; choose --model.causal"),
        (run(task="pretraining"), "--model.task pretraining: it has no head for tokens, or one for next sentences besides"),
    ):
        with pytest.raises(BadInput, match=message):
            wrong.options.check_run(wrong)
    with pytest.raises(BadInput, match=r"--model\.causal True: masked tokens are predicted from both sides; choose --objective"):
        (wrong := run("masked")).options.check_run(wrong)
    for family in ("bert", "roberta", "distilbert"):
        net = small(family, causal=True)
        with pytest.raises(BadInput, match=r"model\.causal True: encoders were only published with tokens that see both sides"):
            published_weights.save_published(tmp_path, net.config, {})
    loaded = Loaded("name", small("bert", task="masked", causal=True), {}, TOKENIZER, device_mesh.make_mesh(Mesh()))
    with pytest.raises(BadInput, match="name: a causal bert, whose tokens see one side only"):
        Encoder.of(loaded, batch=1, dtype=jnp.float32)
