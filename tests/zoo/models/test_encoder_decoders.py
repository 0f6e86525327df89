"""Encoder-decoders as published: what `transformers` computes for each form, and the names that their files have had."""

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.golden import make
from tests.support import published
from tests.support import transformers_outputs as theirs
from tests.support.small import as_batch, jit
from train import config
from train import mesh as meshes
from zoo import models, pretrained, tensors
from zoo.errors import BadInput

ONE = meshes.make(config.Mesh(), jax.devices()[:1])
every_form = pytest.mark.parametrize("form", published.FORMS)
STRAY = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
TABLES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight")


def written(folder: Path, form: str) -> dict[str, np.ndarray]:
    """A published folder of a tiny model; returns its tensors."""
    return published.write(folder, published.config(published.FORMS[form][0], "text_to_text", make.form_of(form)))


@every_form
def test_what_transformers_computes(form: str, tmp_path: Path) -> None:
    """Logits of a padded batch within 1e-5, and of each gradient the norm and a projection."""
    frozen = json.loads((Path(make.__file__).parent / "encoder_decoders.json").read_text())[form]
    written(tmp_path / "there", form)
    cfg, params = pretrained.load(tmp_path / "there", ONE)
    net, asked = models.model(cfg), theirs.given(make.form_of(form), make.LENGTHS)
    batch = as_batch(asked)
    along = theirs.directions({"words": (*batch.tokens.shape, cfg.vocab)}, asked["real"])["words"]

    @functools.partial(jax.value_and_grad, has_aux=True)
    def score(params: Any) -> tuple[Any, Any]:
        words = net.unembed(params, net.apply(params, batch).hidden)[..., : cfg.vocab]
        return (words * along).sum(), words

    (_, words), gradients = jit(score)(params)
    np.testing.assert_allclose(make.counted("words", np.asarray(words), asked), frozen["outputs"]["words"], atol=1e-5, rtol=0)
    (tmp_path / "gradients").mkdir()
    pretrained.save(tmp_path / "gradients", cfg, gradients)
    stored = load_file(tmp_path / "gradients" / tensors.SINGLE)
    whole = np.sqrt(sum(norm**2 for norm, _ in frozen["gradients"].values()))
    # A bias of the logits is a buffer there, without a gradient.
    assert stored.keys() - {"final_logits_bias"} == frozen["gradients"].keys()
    for name, expected in frozen["gradients"].items():
        # The project's bound against torch (DESIGN, "Equal gradients"), of the norm and of a projection as long as the leaf.
        bound = np.sqrt(stored[name].size) * (1e-3 * expected[0] + 1e-5 * whole)
        assert make.probe(name, stored[name]) == pytest.approx(expected, abs=bound), name


@every_form
def test_the_same_bits_come_out(form: str, tmp_path: Path) -> None:
    stored = written(tmp_path / "there", form)
    cfg, params = pretrained.load(tmp_path / "there", meshes.make(config.Mesh(fsdp=4), jax.devices()[:4]))
    (tmp_path / "back").mkdir()
    pretrained.save(tmp_path / "back", cfg, params)
    found = load_file(tmp_path / "back" / tensors.SINGLE)
    assert found.keys() == stored.keys()
    assert all(np.array_equal(found[name], stored[name]) for name in stored)
    again = pretrained.open_folder(tmp_path / "back")
    assert (again.config, again.notes) == (cfg, ())


# --- T5's names -----------------------------------------------------------------------------------------------------------------


def changed(folder: Path, form: str, other: dict[str, np.ndarray], **said: Any) -> pretrained.Opened:
    """What a folder holds after its tensors and its config.json were changed."""
    save_file({**written(folder, form), **other}, folder / tensors.SINGLE)
    numbers = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**numbers, **said}))
    return pretrained.open_folder(folder)


@pytest.mark.parametrize(
    "form", [pytest.param("t5-1.0", marks=pytest.mark.planted(3)), pytest.param("t5-1.1", marks=pytest.mark.planted(2))]
)
def test_every_copy_of_the_table_must_be_one(form: str, tmp_path: Path) -> None:
    """Tied, the output's too; untied, it is another tensor."""
    shared = written(tmp_path / "plain", form)["shared.weight"]
    copies = [name for name in TABLES if form == "t5-1.0" or name != "lm_head.weight"]
    opened = changed(tmp_path / "all", form, dict.fromkeys(copies, shared))
    assert opened.notes == ()
    for name in copies:
        with pytest.raises(BadInput, match=f"{name} differs from shared.weight, which this family ties it to"):
            changed(tmp_path / name, form, {name: shared + 1})


def test_what_the_first_files_carry_besides_is_told(tmp_path: Path) -> None:
    """Position biases of cross-attention, which nothing reads."""
    opened = changed(tmp_path / "old", "t5-1.0", {STRAY: np.ones((8, 3), np.float32)})
    assert [note.partition(": ")[2] for note in opened.notes] == [f"not used by T5ForConditionalGeneration, its head: {STRAY}"]


@pytest.mark.parametrize(
    ("said", "tied"),
    [
        ({}, False),
        ({"tie_word_embeddings": True, "scale_decoder_outputs": False}, False),
        ({"tie_word_embeddings": False, "dense_act_fn": "gelu_new", "is_gated_act": True}, False),
    ],
)
def test_who_is_tied_is_said_under_two_names(said: dict[str, Any], tied: bool, tmp_path: Path) -> None:
    assert changed(tmp_path / "there", "t5-1.1", {}, **said).config.tied == tied


@pytest.mark.parametrize(
    ("said", "told"),
    [
        pytest.param(
            {"tie_word_embeddings": True},
            "lm_head.weight differs from shared.weight, which this family ties it to",
            marks=pytest.mark.planted,
        ),
        pytest.param(
            {"feed_forward_proj": "relu"},
            "encoder.block.0.layer.1.DenseReluDense.wi.weight is missing",
            marks=pytest.mark.planted,
        ),
        ({"feed_forward_proj": "gated-silu"}, 'feed_forward_proj is "gated-silu"; this family computes relu, gated-gelu'),
        ({"is_gated_act": False}, "is_gated_act is false; this family computes true"),
        ({"dense_act_fn": "relu"}, 'dense_act_fn is "relu"; feed_forward_proj says gelu_new, gelu_pytorch_tanh'),
        ({"decoder_start_token_id": 2}, "decoder_start_token_id is 2; this family computes 0"),
        ({"is_encoder_decoder": False}, "is_encoder_decoder is false; this family computes true"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings is 1; it must be true or false"),
        ({"relative_attention_num_buckets": 6}, "--model.buckets 6: choose a multiple of 4"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_is_not_computed_is_refused(said: dict[str, Any], told: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput) as refusal:
        changed(tmp_path / "there", "t5-1.1", {}, **said)
    assert told in str(refusal.value) and "\n" not in str(refusal.value)


@pytest.mark.planted
def test_a_tied_config_of_untied_files_without_the_second_table(tmp_path: Path) -> None:
    stored = written(tmp_path / "there", "t5-1.1")
    del stored["lm_head.weight"]
    save_file(stored, tmp_path / "there" / tensors.SINGLE)
    with pytest.raises(BadInput, match=r"lm_head.weight is missing"):
        pretrained.open_folder(tmp_path / "there")


@pytest.mark.parametrize(
    ("family", "changes", "told"),
    [
        ("t5", {"architecture": "shared", "decoder_layers": 2}, "model.architecture shared: no such T5 was published"),
        ("t5", {"architecture": "decoder", "decoder_layers": 2}, "model.architecture decoder: no such T5 was published"),
        ("t5", {"activation": "gelu"}, "model.activation gelu: a t5 config.json knows no gate of it"),
        ("transformer", {"sinusoids": "interleaved"}, "model.sinusoids interleaved: a marian config.json knows only halves"),
        ("transformer", {"attention_bias": False}, "model.attention_bias False: a marian config.json knows only True"),
        ("transformer", {"output_bias": False}, "model.output_bias False: a marian config.json knows only True"),
    ],
)
def test_what_has_no_published_form_is_not_written(family: str, changes: dict[str, Any], told: str, tmp_path: Path) -> None:
    written(tmp_path / "there", "t5-1.1" if family == "t5" else "marian")
    cfg = dataclasses.replace(pretrained.open_folder(tmp_path / "there").config, **changes)
    with pytest.raises(BadInput, match=told):
        pretrained.save(tmp_path, cfg, {})


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ({"scale_embedding": False}, "scale_embedding is false; this family computes true"),
        ({"decoder_layers": 3}, "decoder_layers is 3; this family computes 2, as in the encoder"),
        ({"activation_function": "swish"}, 'activation_function is "swish"; this family computes relu, gelu, gelu_new'),
        ({"normalize_before": True}, "normalize_before is true; this family computes false"),
        ({"share_encoder_decoder_embeddings": False}, "share_encoder_decoder_embeddings is false; this family computes true"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_marian_has_besides_is_refused(said: dict[str, Any], told: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput) as refusal:
        changed(tmp_path / "there", "marian", {}, **said)
    assert told in str(refusal.value)
