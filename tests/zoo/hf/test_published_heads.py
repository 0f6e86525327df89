"""Published encoders and their heads: what `transformers` computes, which head a folder has, and what may lie beside it."""

import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from tests.golden import make
from tests.support import published
from tests.support import transformers_outputs as theirs
from tests.support.small import as_batch, jit, said
from train import config
from train import mesh as meshes
from zoo import configs, models, pretrained, tensors
from zoo.batch import Batch
from zoo.encoder_config import LABELLED
from zoo.errors import BadInput
from zoo.published import MOST_LABELS, Published

ONE = meshes.make(config.Mesh(), jax.devices()[:1])
FOUR = meshes.make(config.Mesh(fsdp=4), jax.devices()[:4])
every_head = pytest.mark.parametrize(("family", "task"), published.ENCODERS)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """`folders(family, task)` is a published folder of the tiny model."""
    place = tmp_path_factory.mktemp("published")

    @functools.cache
    def folder(family: str, task: str) -> Path:
        published.write(place / f"{family}-{task}", published.config(family, task))
        return place / f"{family}-{task}"

    return folder


def test_the_heads_are_those_of_transformers() -> None:
    assert len(published.ENCODERS) == 8 + 6 + 6 + 6


@functools.cache
def body(family: str) -> Callable[..., tuple[Any, Any]]:
    """(hidden states, gradient of their product with a cotangent) of the tiny body, which all heads share: compiled once."""
    cfg = configs.family(family).from_published(Published(Path(), published.TINY[family]))

    def both(params: Any, batch: Batch, cotangent: Any) -> tuple[Any, Any]:
        hidden, back = jax.vjp(lambda params: models.family(family).apply(cfg, params, batch).hidden, params)
        return hidden, back(cotangent)[0]

    return jit(both)


@every_head
def test_what_transformers_computes(family: str, task: str, folders: Callable[[str, str], Path], tmp_path: Path) -> None:
    """Outputs of a padded batch within 1e-5, and of each gradient the norm and a projection."""
    frozen = json.loads((Path(make.__file__).parent / f"{family}.json").read_text())[task]
    cfg, params = pretrained.load(folders(family, task), ONE)
    net, asked = models.model(cfg), theirs.given(published.TINY[family], make.LENGTHS)
    batch, below = as_batch(asked), {name: params[name] for name in ("embed", "layers")}
    hidden, _ = body(family)(below, batch, jnp.zeros((*batch.tokens.shape, cfg.width)))
    outputs, back = jax.vjp(lambda params, hidden: without_padding(cfg, said(net, params, hidden, batch)), params, hidden)
    assert outputs.keys() == frozen["outputs"].keys()
    for name, each in outputs.items():
        ours = make.counted(name, np.asarray(each), asked)
        np.testing.assert_allclose(ours, frozen["outputs"][name], atol=1e-5, rtol=0)

    along = theirs.directions({name: each.shape for name, each in outputs.items()}, asked["real"])
    gradients, cotangent = back(jax.tree.map(jnp.asarray, along))
    gradients |= jax.tree.map(jnp.add, {name: gradients[name] for name in below}, body(family)(below, batch, cotangent)[1])
    pretrained.save(tmp_path, cfg, gradients)
    stored = load_file(tmp_path / tensors.SINGLE)
    whole = np.sqrt(sum(norm**2 for norm, _ in frozen["gradients"].values()))
    assert stored.keys() == frozen["gradients"].keys()
    for name, expected in frozen["gradients"].items():
        # The project's bound against torch (DESIGN, "Equal gradients"), of the norm and of a projection as long as the leaf.
        bound = np.sqrt(stored[name].size) * (1e-3 * expected[0] + 1e-5 * whole)
        assert make.probe(name, stored[name]) == pytest.approx(expected, abs=bound), name


def without_padding(cfg: Any, outputs: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Without the rows of the vocabulary that are no words."""
    return outputs | ({"words": outputs["words"][..., : cfg.vocab]} if "words" in outputs else {})


@every_head
def test_the_same_bits_come_out(family: str, task: str, folders: Callable[[str, str], Path], tmp_path: Path) -> None:
    """In four shards and out again: every tensor, every number and every label."""
    cfg, params = pretrained.load(folders(family, task), FOUR)
    assert params["layers"]["mlp"]["up"]["kernel"].sharding.shard_shape((2, 12, 20)) == (2, 3, 20)
    assert (cfg.task, cfg.labels) == (task, published.LABELS if task in LABELLED else ())
    pretrained.save(tmp_path, cfg, params)
    original, written = load_file(folders(family, task) / tensors.SINGLE), load_file(tmp_path / tensors.SINGLE)
    assert written.keys() == original.keys()
    assert all(np.array_equal(written[name], original[name]) for name in original)
    again = pretrained.open_folder(tmp_path)
    assert (again.config, again.notes) == (cfg, ())
    said = json.loads((tmp_path / "config.json").read_text())
    assert said["architectures"] == [models.family(family).HF[task].architecture]
    assert task not in LABELLED or tuple(said["id2label"].values()) == tuple(said["label2id"]) == published.LABELS


# --- which head a folder has ----------------------------------------------------------------------------------------------------

ALIKE = {
    ("bert", "sequence", "choice", "tokens"),
    ("roberta", "choice", "tokens"),
    ("distilbert", "sequence", "choice"),
    ("xlnet", "sequence", "choice"),
}
"""Heads with tensors of the same names, a pooler that classifiers of tokens leave idle included; the first is taken if nobody
says which."""


def settled(family: str, task: str, idle: bool, said: str) -> str:
    """The task of a file of `task`'s tensors whose architecture is that of `said`."""
    alike = next((tasks for other, *tasks in ALIKE if other == family and task in tasks), [task])
    return task if task == "tokens" and not idle else said if said in alike else alike[0]


@settings(deadline=None)
@given(
    head=st.sampled_from(published.ENCODERS),
    said=st.sampled_from(["", *models.family("bert").HF]),
    other_prefix=st.booleans(),
    idle=st.booleans(),
    old=st.booleans(),
    tied=st.booleans(),
    buffers=st.booleans(),
)
def test_tensors_tell_their_head_and_are_all_accounted_for(
    head: tuple[str, str], said: str, other_prefix: bool, idle: bool, old: bool, tied: bool, buffers: bool
) -> None:
    """With the prefix of the family or without, with what old files have besides, under any architecture or none."""
    family, task = head
    heads = models.family(family).HF
    names = heads[task]
    cfg, stored, leaves = tiny(family, task)
    prefix = names.prefixes[other_prefix]
    of_body = {name for name in stored if name.startswith(names.prefixes[0])}
    found = {(prefix + name.removeprefix(names.prefixes[0]) if name in of_body else name): each for name, each in stored.items()}
    if tied:
        found |= {name: leaves[path][: cfg.vocab] for name, path in names.tied.items()}
    if idle := idle and bool(names.idle):
        found |= {prefix + name: np.zeros(12, np.float32) for name in names.idle}
    if old:
        found = {as_of_old(name): each for name, each in found.items()}
    if buffers and names.constants:
        found[f"{prefix}embeddings.position_ids"] = np.arange(16)[None]
    architecture = heads[said].architecture if said in heads else ""
    assert pretrained.settle(heads, found, architecture) == settled(family, task, idle, said)
    held = {names.today(name): published.held(each) for name, each in found.items()}
    planned, unused = pretrained.plan(cfg, held, Path())
    assert unused == [prefix + name for name in names.idle if idle]
    assert all(np.array_equal(whole(leaf, held), leaves[leaf.path]) for leaf in planned)


@functools.cache
def tiny(family: str, task: str) -> tuple[Any, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """(configuration, published tensors, leaves) of the tiny model."""
    said = Published(Path(), published.config(family, task))
    said.task = task
    cfg = configs.family(family).from_published(said)
    stored = published.weights({name: shape for name, shape, *_ in pretrained.explain(cfg)})
    leaves, _ = pretrained.plan(cfg, held := {name: published.held(each) for name, each in stored.items()}, Path())
    return cfg, stored, {leaf.path: whole(leaf, held) for leaf in leaves}


def whole(leaf: pretrained.Leaf, found: dict[str, Any]) -> np.ndarray:
    return leaf.read(found, (slice(None),) * (leaf.stacked + len(leaf.shape)))


def as_of_old(name: str) -> str:
    return name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")


def folder_of(folder: Path, said: dict[str, Any], stored: dict[str, np.ndarray]) -> Path:
    """A published folder of these tensors."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(said))
    save_file(stored, folder / tensors.SINGLE)
    return folder


def refused(folder: Path, *told: str) -> None:
    with pytest.raises(BadInput) as refusal:
        pretrained.open_folder(folder)
    assert all(part in str(refusal.value) for part in told), refusal.value
    assert "\n" not in str(refusal.value)


@pytest.mark.planted(3)
def test_bert_as_it_was_released(tmp_path: Path) -> None:
    """Both pretraining heads with the names of old, the table once more as the decoder, and an architecture that is but one."""
    stored = {as_of_old(name): each for name, each in tiny("bert", "pretraining")[1].items()}
    stored["cls.predictions.decoder.weight"] = stored["bert.embeddings.word_embeddings.weight"]
    said = published.config("bert", "masked") | {"gradient_checkpointing": False, "position_embedding_type": "absolute"}
    opened = pretrained.open_folder(folder_of(tmp_path / "bert", said, stored))
    assert opened.config.task == "pretraining"
    assert [line.partition(": ")[2] for line in opened.notes] == [
        "says BertForMaskedLM, but the tensors are of BertForPreTraining"
    ]
    untied = stored | {"cls.predictions.decoder.weight": stored["cls.predictions.decoder.weight"] * np.float32(1.001)}
    refused(folder_of(tmp_path / "untied", said, untied), "cls.predictions.decoder.weight differs from bert.embeddings")
    twice = stored | {"bert.embeddings.LayerNorm.weight": stored["bert.embeddings.LayerNorm.gamma"]}
    refused(
        folder_of(tmp_path / "twice", said, twice), "both bert.embeddings.LayerNorm.gamma and bert.embeddings.LayerNorm.weight"
    )
    lacking = {name: each for name, each in stored.items() if name != "cls.predictions.transform.LayerNorm.beta"}
    refused(folder_of(tmp_path / "lacking", said, lacking), "cls.predictions.transform.LayerNorm.bias is missing")


@pytest.mark.planted(3)
def test_roberta_as_it_was_released(tmp_path: Path) -> None:
    """With a pooler that nothing uses, all of it or none, whole numbers of positions, and the decoder's bias once more."""
    stored = dict(tiny("roberta", "masked")[1])
    stored |= {f"roberta.pooler.dense.{name}": np.ones(shape, np.float32) for name, shape in POOLER.items()}
    stored |= {"lm_head.decoder.weight": stored["roberta.embeddings.word_embeddings.weight"]}
    stored |= {"lm_head.decoder.bias": stored["lm_head.bias"], "roberta.embeddings.position_ids": np.arange(18)[None]}
    said = published.config("roberta", "masked")
    opened = pretrained.open_folder(folder_of(tmp_path / "roberta", said, stored))
    cfg = opened.config
    assert (cfg.task, cfg.context, cfg.position_offset, cfg.types, cfg.eps) == ("masked", 16, 2, 1, 1e-5)
    assert len(opened.notes) == 1
    assert "not used by RobertaForMaskedLM, its head: roberta.pooler.dense.weight, roberta.pooler.dense.bias" in opened.notes[0]
    half = {name: each for name, each in stored.items() if name != "roberta.pooler.dense.bias"}
    refused(folder_of(tmp_path / "half", said, half), "roberta.pooler.dense.bias is missing")
    nan = stored | {"roberta.pooler.dense.bias": np.full(12, np.nan, np.float32)}
    refused(folder_of(tmp_path / "nan", said, nan), "roberta.pooler.dense.bias holds NaN")
    odd = stored | {"lm_head.decoder.bias": stored["lm_head.bias"] + 1}
    refused(folder_of(tmp_path / "odd", said, odd), "lm_head.decoder.bias differs from lm_head.bias")


POOLER = {"weight": (12, 12), "bias": (12,)}


# --- config.json ----------------------------------------------------------------------------------------------------------------


def read(family: str, task: str, **keys: Any) -> Any:
    """The configuration of these keys alone."""
    said = Published(Path("config.json"), keys)
    said.task = task
    return configs.family(family).from_published(said)


def test_what_a_config_leaves_out_is_the_default_of_transformers() -> None:
    """Which for RoBERTa is none of the released models, and for DistilBERT depends on the head."""
    bert, roberta = read("bert", "masked"), read("roberta", "masked")
    assert configs.named(bert) == "bert-base-uncased"
    assert (roberta.context, roberta.types, roberta.eps) == (510, 2, 1e-12)
    base = read("roberta", "masked", max_position_embeddings=514, type_vocab_size=1, layer_norm_eps=1e-5)
    assert configs.named(base) == "roberta-base"
    distil = {task: read("distilbert", task) for task in models.family("distilbert").HF}
    assert {configs.named(cfg) for cfg in distil.values()} == {"distilbert-base-uncased"}
    rates = {task: cfg.head_dropout for task, cfg in distil.items()}
    assert (rates["sequence"], rates["choice"], rates["tokens"], rates["span"]) == (0.2, 0.2, 0.1, 0.1)
    assert read("bert", "sequence", hidden_dropout_prob=0.3).head_dropout == 0.3
    assert read("bert", "sequence", hidden_dropout_prob=0.3, classifier_dropout=0.0).head_dropout == 0.0


def test_labels_are_named_or_counted() -> None:
    assert read("bert", "tokens").labels == ("LABEL_0", "LABEL_1")
    assert read("bert", "tokens", num_labels=3).labels == ("LABEL_0", "LABEL_1", "LABEL_2")
    assert read("bert", "tokens", id2label={"1": "B-PER", "0": "O"}).labels == ("O", "B-PER")
    # What no classifier of labels has, is nobody's label.
    assert read("bert", "span", id2label={"0": "LABEL_0", "1": "LABEL_1"}).labels == ()


CONFIGS: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "a label missing": ("bert", "sequence", {"id2label": {"0": "a", "2": "b"}}, "id2label is .*each row of the classifier"),
    "a label twice": ("bert", "sequence", {"id2label": {"0": "a", "1": "a"}}, "id2label is .*a name of its own"),
    "a label of no text": ("bert", "tokens", {"id2label": {"0": 3}}, "id2label is .*a name of its own"),
    "labels in a list": ("bert", "tokens", {"id2label": ["a"]}, "id2label is .*each row of the classifier"),
    "labels without end": ("bert", "tokens", {"num_labels": 10**9}, f"num_labels is .*at most {MOST_LABELS:,}"),
    "relative positions": ("bert", "masked", {"position_embedding_type": "relative_key"}, 'computes "absolute"'),
    "a decoder": ("bert", "masked", {"is_decoder": True}, "is_decoder is true"),
    "cross attention": ("roberta", "masked", {"add_cross_attention": True}, "add_cross_attention is true"),
    "untied": ("bert", "masked", {"tie_word_embeddings": False}, "tie_word_embeddings is false"),
    "untied too": ("distilbert", "masked", {"tie_word_embeddings": False}, "tie_word_embeddings is false"),
    "sinusoids": ("distilbert", "masked", {"sinusoidal_pos_embds": True}, "sinusoidal_pos_embds is true"),
    "activation": ("bert", "masked", {"hidden_act": "swish"}, "hidden_act is .*gelu, gelu_new"),
    "no row for a token": ("roberta", "body", {"max_position_embeddings": 2}, "the first token takes row 2"),
    "quantized": ("bert", "body", {"quantization_config": {"bits": 4}}, "take the original ones"),
    "heads": ("bert", "body", {"num_attention_heads": 5}, "it must divide --model.width 768"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_a_config_that_is_not_computed_is_refused(case: str) -> None:
    family, task, keys, told = CONFIGS[case]
    with pytest.raises(BadInput, match=told) as refusal:
        read(family, task, **keys)
    assert "\n" not in str(refusal.value)


@pytest.mark.planted
def test_rows_of_a_classifier_that_no_label_names_are_refused(tmp_path: Path) -> None:
    _, stored, _ = tiny("bert", "tokens")
    said = published.config("bert", "tokens") | {"id2label": None, "num_labels": 2}
    refused(folder_of(tmp_path / "two", said, stored), "classifier.weight has shape [3, 12], not [2, 12]")


@pytest.mark.parametrize(
    ("size", "change", "told"),
    [
        ("bert-nano", {"types": 0}, "model.types 0: this config.json knows only 1 or more"),
        ("roberta-nano", {"position_offset": 1}, "--model.position-offset 1: a roberta config.json puts padding"),
        ("roberta-nano", {"task": "pretraining"}, "model.task pretraining: no roberta with this head was published"),
        ("distilbert-nano", {"eps": 1e-5}, "model.eps 1e-05: a distilbert config.json knows only 1e-12"),
        ("distilbert-nano", {"types": 2}, "model.types 2: a distilbert config.json knows only 0"),
    ],
)
def test_no_export_of_what_the_format_cannot_say(tmp_path: Path, size: str, change: dict[str, Any], told: str) -> None:
    cfg = dataclasses.replace(configs.find(size)[1].config, **change)
    with pytest.raises(BadInput, match=told):
        pretrained.save(tmp_path, cfg, {})
