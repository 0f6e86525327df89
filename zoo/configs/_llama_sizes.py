"""Published sizes of Llama 3.1 and 3.2, Qwen2.5, Qwen3, SmolLM2 and SmolLM3, as the fields of `zoo.configs.llama.Config`.

Sources. Llama: Llama Team 2024 (The Llama 3 Herd of Models), Table 3. Qwen2.5: Qwen Team 2024, Table 1. Qwen3: Qwen Team 2025,
Table 1. SmolLM2: Allal et al. 2025. SmolLM3: its release note (huggingface/blog, smollm3.md). What these do not state is in the
config.json of released checkpoints. Those of Qwen2.5 and Qwen3 are repeated in pytorch/torchtune, `torchtune/models/qwen2_5` and
`qwen3`, `_model_builders.py`, that of Qwen3 8B in AI-Hypercomputer/maxtext, `configs/models/qwen3-8b.yml` too.
"""

from typing import Any

Entry = tuple[dict[str, Any], str, str]
"""The fields of a configuration, the source, and a note."""

LLAMA_3_1 = "Llama Team 2024, Table 3, and the released checkpoint of Llama 3.1"
LLAMA_3_2 = "the released checkpoint of Llama 3.2 (meta-llama/llama-models, models/llama3_2)"
QWEN2_5 = "Qwen Team 2024 (Qwen2.5), Table 1, and the released checkpoint (pytorch/torchtune, models/qwen2_5)"
QWEN3 = "Qwen Team 2025 (Qwen3), Table 1, and the released checkpoint"
SMOLLM2 = "Allal et al. 2025 (SmolLM2), and the released checkpoint"
SMOLLM3 = "Hugging Face 2025 (smollm3.md), and the released checkpoint"


def llama3(layers: int, width: int, heads: int, ffn: int, *, factor: float, tied: bool = False, source: str) -> Entry:
    """Return a size of Llama 3.1 or 3.2: 128,256 tokens, eight heads of keys, rotations scaled from 8,192 positions."""
    numbers = {"vocab": 128_256, "context": 131_072, "layers": layers, "width": width, "heads": heads, "kv_heads": 8}
    rotations = {"base": 500_000.0, "scaling": "llama3", "scaling_factor": factor}
    return {**numbers, "head": width // heads, "ffn": ffn, "tied": tied, **rotations}, source, ""


def qwen2_5(layers: int, width: int, heads: int, kv_heads: int, ffn: int, *, context: int, eps: float = 1e-6) -> Entry:
    """Return a size of Qwen2.5: biases of queries, keys and values; up to 3B one table and 151,936 tokens, else 152,064."""
    tied = width <= 2048
    numbers = {"vocab": 151_936 if tied else 152_064, "context": context, "layers": layers, "width": width, "heads": heads}
    more = {"kv_heads": kv_heads, "head": width // heads, "ffn": ffn, "tied": tied, "qkv_bias": True, "eps": eps}
    fields = "--model.context" if eps == 1e-6 else "--model.context, and --model.eps 1e-6"
    note = "" if context == 32_768 else f"the fine-tuned model, -Instruct, says 32,768 positions ({fields})"
    return {**numbers, **more, "base": 1_000_000.0}, QWEN2_5, note


def qwen3(layers: int, width: int, heads: int, ffn: int, *, tied: bool) -> Entry:
    """Return a size of Qwen3: 151,936 tokens, heads of size 128, eight of them for keys, norms of queries and keys."""
    numbers = {"vocab": 151_936, "context": 40_960, "layers": layers, "width": width, "heads": heads, "kv_heads": 8, "head": 128}
    more = {"ffn": ffn, "tied": tied, "query_key_norm": True, "eps": 1e-6, "base": 1_000_000.0}
    return {**numbers, **more}, QWEN3, "the base model, before fine-tuning, says 32,768 positions (--model.context)"


def smollm2(layers: int, width: int, heads: int, kv_heads: int, ffn: int, *, base: float) -> Entry:
    """Return a size of SmolLM2: 49,152 tokens, heads of size 64, one table, 8,192 positions."""
    numbers = {"vocab": 49_152, "context": 8192, "head": 64, "tied": True, "base": base}
    return {"layers": layers, "width": width, "heads": heads, "kv_heads": kv_heads, "ffn": ffn, **numbers}, SMOLLM2, ""


def smollm3() -> Entry:
    """Return SmolLM3, of which every fourth layer has no positions."""
    numbers = {"vocab": 128_256, "context": 65_536, "layers": 36, "width": 2048, "heads": 16, "kv_heads": 4, "head": 128}
    more = {"ffn": 11_008, "tied": True, "eps": 1e-6, "base": 5_000_000.0, "unrotated_every": 4}
    note = "every fourth layer has no positions; longer rows than 65,536 tokens need YaRN (--model.scaling yarn)"
    return {**numbers, **more}, SMOLLM3, note


PUBLISHED: dict[str, Entry] = {
    "llama-3.2-1b": llama3(16, 2048, 32, 8192, factor=32.0, tied=True, source=LLAMA_3_2),
    "llama-3.2-3b": llama3(28, 3072, 24, 8192, factor=32.0, tied=True, source=LLAMA_3_2),
    "llama-3.1-8b": llama3(32, 4096, 32, 14_336, factor=8.0, source=LLAMA_3_1),
    "llama-3.1-70b": llama3(80, 8192, 64, 28_672, factor=8.0, source=LLAMA_3_1),
    "llama-3.1-405b": llama3(126, 16_384, 128, 53_248, factor=8.0, source=LLAMA_3_1),
    "qwen2.5-0.5b": qwen2_5(24, 896, 14, 2, 4864, context=32_768),
    "qwen2.5-1.5b": qwen2_5(28, 1536, 12, 2, 8960, context=131_072),
    "qwen2.5-3b": qwen2_5(36, 2048, 16, 2, 11_008, context=32_768),
    "qwen2.5-7b": qwen2_5(28, 3584, 28, 4, 18_944, context=131_072),
    "qwen2.5-14b": qwen2_5(48, 5120, 40, 8, 13_824, context=131_072, eps=1e-5),
    "qwen2.5-32b": qwen2_5(64, 5120, 40, 8, 27_648, context=131_072, eps=1e-5),
    "qwen2.5-72b": qwen2_5(80, 8192, 64, 8, 29_568, context=131_072, eps=1e-5),
    "qwen3-0.6b": qwen3(28, 1024, 16, 3072, tied=True),
    "qwen3-1.7b": qwen3(28, 2048, 16, 6144, tied=True),
    "qwen3-4b": qwen3(36, 2560, 32, 9728, tied=True),
    "qwen3-8b": qwen3(36, 4096, 32, 12_288, tied=False),
    "qwen3-14b": qwen3(40, 5120, 40, 17_408, tied=False),
    "qwen3-32b": qwen3(64, 5120, 64, 25_600, tied=False),
    "smollm2-135m": smollm2(30, 576, 9, 3, 1536, base=100_000.0),
    "smollm2-360m": smollm2(32, 960, 15, 5, 2560, base=100_000.0),
    "smollm2-1.7b": smollm2(24, 2048, 32, 32, 8192, base=130_000.0),
    "smollm3-3b": smollm3(),
}
