"""Damaged and hostile files of weights are refused, by the name of the tensor or of the file."""

import dataclasses
import json
import struct
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.support import published
from tests.support.processes import ROOT, run_python
from tests.support.small import patch_family
from zoo import configs, models, published_weights
from zoo.errors import BadInput
from zoo.hf import safetensors_dir
from zoo.models import gpt

COUNTS = {
    **{("gpt", "causal"): (28, 8), ("t5", "text_to_text"): (66, 51), ("transformer", "text_to_text"): (86, 10)},
    **{
        ("gpt", "sequence"): (29, 9),
        ("t5", "sequence"): (69, 51),
        ("ettin_decoder", "causal"): (37, 9),
        ("ettin_decoder", "sequence"): (37, 10),
        ("gpt_oss", "causal"): (37, 16),
        ("gpt_oss", "sequence"): (37, 16),
        ("llama", "causal"): (21, 16),
        ("llama", "sequence"): (21, 16),
        ("nanochat", "causal"): (14, 10),
    },
    **{("bert", "body"): (39, 7), ("bert", "pretraining"): (46, 8), ("bert", "masked"): (42, 7), ("bert", "next"): (41, 8)},
    **{("bert", "sequence"): (41, 8), ("bert", "choice"): (41, 8), ("bert", "tokens"): (39, 8), ("bert", "span"): (39, 8)},
    **{("distilbert", "body"): (36, 6), ("distilbert", "masked"): (41, 6), ("distilbert", "sequence"): (40, 7)},
    **{("distilbert", "choice"): (40, 7), ("distilbert", "tokens"): (38, 7), ("distilbert", "span"): (38, 7)},
    **{("roberta", "body"): (39, 7), ("roberta", "masked"): (42, 7), ("roberta", "sequence"): (41, 8)},
    **{("roberta", "choice"): (41, 8), ("roberta", "tokens"): (39, 8), ("roberta", "span"): (39, 8)},
    **{("xlnet", "body"): (36, 11), ("xlnet", "permutation"): (37, 11), ("xlnet", "sequence"): (40, 12)},
    **{("xlnet", "choice"): (40, 12), ("xlnet", "tokens"): (38, 12), ("xlnet", "span"): (38, 12)},
    **{("modernbert", "body"): (26, 13), ("modernbert", "masked"): (29, 13), ("modernbert", "sequence"): (30, 14)},
    **{("modernbert", "choice"): (30, 14), ("modernbert", "tokens"): (30, 14), ("modernbert", "span"): (30, 14)},
}
"""Tensors of the tiny model with each head, and those of them that are matrices and not square."""
FIRST = {family: task for family, task in reversed(COUNTS)}
"""The head of each family whose mutants are tried in the fast tier."""

ALONE = {"lm_loss.bias", "score.weight"}
"""Heads of a single tensor: a file without it is a body's, or has GPT's table as its head, and the note on it says so
(tests/zoo/hf/test_heads.py)."""

NANO = {"gpt": (52, 14), "bert": (69, 11), "distilbert": (36, 6), "roberta": (69, 11), "t5": (97, 27), "transformer": (128, 14)}
NANO |= {"xlnet": (70, 21), "modernbert": (26, 13), "llama": (38, 21), "gpt_oss": (71, 22), "ettin_decoder": (34, 9)}
NANO |= {"nanochat": (26, 10)}
"""The same of the body of each nano without a pooler (of what has no heads, all)."""

BODY = {"gpt": (28, 8), "bert": (37, 7), "distilbert": (36, 6), "roberta": (37, 7), "t5": (66, 51), "transformer": (86, 10)}
BODY |= {"xlnet": (36, 11), "modernbert": (26, 13), "t5-sequence": (65, 50), "llama": (21, 16), "llama-sequence": (20, 15)}
BODY |= {"gpt_oss": (37, 16), "ettin_decoder": (34, 9), "nanochat": (14, 10)}
"""The same of the tiny body without a pooler: what a count has beyond it, its head has, tiny or nano. The tiny T5 and Llama have
second tables for their words, which their nanos lack, and a score has not."""

SLIPS = ("deleted", "renamed", "nan", "added")
KINDS = (*SLIPS, "resized", "half", "double", "infinite", "reshaped")
"""Ways to damage any tensor; a matrix that is not square is also transposed."""


def alone(family: str, task: str) -> int:
    """Return how many tensors of a model may be absent with their whole head."""
    return sum(row.names in ALONE for row in models.family(family).names[task].rows)


def substituted(family: str, task: str) -> set[str]:
    """Return the names of the tensors of the tiny model in whose place another one is read; the nanos have none."""
    names = models.family(family).names[task]
    return names.substitutes.keys() & {row.names for row in names.rows}


def tiny_mutants(family: str, task: str) -> int:
    """Return how many mutants the tiny model with this head has."""
    count, matrices = COUNTS[family, task]
    return len(SLIPS) * count + matrices - alone(family, task) - len(substituted(family, task))


def nano_mutants(family: str, task: str) -> int:
    """Return how many mutants the nano with this head has."""
    (count, matrices), (tiny, of_tiny), without = NANO[family], COUNTS[family, task], BODY.get(f"{family}-{task}", BODY[family])
    return len(KINDS) * (count + tiny - without[0]) + matrices + of_tiny - without[1] - alone(family, task)


def mutants(name: str, tensor: np.ndarray) -> dict[str, dict[str, np.ndarray]]:
    """Return what replaces a tensor, by what was done to it."""
    broken = tensor.copy()
    broken.flat[broken.size // 2] = np.nan
    infinite = tensor.copy()
    infinite.flat[-1] = -np.inf
    wider = np.concatenate([tensor, tensor[:1]])
    made = {"deleted": {}, "renamed": {f"{name}s": tensor}, "resized": {name: wider}, "half": {name: tensor.astype(np.float16)}}
    made |= {"nan": {name: broken}, "infinite": {name: infinite}, "double": {name: tensor.astype(np.float64)}}
    made["added"] = {name: tensor, f"{name}.extra": tensor}
    made["reshaped"] = {name: tensor[None]}
    if tensor.ndim == 2 and tensor.shape[0] != tensor.shape[1]:
        made["transposed"] = {name: np.ascontiguousarray(tensor.T)}
    return made


def refused(
    folder: Path,
    stored: Mapping[str, np.ndarray],
    put: Callable[[str, dict[str, np.ndarray]], None],
    kinds: Sequence[str] = KINDS,
    may_be_absent: Collection[str] = (),
) -> int:
    """Return how many mutants there are; `put` makes each, and it is refused in one line with the name of the tensor."""
    tried = 0
    for name, tensor in stored.items():
        for kind, replacement in mutants(name, tensor).items():
            if kind not in (*kinds, "transposed") or (kind == "deleted" and name in (*ALONE, *may_be_absent)):
                continue
            put(name, replacement)
            with pytest.raises(BadInput) as refusal:
                published_weights.open_folder(folder)
            assert name in str(refusal.value), kind
            assert "\n" not in str(refusal.value)
            tried += 1
    return tried


@pytest.mark.planted(len(KINDS) * COUNTS["gpt", "causal"][0] + COUNTS["gpt", "causal"][1])
def test_every_mutant_of_a_folder(tmp_path: Path) -> None:
    """Damage the files on a disk."""
    folder = tmp_path / "sharded"
    stored = published.write(folder, published.GPT2, sharded=True)
    files = {name: published.file(number) for number, name in enumerate(stored)}

    def put(name: str, replacement: dict[str, np.ndarray]) -> None:
        # The tensor's own file, and the index, are all that changes.
        save_file(replacement, folder / "mutant.safetensors")
        kept = {other: file for other, file in files.items() if other != name}
        published.write_index(folder, kept | dict.fromkeys(replacement, "mutant.safetensors"))

    published_weights.open_folder(folder)
    count, matrices = COUNTS["gpt", "causal"]
    assert refused(folder, stored, put) == len(KINDS) * count + matrices
    published.write_index(folder, files)
    published_weights.open_folder(folder)


def head_of(family: str, task: str, mutants: int, fast: bool) -> Any:
    marks = [pytest.mark.planted(mutants), *([] if fast else [pytest.mark.full])]
    return pytest.param(family, task, marks=marks)


@pytest.mark.parametrize(("family", "task"), [head_of(*head, tiny_mutants(*head), head in FIRST.items()) for head in COUNTS])
def test_every_mutant_of_every_head(family: str, task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    absent = substituted(family, task)
    assert in_memory(tmp_path, monkeypatch, published.config(family, task), SLIPS, absent) == tiny_mutants(family, task)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "task"), [pytest.param(*head, marks=pytest.mark.planted(nano_mutants(*head))) for head in COUNTS]
)
def test_every_mutant_of_every_nano(family: str, task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nano = published.config(family, task, published.nano(family))
    assert in_memory(tmp_path, monkeypatch, nano, KINDS) == nano_mutants(family, task)


def test_mutants_of_every_published_head_are_counted() -> None:
    assert set(COUNTS) == set(published.HEADS)
    assert sum(tiny_mutants(*head) for head in COUNTS) == 7_269


def in_memory(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    config: dict[str, Any],
    kinds: Sequence[str],
    may_be_absent: Collection[str] = (),
) -> int:
    """The number of mutants of the model of a config.json, all refused."""
    (folder / "config.json").write_text(json.dumps(config))
    stored = published.weights(published.shapes_of(folder))
    whole = {name: published.held(tensor) for name, tensor in stored.items()}
    now = dict(whole)

    def put(name: str, replacement: dict[str, np.ndarray]) -> None:
        now.clear()
        now.update({other: held for other, held in whole.items() if other != name})
        now.update({other: published.held(tensor) for other, tensor in replacement.items()})

    monkeypatch.setattr(safetensors_dir, "read_safetensors", lambda folder: now)
    published_weights.open_folder(folder)
    return refused(folder, stored, put, kinds, may_be_absent)


@pytest.mark.planted(4)
def test_tensors_that_contradict_config_json_are_named(tmp_path: Path) -> None:
    stored = published.write(tmp_path / "model", published.GPT2)
    few = {name: tensor for name, tensor in stored.items() if ".h.1." not in name}
    for changes, changed, parts in (
        ({"n_layer": 3}, stored, ["h.2.ln_1.weight is missing"]),
        ({"n_layer": 1}, stored, ["h.1.attn.c_attn.bias is unexpected"]),
        ({"n_embd": 24}, stored, ["wte.weight has shape [61, 12], not [61, 24]"]),
        ({}, few, ["transformer.h.1.ln_1.weight is missing", "and 7 more"]),
    ):
        published.assert_refused(published.write_files(tmp_path / "model", published.GPT2 | changes, changed), *parts)


@pytest.mark.planted
def test_a_table_of_names_that_lacks_a_leaf_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    patch_family(monkeypatch, gpt, names={"causal": dataclasses.replace(gpt.NAMES, rows=gpt.NAMES.rows[1:])})
    published_weights.name_table.cache_clear()
    with pytest.raises(ValueError, match="embed/tokens/embedding"):
        published_weights.name_table(configs.find_size("gpt-nano")[1].config, "")


def raw(entries: Any, data: bytes = b"", length: int | None = None) -> bytes:
    """Return a safetensors file of a header, given as JSON or as text, and its data."""
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


ONE = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
HOSTILE: dict[str, tuple[bytes | Callable[[], bytes], str]] = {
    "empty": (b"", "damaged"),
    "seven bytes": (b"\0" * 7, "damaged"),
    "header longer than the file": (raw({"a": ONE}, b"\0" * 4, length=1 << 62), "damaged"),
    "header over the cap": (lambda: raw(b'{"a": 1' + b" " * (26 << 20) + b"}"), "at most"),
    "no JSON": (raw(b"{\xff}"), "JSON"),
    "a list": (raw(b"[]"), "JSON object"),
    "deep nesting": (raw(b'{"a":' * 50_000), "JSON"),
    "a key twice": (raw(b'{"a": %b, "a": %b}' % ((json.dumps(ONE).encode(),) * 2), b"\0" * 4), "twice"),
    "a path as a name": (raw({"../../etc/passwd": ONE}, b"\0" * 4), "names must be"),
    "a NUL in a name": (raw({"a\0b": ONE}, b"\0" * 4), "names must be"),
    "a long name": (raw({"a" * 257: ONE}, b"\0" * 4), "names must be"),
    "too many tensors": (
        lambda: raw({f"{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(100_001)}),
        "tensors",
    ),
    "overlap": (raw({"a": ONE, "b": ONE}, b"\0" * 4), "damaged"),
    "a hole": (raw({"a": ONE | {"data_offsets": [4, 8]}}, b"\0" * 8), "damaged"),
    "more at the end": (raw({"a": ONE}, b"\0" * 8), "damaged"),
    "negative shape": (raw({"a": ONE | {"shape": [-1]}}, b"\0" * 4), "damaged"),
    "overflowing shape": (raw({"a": ONE | {"shape": [1 << 40, 1 << 40]}}, b"\0" * 4), "damaged"),
    "no elements of 2^62 bytes": (raw({"a": ONE | {"shape": [1 << 60, 0], "data_offsets": [0, 0]}}), "a has the shape"),
    "no elements in 70 axes": (raw({"a": ONE | {"shape": [1] * 69 + [0], "data_offsets": [0, 0]}}), "a has the shape"),
    "a size that is true": (raw({"a": ONE | {"shape": [True]}}, b"\0" * 4), "damaged"),
    "offsets before the data": (raw({"a": ONE | {"data_offsets": [-4, 0]}}, b"\0" * 4), "damaged"),
    "offsets beyond the file": (raw({"a": ONE | {"shape": [2], "data_offsets": [0, 8]}}, b"\0" * 4), "damaged"),
    "shape against size": (raw({"a": ONE | {"shape": [2]}}, b"\0" * 4), "damaged"),
    "unknown type": (raw({"a": ONE | {"dtype": "F31"}}, b"\0" * 4), "damaged"),
    "no object": (raw({"a": 3}), "damaged"),
    "fp8": (raw({"a": ONE | {"dtype": "F8_E4M3", "data_offsets": [0, 1]}}, b"\0"), "F8_E4M3, so these are quantized"),
}
"""Files, the large ones as functions that make them, and a part of the message."""


@pytest.mark.parametrize("case", HOSTILE)
@pytest.mark.planted
def test_a_hostile_file_is_refused(tmp_path: Path, case: str) -> None:
    content, message = HOSTILE[case]
    (tmp_path / safetensors_dir.SINGLE).write_bytes(content() if callable(content) else content)
    with pytest.raises(BadInput, match=message) as refusal:
        safetensors_dir.read_safetensors(tmp_path)
    assert safetensors_dir.SINGLE in str(refusal.value)
    assert len(str(refusal.value)) < 600


@pytest.mark.parametrize(
    "where", ["../gpt2/model.safetensors", "/etc/passwd", "a/b.safetensors", "..", "", "x.bin", "x.safetensors/", 3, None]
)
@pytest.mark.planted
def test_an_index_stays_in_its_folder(tmp_path: Path, where: Any) -> None:
    published.write_index(tmp_path, {"a": where})
    with pytest.raises(BadInput, match=r"index\.json"):
        safetensors_dir.read_safetensors(tmp_path)


@pytest.mark.planted(4)
def test_an_index_and_its_files_must_agree(tmp_path: Path) -> None:
    stored = published.weights({"a": (2,), "b": (3,), "c": (4,)})
    save_file(stored, tmp_path / "model-1.safetensors")
    first, *others = sorted(stored)
    for files, message in [
        ({name: "model-1.safetensors" for name in others}, f"also contains {first}"),
        ({name: "model-1.safetensors" for name in [*stored, "x"]}, "lacks x"),
        ({name: "model-2.safetensors" for name in stored}, "cannot be read"),
    ]:
        published.write_index(tmp_path, files)
        with pytest.raises(BadInput, match=message):
            safetensors_dir.read_safetensors(tmp_path)
    save_file(stored, tmp_path / safetensors_dir.SINGLE)
    with pytest.raises(BadInput, match="both"):
        safetensors_dir.read_safetensors(tmp_path)


QUANTIZED = {
    "qweight": "GPTQ or AWQ",
    "weight.absmax": "bitsandbytes",
    "SCB": "bitsandbytes",
    "weight_packed": "compressed-tensors",
    "weight_scale_inv": "fp8",
}


@pytest.mark.planted(len(QUANTIZED))
@pytest.mark.parametrize("family", ["llama", "gpt_oss"])
def test_quantized_tensors_are_refused_by_the_name_of_their_format(family: str, tmp_path: Path) -> None:
    """Also if the config.json says nothing of it."""
    numbers = published.config(family, "causal")
    stored = published.write(tmp_path / "model", numbers)
    for ending, name in QUANTIZED.items():
        tensor = f"model.layers.0.self_attn.q_proj.{ending}"
        published.write_files(tmp_path / "model", numbers, {**stored, tensor: np.zeros((2, 2), np.uint8)})
        published.assert_refused(tmp_path / "model", f"{tensor} is a tensor of {name}", "use the original weights")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "flax_model.msgpack", "tf_model.h5", "model.gguf"])
@pytest.mark.planted
def test_pickle_is_refused_and_not_opened(tmp_path: Path, name: str) -> None:
    # Unpickling this would write the file "ran".
    ran = tmp_path / "ran"
    (tmp_path / name).write_bytes(b"cbuiltins\nopen\n(V" + str(ran).encode() + b"\nVw\ntR.")
    with pytest.raises(BadInput, match="only safetensors"):
        safetensors_dir.read_safetensors(tmp_path)
    assert not ran.exists()


@pytest.mark.slow
@pytest.mark.planted(9_700)
def test_random_damage_is_refused_in_bounded_memory() -> None:
    count = 10_000
    ended = run_python("-m", "tests.support.fuzz_weights", "1", str(count), cwd=ROOT)
    assert ended.code == 0, ended.stderr
    counts = json.loads(ended.stdout)
    assert counts["refused"] + counts["read"] == count
    # A few mutants change nothing but the bytes of a weight; far more than those would mean that checks are missing.
    assert counts["read"] < 0.03 * count
    assert counts["grown_kb"] < 200_000
