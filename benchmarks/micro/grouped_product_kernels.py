"""Kernels of the products of experts as compiled for a GPU: `python -m benchmarks.micro.grouped_product_kernels h100`.

The kernels of `zoo.ops.grouped_product_gpu` are compiled at the shapes of gpt-oss, or of `--shape EXPERTS,ROWS,DEPTH,COLUMNS`,
for a GPU that need not be present. Nothing runs. The columns are those of `zoo bench attention --compiled`. Prints Markdown, or
with `--json` a line for each kernel.
"""

import argparse
import functools
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from benchmarks.attention import compiled_kernels, gpu_kernels
from benchmarks.core.timing import without_compilation_cache
from benchmarks.micro import script_setup
from benchmarks.plan import target_devices
from zoo.ops import grouped_product_gpu as product

Shape = tuple[int, int, int, int]
"""Experts, rows, and the rows and columns of an expert's weights."""
GPT_OSS: tuple[Shape, ...] = ((32, 65536, 2880, 5760), (32, 65536, 2880, 2880), (128, 65536, 2880, 5760))
"""Both projections of all experts of 20b, and the larger one of 120b."""
DTYPES = ("bfloat16", "float32")
PASSES = ("rows", "transposed", "weights")
"""The product, the gradient of its rows, and that of its weights and biases."""


def print_compiled_products() -> int:
    """Compile the products of experts for a GPU, print what the assembler says of each kernel, and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.micro.grouped_product_kernels")
    parser.add_argument("chip", choices=list(target_devices.GPUS))
    parser.add_argument("--shape", nargs="+", type=_shape, default=GPT_OSS)
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=DTYPES)
    parser.add_argument("--tile", type=int, default=product.LARGEST_TILE, help="rows in a tile")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    target = target_devices.parse_target(f"{options.chip}:1")
    with tempfile.TemporaryDirectory() as folder:
        compiled_kernels.write_programs(gpu_kernels, Path(folder))
        target_devices.prepare_target(target)
        if not options.json:
            print("| dtype | E, R, D, F | pass | " + " | ".join(gpu_kernels.HEAD) + " |")
            print("|---" * (3 + len(gpu_kernels.HEAD)) + "|")
        for shape in options.shape:
            for dtype in options.dtype:
                for row in _kernels(shape, dtype, options.tile, target, Path(folder)):
                    cells = [dtype, ", ".join(map(str, shape)), row["pass"], *gpu_kernels.columns(row)]
                    print(json.dumps(row) if options.json else f"| {' | '.join(cells)} |", flush=True)
    return 0


def _shape(text: str) -> Shape:
    experts, rows, depth, columns = map(int, text.split(","))
    return experts, rows, depth, columns


def _kernels(shape: Shape, dtype: str, tile: int, target: target_devices.Target, folder: Path) -> Iterator[dict[str, Any]]:
    """Yield what the assembler says of each kernel of a shape."""
    experts, rows, depth, columns = shape
    mesh = Mesh(np.array(target_devices.devices_of_target(target)[:1]), ("data",), axis_types=(AxisType.Auto,))

    def array(*sizes: int, of: Any = dtype) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(sizes, of, sharding=NamedSharding(mesh, PartitionSpec()))

    x, y, weights = array(rows, depth), array(rows, columns), array(experts, depth, columns)
    biases, sizes = array(experts, columns), array(experts, of=jnp.int32)
    multiply = functools.partial(product.multiply_rows, tile=tile)
    programs = {
        "rows": (multiply, (x, weights, biases, sizes)),
        "transposed": (functools.partial(multiply, transposed=True), (y, weights, None, sizes)),
        "weights": (functools.partial(product.weight_gradients, tile=tile, dtype=dtype), (x, y, sizes)),
    }
    for name in PASSES:
        function, arguments = programs[name]
        with jax.set_mesh(mesh), target_devices.simulate_target(target), without_compilation_cache():
            lowered = jax.jit(function).trace(*arguments).lower(lowering_platforms=(target.lowering,))
            lowered.compile()
        for kernel in gpu_kernels.take_kernels(folder, lowered.as_text(), target.chip):
            yield {"dtype": dtype, "shape": shape, "pass": name, **kernel._asdict()}


if __name__ == "__main__":
    sys.exit(script_setup.run_measurement(print_compiled_products))
