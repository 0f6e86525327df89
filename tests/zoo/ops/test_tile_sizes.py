"""Sizes of tiles: the lines of the table, and tunings that are stored, of other versions, or damaged."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from benchmarks.plan.target_devices import TPUS
from zoo.attention.attention import attention
from zoo.attention.biases import Buckets, Relative
from zoo.attention.kernels import splash
from zoo.attention.masks import Mask
from zoo.attention.request import Request, kernel_call
from zoo.cli import doctor_report
from zoo.errors import BadInput
from zoo.ops import tile_sizes
from zoo.ops.tile_sizes import KernelCall

CALL = KernelCall(kernel="blocked", dtype="float32", form="causal", head=8, queries=64, keys=64)
STORED = {"queries": 16, "keys": 32}


@pytest.fixture
def stored_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the file of a tuning for `CALL` in an own cache folder."""
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path))
    path = tile_sizes.stored_path("cpu", "cpu")
    path.parent.mkdir()
    write(path)
    tile_sizes.usable_rows.cache_clear()
    return path


def write(path: Path, **changes: Any) -> None:
    row = {**dataclasses.asdict(CALL), "sizes": STORED}
    row |= {name: changes.pop(name) for name in list(changes) if name in row}
    content = {"device": "cpu", "versions": tile_sizes.compiler_versions("cpu"), "rows": [row]}
    path.write_text(json.dumps(content | changes))


# --- the table ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "length", "dtype", "size"),
    [
        ("TPU v5 lite", 4096, "bfloat16", 1024),
        ("TPU v6 lite", 1024, "bfloat16", 1024),
        ("TPU7x", 512, "bfloat16", 512),
        ("TPU7x", 4096, "float32", 512),
        ("TPU v4", 4096, "bfloat16", 512),
        ("TPU v50", 4096, "bfloat16", 512),
    ],
)
def test_the_table_depends_on_device_length_and_dtype(kind: str, length: int, dtype: str, size: int) -> None:
    call = KernelCall(kernel="splash", dtype=dtype, form="causal", head=128, queries=length, keys=length)
    assert tile_sizes.table_sizes(call, kind)["queries"] == size


def test_every_kernel_has_sizes_on_every_device() -> None:
    for kernel, lines in json.loads(tile_sizes.TABLE.read_text()).items():
        call = KernelCall(kernel=kernel, dtype="bfloat16", queries=1 << 20, keys=1 << 20)
        for kind in ("cpu", "NVIDIA H100", "?", *(tpu.kind for tpu in TPUS.values())):
            assert tile_sizes.table_sizes(call, kind).keys() == lines[-1]["sizes"].keys()
        multiple = tile_sizes.MULTIPLES.get(kernel, 1)
        assert all(size % multiple == 0 for line in lines for size in line["sizes"].values())


@pytest.mark.parametrize(
    ("t", "s", "window", "expected"),
    [(4096, 4096, None, (1024, 1024, 512)), (1536, 2048, None, (768, 1024, 512)), (4096, 4096, 256, (512, 512, 512))],
)
def test_blocks_of_splash_divide_the_lengths(t: int, s: int, window: int | None, expected: tuple[int, ...]) -> None:
    call = KernelCall(kernel="splash", dtype="bfloat16", queries=t, keys=s)
    blocks = splash._blocks(tile_sizes.table_sizes(call, "TPU v6 lite"), Mask(causal=True, window=window), t, s)
    assert (blocks.block_q, blocks.block_kv, blocks.block_kv_compute) == expected
    assert t % blocks.block_q_dkv == s % blocks.block_kv_dkv == blocks.block_kv_dkv % blocks.block_kv_dkv_compute == 0


def test_a_kernel_makes_the_call_of_its_request() -> None:
    q = jax.ShapeDtypeStruct((2, 64, 4, 8), jnp.float32)
    ids = jnp.ones((2, 64), jnp.int32)
    masks = {"causal, numbers": Mask(causal=True, query_segments=ids, key_segments=ids), "full": Mask()}
    table = Buckets(table=jax.ShapeDtypeStruct((32, 4), jnp.float32))
    r, seeds = jax.ShapeDtypeStruct((4, 8, 128), jnp.float32), jax.ShapeDtypeStruct((2, 2), jnp.uint32)
    scattered = Relative(q_r=q, r=r, first=63, query_positions=ids)
    for form, mask, bias, rate in [
        *((form, mask, None, 0.0) for form, mask in masks.items()),
        ("bucket bias, dropout", Mask(), table, 0.1),
        ("relative bias, numbers, scattered", Mask(), scattered, 0.0),
    ]:
        request = Request.of(q, q, q, mask, bias, (rate, seeds) if rate else None)
        call = kernel_call("flash_tpu", q, q, mask, bias, rate)
        assert request.kernel_call("flash_tpu") == call and call.form == form


# --- stored tunings -------------------------------------------------------------------------------------------------------------


def program() -> str:
    """Return the program of causal attention by `blocked` of the lengths of `CALL`."""
    q = jax.ShapeDtypeStruct((1, 64, 2, 8), jnp.float32)
    return jax.jit(lambda q, k, v: attention(q, k, v, mask=Mask(causal=True), impl="blocked")).lower(q, q, q).as_text()


def test_a_stored_tuning_is_used(stored_file: Path) -> None:
    tuned = program()
    assert tile_sizes.tile_sizes(CALL) == STORED
    assert tile_sizes.describe_tuning() == f"those of {stored_file} for the calls of blocked that it has"
    stored_file.unlink()
    tile_sizes.usable_rows.cache_clear()
    assert program() != tuned and tile_sizes.tile_sizes(CALL) == {"queries": 512, "keys": 1024}
    assert tile_sizes.describe_tuning().startswith("those of the table: no tuning is stored")


@pytest.mark.usefixtures("stored_file")
@pytest.mark.parametrize(
    "change", [{"head": 16}, {"form": "full"}, {"dtype": "bfloat16"}, {"queries": 65}, {"kernel": "flash_tpu"}]
)
def test_a_stored_tuning_is_for_its_calls_alone(change: dict[str, Any]) -> None:
    call = dataclasses.replace(CALL, **change)
    assert tile_sizes.tile_sizes(call) == tile_sizes.table_sizes(call, "cpu")
    assert tile_sizes.tile_sizes(dataclasses.replace(CALL, keys=32)) == STORED  # shorter


def test_a_tuning_of_other_versions_is_ignored_and_named(stored_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(stored_file, versions={"jax": "0.9.0", "jaxlib": "0.9.0"})
    for _ in range(2):
        assert tile_sizes.tile_sizes(CALL) == {"queries": 512, "keys": 1024}
    here = ", ".join(f"{name} {version}" for name, version in tile_sizes.compiler_versions("cpu").items())
    reason = f"is of jax 0.9.0, jaxlib 0.9.0, and this is {here}: ignored; run zoo bench attention --tune again"
    assert capsys.readouterr().err == f"zoo: tile sizes: {stored_file} {reason}\n"
    assert tile_sizes.describe_tuning() == f"those of the table: {stored_file} {reason}"


def test_a_group_of_processes_ignores_it(stored_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    assert tile_sizes.tile_sizes(CALL) == {"queries": 512, "keys": 1024}
    assert "must compile equal programs" in tile_sizes.describe_tuning()


DAMAGES: dict[str, dict[str, Any]] = {
    "an unknown kernel": {"kernel": "x"},
    "a kernel that is not tuned": {"kernel": "grouped_product_tpu"},
    "a size of zero": {"sizes": {"queries": 0, "keys": 32}},
    "a size that is no multiple": {"sizes": {"queries": 24, "keys": 32}},
    "another name": {"sizes": {"queries": 16, "rows": 32}},
    "a text": {"head": "8"},
    "no rows": {"rows": None},
}


@pytest.mark.planted
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_one_clear_line(damage: str, stored_file: Path) -> None:
    write(stored_file, **DAMAGES[damage])
    with pytest.raises(BadInput) as refusal:
        tile_sizes.tile_sizes(CALL)
    message = str(refusal.value)
    assert message.startswith(f"{stored_file} has unexpected content (")
    assert message.endswith("; delete it, or write it again with zoo bench attention --tune") and "\n" not in message


@pytest.mark.planted
def test_the_doctor_reports_a_damaged_file(stored_file: Path) -> None:
    stored_file.write_text("{")
    facts = doctor_report.collect_facts()
    assert [problem for problem in facts.problems if problem.startswith(f"{stored_file} is invalid JSON")]
