"""`zoo export --gguf`: a model and its tokenizer in one file, for llama.cpp and programs that are built on it.

The names of tensors and keys, and the order of the rows of queries and keys, are those of llama.cpp's `convert_hf_to_gguf.py`;
the package `gguf` maps published names to them. The weights are not quantized: llama.cpp's `llama-quantize` does that.
"""

import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from train.exports.gguf_tokenizer import add_tokenizer
from train.weights.load import Loaded
from zoo import models, published_weights
from zoo.configs import gpt, llama
from zoo.errors import BadInput, install_advice
from zoo.models import Model
from zoo.ops import rotary_frequencies

FILE = "model.gguf"
FILE_TYPES = {"float32": "ALL_F32", "float16": "MOSTLY_F16", "bfloat16": "MOSTLY_BF16"}
DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
IN_FLOAT32 = ("position_embd.weight", "rope_freqs.weight")
"""Matrices that llama.cpp reads in float32, as it does all vectors."""
UNROTATED_EVERY = 4
"""Layers of a SmolLM3 in llama.cpp, one of which has no rotations."""


def write_model(folder: Path, loaded: Loaded, dtype: str) -> str:
    """Write a loaded model as `model.gguf` into an empty folder, and return a line about it.

    Raises:
        BadInput: the package gguf is not installed, a number is too large for float16, or llama.cpp cannot compute the model:
            see `architecture` and `add_tokenizer`.
    """
    if importlib.util.find_spec("gguf") is None:
        raise BadInput(f"--gguf: this needs the package gguf; {install_advice('export')}")
    import gguf

    name, model = architecture(loaded.model), loaded.model
    writer = gguf.GGUFWriter(folder / FILE, name)
    writer.add_name(loaded.name)
    writer.add_file_type(gguf.LlamaFileType[FILE_TYPES[dtype]])
    METADATA[model.family](writer, model.config)
    add_tokenizer(writer, loaded.tokenizer, model.config.vocab)
    kinds = gguf.GGMLQuantizationType
    for tensor, array in gguf_tensors(model, loaded.params).items():
        stays = array.ndim == 1 or tensor in IN_FLOAT32
        kind = kinds.F32 if stays else kinds[DTYPES[dtype]]
        if kind == kinds.F16 and np.abs(array).max() > np.finfo(np.float16).max:
            raise BadInput(f"--dtype float16: {tensor} has numbers above 65,504; choose bfloat16 or float32")
        writer.add_tensor(tensor, gguf.quants.quantize(array, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return f"{FILE}, a {name} of {models.parameter_count(model.config):,} parameters in {dtype}"


def architecture(model: Model) -> str:
    """Return llama.cpp's name of a model's architecture.

    Raises:
        BadInput: llama.cpp computes another model for the same numbers; the message names the option.
    """
    cfg = model.config
    if getattr(cfg, "labels", ()):
        raise BadInput("--gguf: this model has a score in place of an LM head, which llama.cpp does not compute; use --stablehlo")
    if model.family == "gpt":
        _require(cfg.activation == "gelu_tanh", "activation", cfg.activation, "only gelu_tanh")
        gpt.to_published(cfg)
        return "gpt2"
    name = llama.exported_type(cfg)
    _require(cfg.activation == "silu", "activation", cfg.activation, "only silu")
    _require(cfg.scaling != "dynamic", "scaling", cfg.scaling, "none, linear, yarn and llama3")
    _require(cfg.truncate, "truncate", cfg.truncate, "only True")
    _require(not cfg.attention_factor, "attention_factor", cfg.attention_factor, "only 0")
    rotates = cfg.unrotated_every == UNROTATED_EVERY if name == llama.SMOLLM3 else True
    _require(rotates, "unrotated_every", cfg.unrotated_every, f"only {UNROTATED_EVERY} in a {name}")
    _require(name == llama.MODEL_TYPE or not cfg.attention_bias, "attention_bias", cfg.attention_bias, f"none in a {name}")
    return name


def _require(ok: bool, field: str, value: Any, computed: str) -> None:
    if not ok:
        raise BadInput(f"--gguf: model.{field} {value}: llama.cpp computes {computed} here; use --stablehlo")


def gguf_tensors(model: Model, params: Any) -> dict[str, np.ndarray]:
    """Return the tensors of a model by their names in GGUF, float32, each [out, in] if it is a matrix."""
    import gguf

    cfg, name = model.config, architecture(model)
    table = gguf.get_tensor_name_map(getattr(gguf.MODEL_ARCH, name.upper()), cfg.layers)
    shapes, fetch = published_weights.published_tensors(cfg, params)
    tensors = {}
    for published in shapes:
        array = fetch(published)
        # GPT-2 publishes the matrices of its layers as [in, out].
        if model.names.input_first and array.ndim == 2 and ".h." in f".{published}":
            array = array.T
        heads = HEADS.get(published.split(".")[-2])
        if heads is not None and name in (llama.MODEL_TYPE, llama.SMOLLM3):
            array = in_pairs(array, getattr(cfg, heads))
        new = table.get_name(published, try_suffixes=(".weight", ".bias"))
        assert new is not None, f"gguf has no name for {published}"
        tensors[new] = np.ascontiguousarray(array)
    if getattr(cfg, "scaling", "") == "llama3":
        tensors["rope_freqs.weight"] = _llama3_factors(cfg)
    return tensors


HEADS = {"q_proj": "heads", "k_proj": "kv_heads"}
"""Projection -> the field with the number of its heads."""


def in_pairs(array: np.ndarray, heads: int) -> np.ndarray:
    """Return the rows of a projection to rotated heads in llama.cpp's order, in which the two entries of a pair are neighbours.

    Published heads rotate the first half of their entries with the second (`permute` of `convert_hf_to_gguf.py`).

    Args:
        array: [heads x head, in], or a bias [heads x head].
    """
    halves = array.reshape(heads, 2, -1, *array.shape[1:])  # [N, 2, H/2, ...]
    return halves.swapaxes(1, 2).reshape(array.shape)


def _llama3_factors(cfg: llama.Config) -> np.ndarray:
    """Return the numbers by which the frequencies of the pairs are divided, float32 [H/2]."""
    plain, _ = rotary_frequencies.plain(cfg.head, cfg.base)
    scaled, _ = rotary_frequencies.llama3(
        cfg.head,
        cfg.base,
        factor=cfg.scaling_factor,
        low_freq_factor=cfg.low_freq_factor,
        high_freq_factor=cfg.high_freq_factor,
        original_context=cfg.original_context,
    )
    return (np.asarray(plain) / np.asarray(scaled)).astype(np.float32)


def _add_sizes(writer: Any, cfg: Any) -> None:
    writer.add_vocab_size(cfg.vocab)
    writer.add_context_length(cfg.context)
    writer.add_embedding_length(cfg.width)
    writer.add_block_count(cfg.layers)
    writer.add_feed_forward_length(cfg.ffn)
    writer.add_head_count(cfg.heads)


def _add_gpt(writer: Any, cfg: gpt.Config) -> None:
    _add_sizes(writer, cfg)
    writer.add_layer_norm_eps(cfg.eps)


def _add_llama(writer: Any, cfg: llama.Config) -> None:
    import gguf

    _add_sizes(writer, cfg)
    writer.add_head_count_kv(cfg.kv_heads)
    writer.add_key_length(cfg.head)
    writer.add_value_length(cfg.head)
    writer.add_layer_norm_rms_eps(cfg.eps)
    writer.add_rope_dimension_count(cfg.head)
    writer.add_rope_freq_base(cfg.base)
    if cfg.scaling in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(cfg.scaling))
        writer.add_rope_scaling_factor(cfg.scaling_factor)
    if cfg.scaling == "yarn":
        writer.add_rope_scaling_orig_ctx_len(cfg.original_context)
        writer.add_rope_scaling_yarn_beta_fast(cfg.beta_fast)
        writer.add_rope_scaling_yarn_beta_slow(cfg.beta_slow)


METADATA: Mapping[str, Callable[[Any, Any], None]] = {"gpt": _add_gpt, "llama": _add_llama}
"""Family -> function that adds the numbers of its configuration to a writer."""
