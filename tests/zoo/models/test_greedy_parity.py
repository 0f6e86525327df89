"""Greedy texts of decoders as `transformers` writes them. Needs the group `parity`, --parity."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support import published
from tests.support import transformers_outputs as theirs
from tests.support.small import decode
from train.config import run_config
from train.engine import device_mesh
from zoo import models, published_weights
from zoo.batch import Batch

pytestmark = pytest.mark.parity

SHAPE = {
    **{"vocab_size": 1000, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4, "max_position_embeddings": 64},
    **{"num_attention_heads": 8, "pad_token_id": 0, "bos_token_id": None, "eos_token_id": None},
}
KINDS: dict[str, dict[str, Any]] = {
    # A window narrower than the prompts, clamped inputs, and a scaling that begins within the rows.
    "gpt_oss": {
        **{"model_type": "gpt_oss", "head_dim": 32, "intermediate_size": 256, "sliding_window": 8, "swiglu_limit": 0.5},
        **{"num_local_experts": 8, "num_experts_per_tok": 2},
        "rope_scaling": {
            **{"rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False},
            "original_max_position_embeddings": 16,
        },
    },
    "llama": {
        **{"model_type": "llama", "head_dim": 32, "rope_theta": 500_000.0},
        "rope_scaling": {
            **{"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
            "original_max_position_embeddings": 16,
        },
    },
    "qwen2": {"model_type": "qwen2", "rope_theta": 1_000_000.0, "tie_word_embeddings": True},
    "qwen3": {"model_type": "qwen3", "head_dim": 64, "rope_theta": 1_000_000.0, "tie_word_embeddings": True},
    "yarn": {
        **{"model_type": "qwen3", "head_dim": 64, "rope_theta": 1_000_000.0},
        "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
    },
    # The scaling begins within the text.
    "dynamic": {
        **{"model_type": "llama", "head_dim": 32, "max_position_embeddings": 16},
        "rope_scaling": {"rope_type": "dynamic", "factor": 4.0},
    },
    # Windows of 6 tokens, which texts outgrow.
    "ettin_decoder": {
        **{"model_type": "modernbert-decoder", "local_attention": 12},
        **{"bos_token_id": 1, "cls_token_id": 1, "sep_token_id": 1},
    },
    "nanochat": {"model_type": "nanochat"},
    "smollm3": {"model_type": "smollm3", "rope_theta": 5_000_000.0, "no_rope_layer_interval": 4},
}
LENGTHS, TOKENS = (9, 5, 12, 1), 20
ALONE = {"dynamic": LENGTHS[2:3]}
"""`transformers` scales all rows of a batch as the longest one; a row that is alone is computed as here."""


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_texts_are_those_of_transformers(kind: str, tmp_path: Path) -> None:
    """Prompts of several lengths, padded in front, decoded token by token with a cache, of grouped heads in the Llama family."""
    import torch

    family = kind if kind in ("ettin_decoder", "gpt_oss", "nanochat") else "llama"
    groups = {} if family == "ettin_decoder" else {"num_key_value_heads": 2}
    content = published.config(family, "causal", SHAPE | groups | KINDS[kind])
    published.write(tmp_path / "model", content, spread=0.08)
    cfg, params = published_weights.load_published(
        tmp_path / "model", device_mesh.make_mesh(run_config.Mesh(), jax.devices()[:1])
    )
    lengths = ALONE.get(kind, LENGTHS)
    net, width = models.model(cfg), max(lengths)
    real = np.arange(width) >= width - np.array(lengths)[:, None]
    tokens = np.where(real, np.random.default_rng(0).integers(1, cfg.vocab, real.shape), 0)
    reference = theirs.load(tmp_path / "model", content["architectures"][0])
    with torch.no_grad():
        expected = reference.generate(
            torch.tensor(tokens), attention_mask=torch.tensor(real).long(), do_sample=False, max_new_tokens=TOKENS
        ).numpy()[:, width:]

    @jax.jit
    def step(params: Any, batch: Batch, cache: Any) -> tuple[Any, Any]:
        hidden, cache = decode(net, params, batch, cache)
        return net.unembed(params, hidden[:, -1]).argmax(-1)[:, None], cache

    cache = net.init_cache(len(lengths), width + TOKENS, jnp.float32)
    at = np.maximum(np.cumsum(real, 1) - 1, 0)
    batch, written = Batch(tokens=jnp.int32(tokens), segments=jnp.int32(real), positions=jnp.int32(at)), []
    for number in range(TOKENS):
        new, cache = step(params, batch, cache)
        written.append(np.asarray(new))
        positions = jnp.int32(np.array(lengths)[:, None] + number)
        batch = Batch(tokens=jnp.int32(new), segments=jnp.ones_like(positions), positions=positions)
    np.testing.assert_array_equal(np.concatenate(written, 1), expected)
    assert all(len(set(row)) > 3 for row in expected.tolist()) and cache.k.shape[2] == getattr(cfg, "kv_heads", cfg.heads)
