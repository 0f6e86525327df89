"""What a step of decoding must read: the parameters that it uses and the cache, of tables the rows it looks up."""

from typing import Any

import jax
import pytest

from benchmarks.step import bytes_read, cases
from benchmarks.step.programs import Step, Variant
from tests.support import benchmark_steps as steps

UNUSED = {
    "gpt-nano": ("embed/positions",),
    "t5-nano": ("encoder/", "cross/kv", "decoder/relative"),
    "transformer-nano": ("encoder/", "cross/kv"),
    "xlnet-nano": ("cache/distances", "attention/r/", "attention/type", "attention/types"),
}
"""Parts of the paths of an encoder's parameters, of keys and values of its source, and of tables of which rows are looked up."""
FULL = [
    ("t5-nano", "unroll", "bfloat16"),
    ("transformer-nano", "scan", "float32"),
    ("xlnet-nano", "scan", "bfloat16"),
    ("xlnet-nano", "unroll", "float32"),
]
CASES = [("gpt-nano", "scan", "float32"), *(pytest.param(*each, marks=pytest.mark.full) for each in FULL)]


@pytest.mark.parametrize(("name", "layers", "precision"), CASES)
def test_decoding_reads_what_it_uses(name: str, layers: str, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    steps.shrink(monkeypatch)
    step = Step(cases.make_case(name, "decode", **steps.SMALL), Variant(layers=layers, precision=precision))
    item = 4 if precision == "float32" else 2
    leaves = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(step._parts.shapes)
    }
    used = [leaf for path, leaf in leaves.items() if not any(part in path for part in ("cache/at", *UNUSED[name]))]
    # T5's biases of distances are looked up after they became float32.
    biases = 2 * (8 + 1 if item == 4 else 32)
    rows = {"gpt-nano": 2 * 32, "t5-nano": biases, "xlnet-nano": 2 * 2 * 16 * (8 + 1)}.get(name, 0)
    tokens = 2 * 4
    assert step.bytes_read == sum(leaf.size * leaf.dtype.itemsize for leaf in used) + rows * item + tokens


def test_bytes_read_are_counted_once() -> None:
    """Whole arrays once, tables by what is looked up, at most all of them, and nothing of what is handed on."""
    table, stack = jax.ShapeDtypeStruct((10, 4), "float32"), jax.ShapeDtypeStruct((3, 4), "float32")

    def twice(table: Any, stack: Any, index: Any, unused: Any) -> Any:
        rows = jax.jit(lambda table: table[index])(table)
        total, _ = jax.lax.scan(lambda carry, layer: (carry + layer * layer, layer[:2].sum()), rows.sum(0), stack)
        return total, unused

    for count, read in ((3, 3 * 4 * 4), (20, 10 * 4 * 4)):
        index = jax.ShapeDtypeStruct((count,), "int32")
        assert bytes_read.argument_bytes_read(jax.jit(twice), table, stack, index, table) == [read, 3 * 4 * 4, 4 * count, 0]
