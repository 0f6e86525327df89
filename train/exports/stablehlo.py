"""`zoo export --stablehlo`: the programs of a model, which run in a process that has JAX but not the zoo.

The programs are artifacts of `jax.export`, StableHLO with shapes that have symbols, for CPU, CUDA and TPU at once. They take the
parameters as arguments, by name as in the file of weights, so that the same programs serve other weights of the same shapes.
"""

import importlib.metadata
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import export

from train.exports.model_programs import Arrays, Program, flat_params, model_programs
from train.weights import import_export
from train.weights.load import Loaded
from zoo import models
from zoo.errors import BadInput, install_advice, require
from zoo.hf.safetensors_dir import write_tensors
from zoo.models import Model
from zoo.precision import DTYPES
from zoo.runtime.jax_setup import SAFE_FLAG, SAFE_VALUE
from zoo.sharding import any_platform

PLATFORMS = ("cpu", "cuda", "tpu")
WEIGHTS, MANIFEST, SUFFIX = "weights", "manifest.json", ".jax_export"
COMPATIBILITY = (
    "jax.export: these programs run with a jaxlib that was built up to 6 months after, or up to 3 weeks before, the one that "
    "wrote them (https://docs.jax.dev/en/latest/export/export.html#compatibility-guarantees)"
)
ABOUT = {
    "forward": "(weights, inputs) -> outputs of rows of tokens; segments: 1 for tokens, 0 for padding on the right",
    "encoder": "(weights, inputs) -> hidden states of a source",
    "prefill": "(weights, inputs, cache) -> logits of the next token, and the cache with the rows, which are padded on the left; "
    "the cache is all zeros before",
    "step": "(weights, inputs, cache) -> logits of the next token, and the cache with one more token of each row",
}
"""Program -> its arguments and results, for the manifest."""


def export_program(program: Program, shapes: Arrays) -> export.Exported:
    """Return a program, traced for all of `PLATFORMS` with a symbol for each of its letters.

    Args:
        shapes: of the parameters, by path.
    """
    letters = program.letters
    scope = export.SymbolicScope(program.limits)
    sizes = dict(zip(letters, export.symbolic_shape(", ".join(letters), scope=scope), strict=True))
    with any_platform():
        return export.export(jax.jit(program.compute), platforms=PLATFORMS)(shapes, *program.arguments(sizes))


def write_model(folder: Path, loaded: Loaded, dtype: str) -> str:
    """Write the programs of a loaded model and its tokenizer into an empty folder, and return a line about them.

    Raises:
        BadInput: see `write_programs`.
    """
    manifest = write_programs(folder, loaded.model, loaded.params, loaded.tokenizer.vocab_size, dtype)
    import_export.write_text_files(folder, loaded)
    return f"programs {', '.join(manifest['programs'])} for {', '.join(PLATFORMS)}, in {dtype}"


def write_programs(folder: Path, model: Model, params: Any, vocabulary: int, dtype: str) -> dict[str, Any]:
    """Write the programs of a model, its parameters and the manifest into a folder, and return the manifest.

    Args:
        vocabulary: number of entries of the tokenizer.
        dtype: float32 or bfloat16, of the parameters and the arithmetic.

    Raises:
        BadInput: another dtype, or the package flatbuffers, which `jax.export` needs, is not installed.
    """
    require(dtype in DTYPES, "dtype", dtype, f"programs compute in {' or '.join(DTYPES)}; choose one of them")
    if importlib.util.find_spec("flatbuffers") is None:
        raise BadInput(f"--stablehlo: jax.export needs the package flatbuffers; {install_advice('export')}")
    weights = flat_params(params)
    shapes = {name: jax.ShapeDtypeStruct(leaf.shape, DTYPES[dtype]) for name, leaf in weights.items()}
    programs, versions = {}, set()
    for name, program in model_programs(model, vocabulary, shapes, DTYPES[dtype]).items():
        exported = export_program(program, shapes)
        versions.add(exported.calling_convention_version)
        (folder / f"{name}{SUFFIX}").write_bytes(exported.serialize())
        programs[name] = {"file": f"{name}{SUFFIX}", "about": ABOUT[name], **_signature(exported, program)}
    write_tensors(
        folder,
        {name: leaf.shape for name, leaf in weights.items()},
        lambda name: np.asarray(jax.device_get(weights[name])).astype(DTYPES[dtype]),
        name=WEIGHTS,
        dtype=DTYPES[dtype],
        largest=sys.maxsize,
    )
    manifest = {
        "format": 1,
        "model": {"family": model.family, "task": model.task, "parameters": models.parameter_count(model.config)},
        "jax": jax.__version__,
        "jaxlib": importlib.metadata.version("jaxlib"),
        "calling_convention_version": versions.pop(),
        "compatibility": COMPATIBILITY,
        "platforms": list(PLATFORMS),
        "xla_flags_on_cpu": f"{SAFE_FLAG}={SAFE_VALUE}",
        "dtype": dtype,
        "vocabulary": vocabulary,
        "weights": {"file": f"{WEIGHTS}.safetensors", "order": sorted(weights)},
        "programs": programs,
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
    return manifest


def _signature(exported: export.Exported, program: Program) -> dict[str, Any]:
    """Return the names, shapes and dtypes of a program's inputs, cache and outputs, for the manifest."""
    (_, *arguments), _ = jax.tree.unflatten(exported.in_tree, exported.in_avals)
    outputs = jax.tree.unflatten(exported.out_tree, exported.out_avals)
    parts = {**dict(zip(("inputs", "cache"), arguments, strict=False)), "outputs": outputs}

    def describe(leaf: Any) -> dict[str, Any]:
        shape = [size if isinstance(size, int) else str(size) for size in leaf.shape]
        return {"shape": shape, "dtype": str(leaf.dtype)}

    return {**jax.tree.map(describe, parts), "limits": list(program.limits)}
