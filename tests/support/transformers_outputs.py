"""What `transformers` computes on torch for a published folder, as `tests.support.small.outputs` does, and what it is asked."""

import tempfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

PAIR = 0.4
"""Share of a row that is its first text, where a family tells the two apart."""
T5 = ("t5", "mt5", "umt5")
ONE_WAY = (*T5, "gpt2", "llama", "qwen2", "qwen3", "smollm3", "gpt_oss", "modernbert-decoder", "nanochat")
"""Types whose score is read at the last token of a text."""


def given(config: dict[str, Any], lengths: tuple[int, ...], task: str = "") -> dict[str, np.ndarray]:
    """A padded batch: "tokens", bool "real" and, for a family of two types, int "types", each [rows, longest]; of an
    encoder-decoder they are the decoder's, and "source" and "source_real" [rows, longer] the encoder's. XLNet's is padded in
    front and has "summary_at" [rows, 1], the last position; so has a decoder's with a score, the last real one. T5 with a score
    reads one text on both sides, as its class there, up to its end mark, id 1. The id of padding is no token's: `transformers`
    takes the positions of RoBERTa from it, and gives it no gradient."""
    rng, at, ends = np.random.Generator(np.random.PCG64(1)), np.arange(max(lengths)), np.array(lengths)[:, None]
    xlnet = config["model_type"] == "xlnet"
    if xlnet:
        at = at - (max(lengths) - ends)
    real = (at >= 0) & (at < ends)
    drawn = rng.integers(2, config["vocab_size"], real.shape)
    batch = {"tokens": np.where(real, drawn, config.get("pad_token_id", 0)).astype(np.int32), "real": real}
    if task == "sequence" and config["model_type"] in ONE_WAY:
        batch["summary_at"] = ends - 1
        if config["model_type"] in T5:
            text = np.where(at == ends - 1, 1, batch["tokens"])
            return batch | {"tokens": np.pad(text, ((0, 0), (1, 0)))[:, :-1], "source": text, "source_real": real}
        return batch
    if config["model_type"] in (*T5, "marian"):
        width = max(lengths) + 2
        there = np.arange(width) < width - np.array(lengths)[:, None] // 2
        return batch | {"source": np.where(there, rng.integers(2, config["vocab_size"], there.shape), 0), "source_real": there}
    if xlnet:
        batch["summary_at"] = np.full((len(lengths), 1), max(lengths) - 1)
    if config.get("type_vocab_size", 0) < 2 and not xlnet:
        return batch
    return batch | {"types": (real & (at >= PAIR * ends)).astype(np.int32)}


def directions(shapes: dict[str, tuple[int, ...]], real: np.ndarray) -> dict[str, np.ndarray]:
    """A random number for every output that counts; the gradients compared are those of the sum of their products."""
    drawn = {}
    for name, shape in shapes.items():
        values = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode()))).standard_normal(shape).astype(np.float32)
        drawn[name] = values if name == "sequences" else values * real[..., None]
    return drawn


def load(folder: Path, architecture: str) -> Any:
    """The model of a folder, which must have all its tensors and no others, in float32, dropout off, attention written out."""
    import transformers

    kind = getattr(transformers, architecture)
    net, told = kind.from_pretrained(folder, attn_implementation="eager", output_loading_info=True)
    assert not any(told.values()), told
    return net.eval()


def outputs(net: Any, task: str, batch: dict[str, np.ndarray]) -> dict[str, Any]:
    """Its outputs under the names and in the shapes of ours. The rows are the choices of one question, if it has any."""
    import torch

    arguments = {"input_ids": batch["tokens"], "attention_mask": batch["real"], "token_type_ids": batch.get("types")}
    if "source" in batch:
        # T5's classifier makes the decoder's input itself.
        decoder = {} if task == "sequence" else {f"decoder_{name}": x for name, x in arguments.items() if x is not None}
        arguments = {"input_ids": batch["source"], "attention_mask": batch["source_real"], **decoder}
    tensors = {name: torch.tensor(each).long() for name, each in arguments.items() if each is not None}
    said = net(**{name: each[None] if task == "choice" else each for name, each in tensors.items()})
    match task:
        case "body":
            return {"hidden": said.last_hidden_state}
        case "pretraining":
            return {"words": said.prediction_logits, "sequences": said.seq_relationship_logits[:, None]}
        case "causal" | "masked" | "permutation" | "text_to_text":
            return {"words": said.logits}
        case "choice":
            return {"sequences": said.logits.reshape(-1, 1, 1)}
        case "tokens":
            return {"tokens": said.logits}
        case "span":
            return {"tokens": torch.stack([said.start_logits, said.end_logits], -1)}
    return {"sequences": said.logits[:, None]}


def computed(net: Any, task: str, batch: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    import torch

    net.zero_grad(set_to_none=True)
    said = outputs(net, task, batch)
    along = directions({name: tuple(each.shape) for name, each in said.items()}, batch["real"])
    sum((each * torch.tensor(along[name])).sum() for name, each in said.items()).backward()
    return {name: each.detach().numpy() for name, each in said.items()}, gradients_of(net)


def assert_gradients(cfg: Any, gradients: Any, expected: dict[str, np.ndarray]) -> None:
    """Check ours, under their published names, against those of `transformers` (DESIGN, "Numbers")."""
    from safetensors.numpy import load_file

    from zoo import models, published_weights
    from zoo.hf import safetensors_dir

    with tempfile.TemporaryDirectory() as folder:
        published_weights.save_published(Path(folder), cfg, gradients)
        ours = load_file(Path(folder, safetensors_dir.SINGLE))
    # A tied tensor has one gradient there, under either name.
    names = models.model(cfg).names
    original = {leaf.path: leaf.names[0][0] for leaf in published_weights.name_table(cfg, names.prefixes[0])}
    tied = {name: original[path] for name, path in names.tied.items() if name not in ours}
    expected = {tied.get(name, name): each for name, each in expected.items()}
    # The bias of Marian's logits is a buffer there, without a gradient.
    assert ours.keys() - {"final_logits_bias"} == expected.keys()
    norm = np.sqrt(sum(float((each.astype(np.float64) ** 2).sum()) for each in expected.values()))
    for name, each in expected.items():
        assert np.linalg.norm(ours[name] - each) <= 1e-3 * np.linalg.norm(each) + 1e-5 * norm, name


def gradients_of(net: Any) -> dict[str, np.ndarray]:
    """Return the gradient of every parameter by its name; one that the outputs do not depend on has a gradient of 0."""
    return {
        name: np.zeros(tuple(each.shape), np.float32) if each.grad is None else each.grad.numpy()
        for name, each in net.named_parameters()
        # Marian's sinusoids are a table there, and never learned.
        if "embed_positions" not in name
    }
