"""KerasHub on its JAX backend, in its usual form: `train_on_batch` of its own model, loss and AdamW, compiled as a whole.

KerasHub reads weights in the format of `transformers` for GPT-2 and BERT's body; this module assigns the other weights.
"""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from zoo.runtime import jax_setup

os.environ["KERAS_BACKEND"] = "jax"
# The same XLA flags as ours, set before JAX starts: without the flag of `jax_setup.prepare_jax` its numbers may be wrong.
jax_setup.prepare_jax()

Inputs = dict[str, np.ndarray]


def build(folder: Path, request: Mapping[str, Any], batch: Mapping[str, np.ndarray]) -> Callable[[], float]:
    """Return a function that takes a step of a mode and returns its loss.

    Raises:
        NotImplementedError: KerasHub has no such model, or the mode is decoding.
    """
    import keras  # pyright: ignore[reportMissingImports]

    if request["family"] not in MODELS:
        raise NotImplementedError(f"KerasHub has no {request['family']} with the same predictions")
    if request["mode"] == "decode":
        raise NotImplementedError("KerasHub generates whole texts, not a token")
    if request["precision"] != "float32":
        keras.config.set_dtype_policy(f"mixed_{request['precision']}")
    model, inputs = MODELS[request["family"]](folder, batch)
    rates: Mapping[str, float] = request["optim"]
    names = {"lr": "learning_rate", "b1": "beta_1", "b2": "beta_2", "eps": "epsilon", "clip": "global_clipnorm"}
    optimizer = keras.optimizers.AdamW(**{names.get(name, name): rate for name, rate in rates.items()})
    optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta", "weight"])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=optimizer, loss=loss, weighted_metrics=[], jit_compile=True)
    targets = batch["targets"]
    call = model.train_on_batch if request["mode"] == "train" else model.test_on_batch

    def once() -> float:
        # Keras returns the mean loss of all batches since the last reset.
        model.reset_metrics()
        metrics = call(inputs, targets)
        return float(np.ravel(metrics)[0])

    return once


def _gpt(folder: Path, batch: Mapping[str, np.ndarray]) -> tuple[Any, Inputs]:
    from keras_hub import models  # pyright: ignore[reportMissingImports]

    backbone = models.GPT2Backbone.from_preset(str(folder))
    tokens = batch["tokens"]
    return models.GPT2CausalLM(backbone=backbone), {"token_ids": tokens, "padding_mask": np.ones_like(tokens)}


def _bert(folder: Path, batch: Mapping[str, np.ndarray]) -> tuple[Any, Inputs]:
    from keras_hub import models  # pyright: ignore[reportMissingImports]

    file = folder / "model.safetensors"
    tensors = load_file(file)
    width = tensors["bert.embeddings.LayerNorm.weight"].shape[0]
    # Its body always has a pooler, which masked words do not use.
    complete = folder / "keras"
    complete.mkdir(exist_ok=True)
    pooler = {
        "bert.pooler.dense.weight": np.zeros((width, width), np.float32),
        "bert.pooler.dense.bias": np.zeros(width, np.float32),
    }
    save_file(tensors | pooler, complete / file.name)
    (complete / "config.json").write_text((folder / "config.json").read_text())
    # KerasHub's converter keeps Keras' default dropout.
    rate = json.loads((folder / "config.json").read_text())["hidden_dropout_prob"]
    backbone = models.BertBackbone.from_preset(str(complete), dropout=rate)
    model = models.BertMaskedLM(backbone=backbone)
    head = model.masked_lm_head
    head._intermediate_dense.kernel.assign(tensors["cls.predictions.transform.dense.weight"].T)
    head._intermediate_dense.bias.assign(tensors["cls.predictions.transform.dense.bias"])
    head._intermediate_layer_norm.gamma.assign(tensors["cls.predictions.transform.LayerNorm.weight"])
    head._intermediate_layer_norm.beta.assign(tensors["cls.predictions.transform.LayerNorm.bias"])
    head._bias.assign(tensors["cls.predictions.bias"])
    inputs = {"token_ids": batch["tokens"], "segment_ids": batch["types"], "padding_mask": batch["segments"]}
    return model, inputs | {"mask_positions": batch["predict_at"]}


def _t5(folder: Path, batch: Mapping[str, np.ndarray]) -> tuple[Any, Inputs]:
    from keras_hub import models  # pyright: ignore[reportMissingImports]

    config, tensors = json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")
    backbone = models.T5Backbone(
        vocabulary_size=config["vocab_size"],
        num_layers=config["num_layers"],
        num_heads=config["num_heads"],
        hidden_dim=config["d_model"],
        intermediate_dim=config["d_ff"],
        key_value_dim=config["d_kv"],
        dropout=config["dropout_rate"],
        activation="relu",
        use_gated_activation=False,
        tie_embedding_weights=True,
    )
    backbone.token_embedding.embeddings.assign(tensors["shared.weight"])
    for side, layers in (("encoder", backbone.encoder_transformer_layers), ("decoder", backbone.decoder_transformer_layers)):
        getattr(backbone, f"{side}_layer_norm").weight.assign(tensors[f"{side}.final_layer_norm.weight"])
        for number, layer in enumerate(layers):
            block = f"{side}.block.{number}.layer"
            parts = [("0.SelfAttention", layer.self_attention, layer.self_attention_layer_norm)]
            if side == "decoder":
                parts.append(("1.EncDecAttention", layer.cross_attention, layer.cross_attention_layer_norm))
            for name, attention, norm in parts:
                for letter, projector in (("q", "query"), ("k", "key"), ("v", "value"), ("o", "output")):
                    getattr(attention, f"{projector}_projector").kernel.assign(tensors[f"{block}.{name}.{letter}.weight"].T)
                norm.weight.assign(tensors[f"{block}.{name[0]}.layer_norm.weight"])
            if number == 0:
                table = tensors[f"{block}.0.SelfAttention.relative_attention_bias.weight"]
                layer.self_attention.relative_attention_bias.assign(table)
            last = len(parts)
            layer.input_projector.kernel.assign(tensors[f"{block}.{last}.DenseReluDense.wi.weight"].T)
            layer.output_projector.kernel.assign(tensors[f"{block}.{last}.DenseReluDense.wo.weight"].T)
            layer.layer_norm.weight.assign(tensors[f"{block}.{last}.layer_norm.weight"])
    inputs = {"encoder_token_ids": batch["source"], "encoder_padding_mask": np.ones_like(batch["source"])}
    inputs |= {"decoder_token_ids": batch["tokens"], "decoder_padding_mask": np.ones_like(batch["tokens"])}
    return models.T5Seq2SeqLM(backbone=backbone), inputs


MODELS: dict[str, Callable[[Path, Mapping[str, np.ndarray]], tuple[Any, Inputs]]] = {"gpt": _gpt, "bert": _bert, "t5": _t5}
