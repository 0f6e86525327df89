"""Published folders for tests: weights that anybody can compute again from their names, in files of one tensor each."""

import dataclasses
import json
import zlib
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from zoo import configs, models, published_weights
from zoo.configs._encoder import LABELLED
from zoo.errors import BadInput
from zoo.hf import safetensors_dir

GPT2 = dict(model_type="gpt2", vocab_size=61, n_positions=16, n_layer=2, n_embd=12, n_head=3, n_inner=20)
"""A config.json of sizes that are no multiple of anything, so that no wrong order of axes fits."""
BERT = {
    **{"model_type": "bert", "vocab_size": 61, "max_position_embeddings": 16, "num_hidden_layers": 2, "hidden_size": 12},
    **{"num_attention_heads": 3, "intermediate_size": 20, "type_vocab_size": 2},
}
ROBERTA = BERT | dict(model_type="roberta", max_position_embeddings=18, type_vocab_size=1, layer_norm_eps=1e-5, pad_token_id=1)
DISTILBERT = {
    **{"model_type": "distilbert", "vocab_size": 61, "max_position_embeddings": 16},
    **{"n_layers": 2, "dim": 12, "n_heads": 3, "hidden_dim": 20},
}
T5 = {
    **{"model_type": "t5", "vocab_size": 61, "d_model": 12, "d_kv": 5, "d_ff": 20, "num_layers": 2, "num_decoder_layers": 3},
    **{"num_heads": 3, "relative_attention_num_buckets": 8, "relative_attention_max_distance": 6},
    **{"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "decoder_start_token_id": 0},
}
MARIAN = {
    **{"model_type": "marian", "vocab_size": 61, "d_model": 12, "encoder_layers": 2, "decoder_layers": 2},
    **{"encoder_attention_heads": 3, "decoder_attention_heads": 3, "encoder_ffn_dim": 20, "decoder_ffn_dim": 20},
    **{"activation_function": "relu", "scale_embedding": True, "max_position_embeddings": 1024},
    **{"pad_token_id": 0, "decoder_start_token_id": 0},
}
XLM = ROBERTA | {"model_type": "xlm-roberta"}
MT5, UMT5, UL2 = (
    T5 | changes for changes in ({"model_type": "mt5"}, {"model_type": "umt5"}, {"feed_forward_proj": "gated-silu"})
)
"""Families under other names, or with other numbers, than in `TINY`."""
XLNET = dict(model_type="xlnet", vocab_size=61, n_layer=2, d_model=12, n_head=3, d_inner=20)
MODERNBERT = {
    **{"model_type": "modernbert", "vocab_size": 61, "max_position_embeddings": 16, "num_hidden_layers": 4, "hidden_size": 12},
    **{"num_attention_heads": 3, "intermediate_size": 20, "local_attention": 4, "global_rope_theta": 160.0, "pad_token_id": 0},
    **{"local_rope_theta": 10.0, "global_attn_every_n_layers": 3},
}
ETTIN_DECODER = MODERNBERT | {"model_type": "modernbert-decoder", "local_attention": 6}
LLAMA = {
    **{"model_type": "llama", "vocab_size": 61, "max_position_embeddings": 16, "num_hidden_layers": 2, "hidden_size": 12},
    **{"num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 4, "intermediate_size": 20, "rope_theta": 10.0},
    "rope_scaling": {
        **{"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 2.0},
        "original_max_position_embeddings": 8,
    },
}
QWEN2 = {
    **{key: value for key, value in LLAMA.items() if key != "head_dim"},
    **{"model_type": "qwen2", "rope_scaling": None, "use_sliding_window": False, "sliding_window": 8},
}
QWEN3 = LLAMA | {
    **{"model_type": "qwen3", "num_attention_heads": 5, "num_key_value_heads": 5, "tie_word_embeddings": True},
    "rope_scaling": None,
}
SMOLLM3 = {
    **{key: value for key, value in LLAMA.items() if key != "head_dim"},
    **{"model_type": "smollm3", "num_hidden_layers": 3, "no_rope_layer_interval": 2, "attention_bias": True, "pad_token_id": 0},
    "rope_scaling": {"rope_type": "linear", "factor": 3.0},
}
GPT_OSS = {
    **{"model_type": "gpt_oss", "vocab_size": 61, "max_position_embeddings": 16, "num_hidden_layers": 2, "hidden_size": 12},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4, "intermediate_size": 8, "sliding_window": 4},
    **{"num_local_experts": 3, "num_experts_per_tok": 2, "swiglu_limit": 0.5, "rope_theta": 10.0},
    "rope_scaling": {
        **{"rope_type": "yarn", "factor": 4.0, "beta_fast": 4.0, "beta_slow": 0.5, "truncate": False},
        "original_max_position_embeddings": 8,
    },
}
NANOCHAT = {
    **{"model_type": "nanochat", "vocab_size": 61, "max_position_embeddings": 16, "num_hidden_layers": 2, "hidden_size": 24},
    **{"num_attention_heads": 6, "num_key_value_heads": 2, "intermediate_size": 20, "final_logit_softcapping": 2.0},
    "rope_parameters": {"rope_type": "default", "rope_theta": 10.0},
}
TYPES_OF_LLAMA = {"qwen2": QWEN2, "qwen3": QWEN3, "smollm3": SMOLLM3}
TINY: dict[str, dict[str, Any]] = {
    **{"bert": BERT, "distilbert": DISTILBERT, "gpt": GPT2, "roberta": ROBERTA, "t5": T5, "transformer": MARIAN, "xlnet": XLNET},
    **{"ettin_decoder": ETTIN_DECODER, "gpt_oss": GPT_OSS, "llama": LLAMA, "modernbert": MODERNBERT},
    "nanochat": NANOCHAT,
}
FORMS: dict[str, tuple[str, dict[str, Any]]] = {
    "t5-1.0": ("t5", {"feed_forward_proj": "relu", "tie_word_embeddings": True}),
    "t5-1.1": ("t5", {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
    "t5-gated-tied": ("t5", {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": True}),
    "t5-plain-untied": ("t5", {"feed_forward_proj": "gelu_new", "tie_word_embeddings": False}),
    "marian": ("transformer", {}),
}
"""Encoder-decoders as `transformers` has them: a family, and what its config.json says."""

HEADS = [
    (family, task) for family in models.families() for task, names in models.family(family).names.items() if names.architecture
]
SEVERAL_FORMS = {*((family, "text_to_text") for family, _ in FORMS.values()), ("t5", "sequence")}
ENCODERS = [(family, task) for family, task in HEADS if hasattr(configs.family(family).Config, "task")]
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    **{f"{family}-{task}": (family, task, TINY[family]) for family, task in HEADS if (family, task) not in SEVERAL_FORMS},
    **{form: (family, "text_to_text", TINY[family] | changes) for form, (family, changes) in FORMS.items()},
    **{f"{form}-sequence": ("t5", "sequence", T5 | FORMS[form][1]) for form in ("t5-1.0", "t5-1.1")},
    **{f"llama-{model_type}": ("llama", "causal", numbers) for model_type, numbers in TYPES_OF_LLAMA.items()},
}
FIRST = {family: name for name, (family, *_) in reversed(MODELS.items())}
every_model = pytest.mark.parametrize(
    "model", [pytest.param(name, marks=[] if name in FIRST.values() else [pytest.mark.full]) for name in MODELS]
)
"""Run a test for every model; for those that are not the first of their family, in the full tier."""
LABELS = ("no", "perhaps", "yes")


def config(family: str, task: str, numbers: dict[str, Any] | None = None) -> dict[str, Any]:
    """The config.json of a model: `numbers` (the tiny ones), its architecture, and what its labels are called."""
    numbers, classes = numbers or TINY[family], configs.model_classes(configs.family(family))
    architecture = models.family(family).names[task].architecture.removeprefix(next(iter(classes.values())))
    said = {**numbers, "architectures": [classes[numbers["model_type"]] + architecture]}
    if task not in LABELLED:
        return said
    names = dict(enumerate(labels(family)))
    # `transformers` finds a decoder's last token by comparison with this id.
    said |= {"pad_token_id": 0} if family in ("ettin_decoder", "gpt", "gpt_oss", "llama") else {}
    return said | {"id2label": {str(row): name for row, name in names.items()}, "label2id": {n: row for row, n in names.items()}}


def labels(family: str) -> tuple[str, ...]:
    """The labels of a family's classifiers; a decoder has one, a score."""
    return LABELS if hasattr(configs.family(family).Config, "task") else LABELS[:1]


def weights(shapes: dict[str, tuple[int, ...]], spread: float = 0.2) -> dict[str, np.ndarray]:
    """Tensors drawn from generators that are seeded by their names, of standard deviation `spread`; scales of norms around 1."""
    drawn = {}
    for name, shape in shapes.items():
        values = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode()))).standard_normal(shape)
        drawn[name] = (1 + 0.1 * values if is_scale(name) else spread * values).astype(np.float32)
    return drawn


def is_scale(name: str) -> bool:
    return name.endswith("weight") and any(mark in name for mark in (".ln_", "LayerNorm", "norm.weight"))


def shapes_of(folder: Path) -> dict[str, tuple[int, ...]]:
    cfg, _ = published_weights.read_config(folder)
    return {name: shape for name, shape, *_ in published_weights.explain_import(cfg)}


def write(
    folder: Path, config: dict[str, Any], *, sharded: bool = False, spread: float = 0.2, factors: dict[str, float] | None = None
) -> dict[str, np.ndarray]:
    """Make a published folder, sharded into files of one tensor each or whole; `factors` are of spreads, by ends of names."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    drawn = weights(shapes_of(folder), spread)
    for end, factor in (factors or {}).items():
        drawn |= {name: np.float32(factor) * each for name, each in drawn.items() if name.endswith(end)}
    if not sharded:
        save_file(drawn, folder / safetensors_dir.SINGLE)
        return drawn
    for number, (name, tensor) in enumerate(drawn.items()):
        save_file({name: tensor}, folder / file(number))
    write_index(folder, {name: file(number) for number, name in enumerate(drawn)})
    return drawn


def write_mxfp4(folder: Path, config: dict[str, Any]) -> dict[str, np.ndarray]:
    """Make a folder of gpt-oss as released, and return its tensors: bfloat16, and MXFP4 for the kernels of the experts."""
    drawn = write(folder, config)
    stored: dict[str, np.ndarray] = {}
    rng = np.random.default_rng(0)
    for name, tensor in drawn.items():
        if name.endswith(("gate_up_proj", "down_proj")):
            experts, width, rows = tensor.shape
            stored[f"{name}_blocks"] = rng.integers(0, 256, (experts, rows, width // 32, 16), np.uint8)
            stored[f"{name}_scales"] = rng.integers(120, 126, (experts, rows, width // 32), np.uint8)
        else:
            stored[name] = tensor.astype(ml_dtypes.bfloat16)
    save_file(stored, folder / safetensors_dir.SINGLE)
    return stored


def write_model(folder: Path, model: str) -> dict[str, np.ndarray]:
    family, task, numbers = MODELS[model]
    return write(folder, config(family, task, numbers))


def write_files(folder: Path, content: dict[str, Any], stored: dict[str, np.ndarray]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(content))
    save_file(stored, folder / safetensors_dir.SINGLE)
    return folder


def assert_refused(folder: Path, *parts: str) -> None:
    with pytest.raises(BadInput) as refusal:
        published_weights.open_folder(folder)
    message = str(refusal.value)
    assert all(part in message for part in parts) and "\n" not in message, message


def file(number: int) -> str:
    return f"model-{number:05d}.safetensors"


@dataclasses.dataclass(frozen=True)
class Held(safetensors_dir.Tensor):
    array: np.ndarray

    def view(self) -> np.ndarray:
        return self.array


def held(array: np.ndarray) -> Held:
    kinds = {np.dtype(dtype): name for name, dtype in safetensors_dir.DTYPES.items()}
    return Held(Path(), 0, array.shape, kinds[array.dtype], array)


def write_index(folder: Path, files: dict[str, str]) -> None:
    (folder / safetensors_dir.INDEX).write_text(json.dumps({"metadata": {}, "weight_map": files}))


def nano(family: str) -> dict[str, Any]:
    size = configs.find_size(f"{family.replace('_', '-')}-nano")[1]
    numbers = configs.family(family)
    return {"model_type": numbers.MODEL_TYPE, **numbers.to_published(size.config)}
