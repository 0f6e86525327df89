"""`zoo export --onnx`: the forward pass of an encoder with its weights as one ONNX file, by jax2onnx."""

import contextlib
import importlib.util
import io
import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import export

from train.exports.model_programs import Arrays, Program, flat_params, model_programs
from train.weights import import_export
from train.weights.load import Loaded
from zoo.configs import longest_row
from zoo.errors import BadInput
from zoo.models import Model
from zoo.sharding import any_platform

FILE = "model.onnx"
ANY_LENGTH = ("bert", "distilbert", "roberta")
"""Families whose rows may have any length; jax2onnx 0.13 to 0.17 fails on symbolic lengths in the others."""
LONGEST = 512
"""Length of rows in the other families, if the model has as many positions."""
LARGEST = 2_000_000_000
"""Most bytes of weights: a file of protobuf has less than 2 GiB."""


def write_model(folder: Path, loaded: Loaded, dtype: str) -> str:
    """Write a loaded model as `model.onnx`, and its tokenizer, into an empty folder; return a line about the file.

    Raises:
        BadInput: see `onnx_model`.
    """
    model = loaded.model
    file, length = onnx_model(model, loaded.params, loaded.tokenizer.vocab_size)
    (folder / FILE).write_bytes(file)
    import_export.write_text_files(folder, loaded)
    part = "the encoder" if model.is_encoder_decoder else "the forward pass"
    return f"{FILE}, {part} of a {model.family} for rows of {length or 'any number of'} tokens, in {dtype}"


def onnx_model(model: Model, params: Any, vocabulary: int) -> tuple[bytes, int | None]:
    """Return a model as the content of an ONNX file, and the length of its rows, None for any.

    Inputs and outputs have the names, shapes and meaning of those of `forward`, or of `encoder` of an encoder-decoder; see
    `train.exports.model_programs`. The parameters are constants.

    Args:
        vocabulary: number of entries of the tokenizer.

    Raises:
        BadInput: the package jax2onnx is not installed, the weights are too large for a file, or a T5 has no encoder.
    """
    if importlib.util.find_spec("jax2onnx") is None:
        raise BadInput("--onnx: this needs the package jax2onnx; pip install jax2onnx")
    weights = {name: jnp.asarray(leaf, jnp.float32) for name, leaf in flat_params(params).items()}
    if (size := sum(array.nbytes for array in weights.values())) > LARGEST:
        raise BadInput(f"--onnx: weights of {size:,} bytes; an ONNX file has at most {LARGEST:,}: use --stablehlo")
    if model.family == "t5" and not model.is_encoder_decoder:
        raise BadInput("--onnx: model.architecture decoder has no encoder; use --stablehlo")
    programs = model_programs(model, vocabulary, weights, jnp.float32)
    program = programs["encoder" if model.is_encoder_decoder else "forward"]
    positions = longest_row(model.config)
    length = None if model.family in ANY_LENGTH else min(LONGEST, positions or LONGEST)
    return _convert(program, weights, length), length


def _convert(program: Program, weights: Arrays, length: int | None) -> bytes:
    import_errors = io.StringIO()
    # jax2onnx prints the errors of parts that it cannot import, which are for other libraries than JAX.
    with contextlib.redirect_stderr(import_errors), contextlib.redirect_stdout(import_errors), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import jax2onnx  # pyright: ignore[reportMissingImports]

        scope = export.SymbolicScope(program.limits if length is None else ())
        letters = program.letters if length is None else ["B"]
        sizes = dict.fromkeys(program.letters, length) | dict(
            zip(letters, export.symbolic_shape(", ".join(letters), scope=scope), strict=True)
        )
        (inputs,) = program.arguments(sizes)
        names, outputs = (
            list(inputs),
            sorted(jax.eval_shape(program.compute, weights, program.arguments(dict.fromkeys(sizes, 1))[0])),
        )

        def compute(*arrays: Any) -> tuple[Any, ...]:
            results = program.compute(weights, dict(zip(names, arrays, strict=True)))
            return tuple(results[name] for name in outputs)

        with any_platform():
            converted = jax2onnx.to_onnx(compute, inputs=[*inputs.values()], input_names=names, output_names=outputs)
    return converted.SerializeToString()
