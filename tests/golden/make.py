"""Make the frozen vectors again: `python -m tests.golden.make`, with torch, transformers and peft of the group `parity`.

Each file has what `transformers` computes for the weights of `tests.support.published`. GPT-2's: logits of a padded batch and the
gradient of the summed cross-entropy of its real tokens. An encoder's, for each of its heads, and the encoder-decoders', for each
of their forms: what it says of a padded batch, and the gradient of a weighted sum of that. Outputs are kept whole, of each
gradient its norm and its product with a fixed vector.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from tests.support import generation_settings, published
from tests.support import transformers_outputs as theirs

FOLDER = Path(__file__).parent
LENGTHS = (7, 4)
"""Real tokens of the rows; the rest, on the right, is padding."""


def batch(vocabulary: int) -> tuple[np.ndarray, np.ndarray]:
    """(token ids, which of them are real) of a padded batch, each [rows, longest]."""
    ids = np.random.Generator(np.random.PCG64(1)).integers(0, vocabulary, (len(LENGTHS), max(LENGTHS)))
    real = np.arange(max(LENGTHS)) < np.array(LENGTHS)[:, None]
    return np.where(real, ids, 0).astype(np.int32), real


def probe(name: str, gradient: np.ndarray) -> list[float]:
    """[norm, dot product with a vector drawn from the name]: any wrong order of axes changes the second."""
    direction = published.weights({name: gradient.shape})[name] - published.is_scale(name)
    return [float(np.linalg.norm(gradient.astype(np.float64))), float((gradient.astype(np.float64) * direction).sum())]


def gpt2() -> dict:
    import torch
    import transformers

    with tempfile.TemporaryDirectory() as made:
        folder = Path(made, "gpt2")
        published.write(folder, published.GPT2)
        net = transformers.GPT2LMHeadModel.from_pretrained(folder, attn_implementation="eager").eval()
    ids, real = batch(net.config.vocab_size)
    tokens, mask = torch.tensor(ids).long(), torch.tensor(real)
    logits = net(tokens, attention_mask=mask.long()).logits
    labels = torch.where(mask, tokens, -100)[:, 1:]
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="sum")
    loss.backward()
    gradients = {name: probe(name, parameter.grad.numpy()) for name, parameter in net.named_parameters()}
    return {
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "logits": np.round(logits.detach().numpy().astype(np.float64), 7).tolist(),
        "loss": loss.item(),
        "gradients": gradients,
    }


def encoder(family: str) -> dict[str, Any]:
    """By task."""
    tasks = [task for other, task in published.ENCODERS if other == family]
    return versions() | {task: of_model(family, task, published.config(family, task)) for task in tasks}


def encoder_decoders() -> dict[str, Any]:
    """By form."""
    forms = {form: published.MODELS[form] for form in published.FORMS}
    return versions() | {
        form: of_model(family, task, published.config(family, task, numbers)) for form, (family, task, numbers) in forms.items()
    }


def scores() -> dict[str, Any]:
    """By model: the scores of a decoder and of both forms of T5."""
    several = {name: model for name, model in published.MODELS.items() if model[0] in ("gpt", "t5") and model[1] == "sequence"}
    return versions() | {
        name: of_model(family, task, published.config(family, task, numbers)) for name, (family, task, numbers) in several.items()
    }


def logits_processors() -> dict[str, Any]:
    """By kind of model and case: the probabilities after each number of new tokens."""
    content: dict[str, Any] = versions()
    for kind in ("gpt2", "t5"):
        with tempfile.TemporaryDirectory() as parent:
            published.write_model(Path(parent, "m"), {"gpt2": "gpt-causal", "t5": "t5-1.1"}[kind])
            architecture = {"gpt2": "GPT2LMHeadModel", "t5": "T5ForConditionalGeneration"}[kind]
            net = theirs.load(Path(parent, "m"), architecture)
        content[kind] = {
            case: [_case_probabilities(net, settings, size, pairs=kind == "t5") for size in generation_settings.AFTER]
            for case, settings in generation_settings.CASES.items()
        }
    return content


def _case_probabilities(net: Any, settings: dict[str, Any], size: int, *, pairs: bool) -> list[list[float]]:
    arguments = generation_settings.case_arguments(size, pairs=pairs)
    special = {"pad_token_id": 1, "decoder_start_token_id": generation_settings.FIRST}
    expected = generation_settings.expected_probabilities(net, special | settings, *arguments)
    return [[float(f"{x:.7g}") for x in row] for row in expected.tolist()]


def decoder(decoder_family: str) -> dict[str, Any]:
    """By head, and by the other types of config.json."""
    several = {name: model for name, model in published.MODELS.items() if model[0] == decoder_family}
    return versions() | {
        name.removeprefix(f"{decoder_family}-"): of_model(family, task, published.config(family, task, numbers))
        for name, (family, task, numbers) in several.items()
    }


ROTATED = {
    **{"model_type": "llama", "vocab_size": 61, "max_position_embeddings": 64, "num_hidden_layers": 1, "hidden_size": 12},
    **{"num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 20},
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
ROTATIONS: dict[str, dict[str, Any]] = {
    "yarn, as in old files": {"rope_theta": 1e6, "rope_scaling": {"type": "yarn", "factor": 4.0}},
    "yarn, as in new files": {"rope_parameters": {**YARN, "rope_theta": 1e4, "beta_fast": None, "beta_slow": 0.05}},
    "yarn, not truncated": {"rope_parameters": {**YARN, "rope_theta": 500.0, "truncate": False, "beta_fast": 2}},
    "yarn, another attention factor": {"rope_scaling": {**YARN, "attention_factor": 0.7}},
    "yarn, two scales": {"rope_scaling": {**YARN, "mscale": 0.707, "mscale_all_dim": 1.0}},
    "yarn, one scale": {"rope_scaling": {**YARN, "mscale": 0.707, "attention_factor": None}},
    "yarn of few positions": {"rope_scaling": {**YARN, "original_max_position_embeddings": 5}},
    "dynamic": {"rope_theta": 1e6, "rope_scaling": {"type": "dynamic", "factor": 3.0}},
    "linear": {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e5, "factor": 2.5}},
    "llama3": {
        "rope_scaling": {
            **{"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
            "original_max_position_embeddings": 32,
        }
    },
}
"""Keys of a config.json of type llama, in both forms, by case."""
ROTATED_LENGTHS = (64, 65, 100, 192)
"""Lengths of rows; only dynamic scaling depends on them, from 65 tokens on."""
DYNAMIC = published.LLAMA | {"max_position_embeddings": 8, "rope_scaling": {"rope_type": "dynamic", "factor": 3.0}}
PROMPT, GENERATED = 6, 6
"""Tokens of the prompt of a dynamic model, and tokens that follow one by one: the scaling begins with the third of them."""


def rotations() -> dict[str, Any]:
    """Frequencies of each case, and logits of a model with dynamic scaling, token by token with a cache and without it."""
    import torch
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    frequencies: dict[str, Any] = {}
    for name, keys in ROTATIONS.items():
        embedding = LlamaRotaryEmbedding(LlamaConfig(**json.loads(json.dumps(ROTATED | keys))))
        by_length = {}
        for length in ROTATED_LENGTHS if name == "dynamic" else ROTATED_LENGTHS[:1]:
            embedding(torch.zeros(1), torch.arange(length)[None])
            by_length[length] = [float(f"{x:.8g}") for x in embedding.inv_freq.tolist()]
        frequencies[name] = {"inverse": by_length, "factor": embedding.attention_scaling}
    with tempfile.TemporaryDirectory() as parent, torch.no_grad():
        published.write(Path(parent, "m"), published.config("llama", "causal", DYNAMIC))
        net = theirs.load(Path(parent, "m"), "LlamaForCausalLM")
        tokens = torch.tensor(dynamic_tokens()).long()
        complete = net(tokens, use_cache=False).logits[0]
        alone = net(tokens[:, :PROMPT], use_cache=False).logits[0]
        out = net(tokens[:, :PROMPT], use_cache=True)
        steps = [out.logits[0, -1]]
        for at in range(PROMPT, PROMPT + GENERATED):
            out = net(tokens[:, at : at + 1], past_key_values=out.past_key_values, use_cache=True)
            steps.append(out.logits[0, -1])
    logits = {"complete": complete, "prompt": alone, "generated": torch.stack(steps)}
    rounded = {name: [[round(x, 6) for x in row] for row in rows.tolist()] for name, rows in logits.items()}
    return versions() | {"frequencies": frequencies, "logits": rounded}


def dynamic_tokens() -> np.ndarray:
    return np.random.Generator(np.random.PCG64(2)).integers(0, DYNAMIC["vocab_size"], (1, PROMPT + GENERATED)).astype(np.int32)


def of_model(family: str, task: str, config: dict[str, Any]) -> dict[str, Any]:
    """The outputs that count, in a list, and the probe of each gradient."""
    with tempfile.TemporaryDirectory() as parent:
        published.write(Path(parent, "m"), config)
        net = theirs.load(Path(parent, "m"), config["architectures"][0])
    asked = theirs.given(config, LENGTHS, task)
    said, gradients = theirs.computed(net, task, asked)
    return {
        "outputs": {name: [round(float(x), 6) for x in counted(name, each, asked)] for name, each in said.items()},
        "gradients": {name: [float(f"{x:.6g}") for x in probe(name, each)] for name, each in gradients.items()},
    }


def adapters() -> dict[str, Any]:
    """By model: adapter_config.json of peft, the shape of each tensor, and the outputs that count."""
    import peft

    from tests.support import peft_outputs

    content: dict[str, Any] = versions() | {"peft": peft.__version__}
    for model in peft_outputs.MODELS:
        with tempfile.TemporaryDirectory() as parent:
            published.write_model(Path(parent, "m"), model)
            net = peft_outputs.adapted(Path(parent, "m"), model)
            net.save_pretrained(Path(parent, "a"))
            config = json.loads(Path(parent, "a", "adapter_config.json").read_text())
            stored = load_file(Path(parent, "a", "adapter_model.safetensors"))
        asked = theirs.given(published.MODELS[model][2], LENGTHS, published.MODELS[model][1])
        outputs = peft_outputs.outputs(net, model, asked)
        content[model] = {
            "config": config | {"base_model_name_or_path": "m", "target_modules": sorted(config["target_modules"])},
            "shapes": {name: list(tensor.shape) for name, tensor in sorted(stored.items())},
            "outputs": {name: [round(float(x), 6) for x in counted(name, array, asked)] for name, array in outputs.items()},
        }
    return content


def versions() -> dict[str, str]:
    import torch
    import transformers

    return {"transformers": transformers.__version__, "torch": torch.__version__}


def counted(name: str, said: np.ndarray, asked: dict[str, np.ndarray]) -> np.ndarray:
    """What is said of sequences, or of the real tokens, flat."""
    return (said if name == "sequences" else said[asked["real"]]).ravel()


if __name__ == "__main__":
    (FOLDER / "gpt2.json").write_text(json.dumps(gpt2()) + "\n")
    for name in dict(published.ENCODERS):
        (FOLDER / f"{name}.json").write_text(json.dumps(encoder(name), separators=(",", ":")) + "\n")
    (FOLDER / "adapters.json").write_text(json.dumps(adapters(), separators=(",", ":")) + "\n")
    (FOLDER / "encoder_decoders.json").write_text(json.dumps(encoder_decoders(), separators=(",", ":")) + "\n")
    (FOLDER / "logits_processors.json").write_text(json.dumps(logits_processors(), separators=(",", ":")) + "\n")
    for name in ("ettin_decoder", "llama", "gpt_oss", "nanochat"):
        (FOLDER / f"{name}.json").write_text(json.dumps(decoder(name), separators=(",", ":")) + "\n")
    (FOLDER / "rotations.json").write_text(json.dumps(rotations(), separators=(",", ":")) + "\n")
    (FOLDER / "scores.json").write_text(json.dumps(scores(), separators=(",", ":")) + "\n")
