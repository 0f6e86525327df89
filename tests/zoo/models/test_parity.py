"""Against the real thing: `transformers` on torch, at published shapes. Needs the group `parity`; run with --parity."""

import functools
import gc
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support import published
from tests.support import transformers_outputs as theirs
from tests.support.small import ENCODERS, as_batch, outputs
from train.config import run_config
from train.engine import device_mesh
from train.objectives.classification import Classification
from zoo import configs, models, published_weights
from zoo.batch import Batch
from zoo.configs._encoder import LABELLED
from zoo.configs.t5 import uncertain_distance
from zoo.hf import safetensors_dir
from zoo.ops import positions

pytestmark = pytest.mark.parity

LENGTHS = (48, 31)
SIZES: dict[str, dict[str, Any]] = {
    "gpt": {"model_type": "gpt2"},
    "bert": {"model_type": "bert"},
    # Not the defaults of its class, which are no released model's.
    "roberta": {"model_type": "roberta", "max_position_embeddings": 514, "type_vocab_size": 1, "layer_norm_eps": 1e-5},
    "distilbert": {"model_type": "distilbert"},
    # A window that is narrower than the rows.
    "modernbert": {"model_type": "modernbert", "pad_token_id": 0, "local_attention": 16},
    # Of the smallest decoder, with fewer words and a window of 8 tokens.
    "ettin_decoder": {
        **{"model_type": "modernbert-decoder", "vocab_size": 8192, "pad_token_id": 0, "local_attention": 16},
        **{"hidden_size": 256, "intermediate_size": 384, "num_hidden_layers": 7, "num_attention_heads": 4},
    },
    # That of Llama 3.2 1B with fewer layers; the scaling begins within the rows of the test.
    "llama": {
        **{"model_type": "llama", "vocab_size": 8192, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 4},
        **{"num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64, "rms_norm_eps": 1e-5, "rope_theta": 500_000.0},
        "rope_scaling": {
            **{"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
            "original_max_position_embeddings": 32,
        },
    },
    # Of the nano: a window narrower than the rows, and a scaling that begins within them.
    "gpt_oss": {
        **{"model_type": "gpt_oss", "vocab_size": 4096, "max_position_embeddings": 256, "num_hidden_layers": 4},
        **{"hidden_size": 192, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 32, "intermediate_size": 192},
        **{"num_local_experts": 8, "num_experts_per_tok": 2, "sliding_window": 16, "swiglu_limit": 0.1},
        "rope_scaling": {
            **{"rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False},
            "original_max_position_embeddings": 32,
        },
    },
    # That of d20 with fewer layers.
    "nanochat": {
        **{"model_type": "nanochat", "vocab_size": 8192, "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 4},
        **{"num_attention_heads": 10, "num_key_value_heads": 10},
    },
    "t5": {"model_type": "t5", "decoder_start_token_id": 0},
    # Not the defaults of its class, which are the large size's.
    "xlnet": {"model_type": "xlnet", "d_model": 768, "n_layer": 12, "n_head": 12, "d_inner": 3072},
    "transformer": {
        **{"model_type": "marian", "d_model": 512, "activation_function": "relu", "scale_embedding": True},
        **{"vocab_size": 8192, "encoder_layers": 6, "encoder_ffn_dim": 2048, "encoder_attention_heads": 8},
        **{"decoder_layers": 6, "decoder_ffn_dim": 2048, "decoder_attention_heads": 8},
        **{"pad_token_id": 0, "decoder_start_token_id": 0},
    },
}
"""config.json of the base size of each family, of T5's small one; what it leaves out is the default there and here."""
VOCABULARY = {"vocab_size": 8192}
"""Fewer than released: the tables of 100 languages and their gradients would need several GB."""
QWEN2 = {
    **{"model_type": "qwen2", "vocab_size": 8192, "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 6},
    **{"num_attention_heads": 14, "num_key_value_heads": 2, "tie_word_embeddings": True, "rope_theta": 1_000_000.0},
}
QWEN3 = {
    **{"model_type": "qwen3", "vocab_size": 8192, "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 6},
    **{"num_attention_heads": 16, "num_key_value_heads": 8, "tie_word_embeddings": True, "rope_theta": 1_000_000.0},
}
# As the documentation of Qwen2.5 scales it, from fewer positions than the rows of the test have.
QWEN2_YARN = QWEN2 | {"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}}
SMOLLM2 = {
    **{"model_type": "llama", "vocab_size": 8192, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30},
    **{"num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True, "rope_theta": 100_000},
    "rms_norm_eps": 1e-5,
}
SMOLLM3 = {
    **{"model_type": "smollm3", "vocab_size": 8192, "intermediate_size": 5504, "num_hidden_layers": 5, "pad_token_id": 0},
    "rope_theta": 5_000_000.0,
}
COUSINS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "xlm-roberta": ("roberta", "masked", {**SIZES["roberta"], **VOCABULARY, "model_type": "xlm-roberta"}),
    "mt5": ("t5", "text_to_text", {**VOCABULARY, "model_type": "mt5", "decoder_start_token_id": 0}),
    "umt5": ("t5", "text_to_text", {**VOCABULARY, "model_type": "umt5", "tie_word_embeddings": False}),
    "ul2": (
        *("t5", "text_to_text"),
        {
            **SIZES["t5"],
            **VOCABULARY,
            "feed_forward_proj": "gated-silu",
            "tie_word_embeddings": False,
            "d_kv": 128,
            "num_heads": 2,
        },
    ),
    **{"qwen2": ("llama", "causal", QWEN2), "qwen2-sequence": ("llama", "sequence", QWEN2)},
    "qwen2-yarn": ("llama", "causal", QWEN2_YARN),
    **{"qwen3": ("llama", "causal", QWEN3), "qwen3-sequence": ("llama", "sequence", QWEN3)},
    **{"smollm2": ("llama", "causal", SMOLLM2), "smollm3": ("llama", "causal", SMOLLM3)},
    "byt5": (
        *("t5", "text_to_text"),
        {
            **{**SIZES["t5"], "vocab_size": 384, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "d_ff": 1024},
            **{"num_layers": 6, "num_decoder_layers": 2, "num_heads": 6},
        },
    ),
}
"""Models that are a family's arithmetic with other numbers, under other names."""
SMALL_1_1 = {"d_ff": 1024, "num_layers": 8, "num_decoder_layers": 8, "num_heads": 6}
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    **{"-".join(head): (*head, SIZES[head[0]]) for head in published.HEADS},
    **{
        form: (family, "text_to_text", {**SIZES[family], **(SMALL_1_1 if form == "t5-1.1" else {}), **changes})
        for form, (family, changes) in published.FORMS.items()
        if changes and form != "t5-1.0"
    },
    **COUSINS,
}
"""Every head of every family, and the other forms of T5."""
FACTORS = {"t5": {".q.weight": 1 / 8, "shared.weight": 25.0}}
"""What a family begins with otherwise: T5's scores are not scaled, its queries are; and its table has a spread of 1."""


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """(task, published folder). A model is large: what the test before made is gone by now."""
    pytest.importorskip("torch")
    gc.collect()
    family, task, numbers = MODELS[request.param]
    # Twice the spread that training begins with: with much more, rounding alone moves the logits by more than the bound.
    published.write(tmp_path / family, published.config(family, task, numbers), spread=0.04, factors=FACTORS.get(family))
    yield task, tmp_path / family
    for file in tmp_path.rglob("*.safetensors"):
        file.unlink()


def test_outputs_gradients_and_exports_equal_transformers(model: tuple[str, Path], tmp_path: Path) -> None:
    """A padded batch, of pairs where the family tells them apart: all that is said of real tokens is equal within 1e-4, every
    published tensor has an equal gradient (DESIGN, "Numbers"), and an export loads there as the same model."""
    task, folder = model
    cfg, params = published_weights.load_published(folder, device_mesh.make_mesh(run_config.Mesh(), jax.devices()[:1]))
    net = models.model(cfg)
    asked = theirs.given({**SIZES[net.family], "vocab_size": cfg.vocab, **KINDS.get(net.family, {})}, LENGTHS, task)
    batch = as_batch(asked)

    @functools.partial(jax.value_and_grad, has_aux=True)
    def score(params: Any) -> tuple[Any, dict[str, Any]]:
        said = {name: each[..., : cfg.vocab] for name, each in outputs(net, params, batch).items()}
        along = theirs.directions({name: each.shape for name, each in said.items()}, asked["real"])
        return sum((each * along[name]).sum() for name, each in said.items()), said

    (_, said), gradients = jax.jit(score)(params)
    model_type, architecture = configs.exported_class(cfg, net.names.architecture)
    reference = theirs.load(folder, architecture)
    expected, wanted = theirs.computed(reference, task, asked)
    assert said.keys() == expected.keys()
    for name, each in expected.items():
        counts = np.ones(each.shape[:2], bool) if name == "sequences" else asked["real"]
        assert np.abs(np.asarray(said[name]) - each)[counts].max() < 1e-4, name
    theirs.assert_gradients(cfg, gradients, wanted)

    out = tmp_path / "out"
    out.mkdir()
    published_weights.save_published(out, cfg, params)
    again = theirs.load(out, architecture)
    assert_same(again, reference)
    # An export without a tokenizer names no padding token, by which a decoder's score finds the last token.
    again.config.pad_token_id = reference.config.pad_token_id
    said = json.loads((out / "config.json").read_text())
    assert (said["model_type"], said["architectures"]) == (model_type, [architecture])
    if task in LABELLED:
        labels = published.labels(net.family)
        assert again.config.id2label == dict(enumerate(labels))
        assert again.config.label2id == {name: row for row, name in enumerate(labels)}
    for name, each in theirs.outputs(again, task, asked).items():
        assert np.array_equal(each.detach().numpy(), expected[name])


KINDS = {"bert": {"type_vocab_size": 2}, "roberta": {"pad_token_id": 1}}


def assert_same(one: Any, other: Any) -> None:
    import torch

    state, expected = one.state_dict(), other.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], each) for name, each in expected.items())


@pytest.mark.parametrize(("family", "task"), [("gpt", "causal"), ("bert", "pretraining")])
def test_an_export_in_shards_loads_there(family: str, task: str, tmp_path: Path) -> None:
    published.write(tmp_path / family, published.config(family, task, SIZES[family]), spread=0.04)
    cfg, params = published_weights.load_published(
        tmp_path / family, device_mesh.make_mesh(run_config.Mesh(fsdp=4), jax.devices()[:4])
    )
    (tmp_path / "out").mkdir()
    published_weights.save_published(tmp_path / "out", cfg, params, largest=150_000_000)
    assert (tmp_path / "out" / safetensors_dir.INDEX).exists()
    architecture = models.model(cfg).names.architecture
    assert_same(theirs.load(tmp_path / "out", architecture), theirs.load(tmp_path / family, architecture))


@pytest.mark.parametrize(("family", "task"), published.HEADS)
def test_a_folder_saved_by_transformers_is_read(family: str, task: str, tmp_path: Path) -> None:
    """A fresh tiny model of theirs: which of two tied tensors it writes, and under which keys the numbers stand, is theirs."""
    import transformers

    # A fresh T5 1.1 of theirs has one table, not scaled, which no released file has.
    said = published.config(family, task) | ({"tie_word_embeddings": True} if family == "t5" else {})
    kind = getattr(transformers, said["architectures"][0])
    net = kind(kind.config_class(**{key: value for key, value in said.items() if key not in ("model_type", "architectures")}))
    net.save_pretrained(tmp_path)
    opened = published_weights.open_folder(tmp_path)
    assert models.model(opened.config).task == task
    assert opened.notes == ()
    cfg, params = published_weights.load_published(tmp_path, device_mesh.make_mesh(run_config.Mesh(), jax.devices()[:1]))
    (tmp_path / "out").mkdir()
    published_weights.save_published(tmp_path / "out", cfg, params)
    assert_same(theirs.load(tmp_path / "out", said["architectures"][0]), net)


@pytest.mark.parametrize(
    ("architecture", "numbers"),
    [
        *((f"XLMRoberta{head}", published.XLM) for head in ("Model", "ForMaskedLM", "ForMultipleChoice", "ForQuestionAnswering")),
        ("MT5ForConditionalGeneration", published.MT5),
        ("UMT5ForConditionalGeneration", published.UMT5 | {"tie_word_embeddings": True}),
        ("T5ForConditionalGeneration", published.UL2 | {"tie_word_embeddings": True}),
    ],
)
def test_a_cousin_saved_by_transformers_is_read(architecture: str, numbers: dict[str, Any], tmp_path: Path) -> None:
    """A fresh mT5 of theirs has one table, which no released file has: it is given two."""
    import torch
    import transformers

    kind = getattr(transformers, architecture)
    net = kind(kind.config_class(**{key: value for key, value in numbers.items() if key != "model_type"}))
    if architecture.startswith("MT5"):
        net.lm_head.weight = torch.nn.Parameter(net.lm_head.weight.detach() + 1)
    net.save_pretrained(tmp_path)
    opened = published_weights.open_folder(tmp_path)
    assert opened.notes == ()
    cfg, params = published_weights.load_published(tmp_path, device_mesh.make_mesh(run_config.Mesh(), jax.devices()[:1]))
    (tmp_path / "out").mkdir()
    published_weights.save_published(tmp_path / "out", cfg, params)
    assert configs.exported_class(cfg, models.model(cfg).names.architecture)[1] == architecture
    assert_same(theirs.load(tmp_path / "out", architecture), net)


@pytest.mark.parametrize("family", ENCODERS)
def test_logits_and_loss_of_several_labels(family: str, tmp_path: Path) -> None:
    import torch

    content = published.config(family, "sequence") | {"problem_type": "multi_label_classification"}
    published.write(tmp_path / family, content)
    cfg, params = published_weights.load_published(tmp_path / family, device_mesh.make_mesh(run_config.Mesh(), jax.devices()[:1]))
    net, labels = models.model(cfg), np.array([[1, 0, 1], [0, 0, 0], [0, 1, 0]])
    tokens = np.random.default_rng(0).integers(2, cfg.vocab, (3, 9))
    expected = theirs.load(tmp_path / family, net.names.architecture)(torch.tensor(tokens), labels=torch.tensor(labels).float())
    last = jnp.full((3, 1), 8) if family == "xlnet" else None
    batch = Batch(tokens=jnp.asarray(tokens), labels=jnp.asarray(labels), weights=jnp.ones((3, 1)), summary_at=last)
    terms, _ = Classification().loss(net, params, batch, {}, seeds=None, carry={}, smoothing=0.0, chunk=0)
    assert abs(float(terms["classification"]) / 3 - expected.loss.item()) < 1e-4
    assert np.abs(outputs(net, params, batch)["sequences"][:, 0] - expected.logits.detach().numpy()).max() < 1e-4


def test_every_grid_of_buckets() -> None:
    """T5's bucket of each distance is the same, unless the grid is refused: fewer than 2 % are."""
    import torch
    from transformers.models.t5.modeling_t5 import T5Attention

    grids = [(buckets, farthest) for buckets in range(4, 129) for farthest in range(buckets // 2 + 1, 200)]
    more = np.random.default_rng(0).integers((4, 1), (600, 2000), (500, 2)).tolist()
    grids += [(buckets, buckets // 2 + room) for buckets, room in more]
    refused, different = 0, []
    for buckets, farthest in grids:
        if uncertain_distance(buckets, farthest) is not None:
            refused += 1
            continue
        distances = np.arange(farthest + 40)
        for side in (buckets // 2, buckets):
            expected = T5Attention._relative_position_bucket(-torch.tensor(distances), False, side, farthest).numpy()
            starts = positions._bucket_starts(side, farthest)
            if not np.array_equal(np.searchsorted(starts, distances, side="right"), expected):
                different.append((buckets, farthest))
    assert different == [] and refused < 0.02 * len(grids) and len(grids) > 17_000
