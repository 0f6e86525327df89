"""The msgpack files of `transformers`' Flax: the same weights as in safetensors, and everything else refused by name.

The names, shapes and orientations of `tests/golden/flax_names.json` are those of files that `save_pretrained` of transformers
4.46.3 wrote with flax 0.8.5, and of the torch models that the same release made of them; the values there were equal bit by bit.
"""

import functools
import json
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import flax.serialization
import jax
import jax.numpy as jnp
import msgpack
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import load_file

from tests.golden import make
from tests.support import encoders, published
from train.config import run_config
from train.engine import device_mesh
from train.weights import import_export
from zoo import published_weights
from zoo.errors import BadInput
from zoo.hf import flax_msgpack, hub
from zoo.hf.flax_msgpack import INDEX, SINGLE, read_msgpack

NAMES = json.loads((Path(make.__file__).parent / "flax_names.json").read_text())
NUMBERS = {
    **{"Bert": published.BERT, "Roberta": published.ROBERTA, "DistilBert": published.DISTILBERT, "GPT2": published.GPT2},
    **{"T5": published.T5, "Marian": published.MARIAN},
}
CLASSES = [(family, name) for family in NUMBERS for name in NAMES[family]["heads"]]
PLAIN_T5 = {"feed_forward_proj": "relu", "tie_word_embeddings": True}
"""What a T5 1.0 has instead of the numbers of `published.T5`; the file of the gated one has the ending -gated."""


@functools.cache
def entries(family: str, name: str) -> dict[str, tuple[tuple[int, ...], bool]]:
    """Return (shape in the file, whether torch has its transpose) of each array of a class, by path."""
    prefix = "" if name.endswith("Model") else f"{NAMES[family]['prefix']}/"
    lines = [*((prefix if prefix != "/" else "") + line for line in NAMES[family]["body"]), *NAMES[family]["heads"][name]]
    split = (line.split() for line in lines)
    return {path: (tuple(map(int, shape.split("x"))), bool(turned)) for path, shape, *turned in split}


def torch_name(path: str) -> str:
    first, _, last = path.rpartition("/")
    return f"{first.replace('/', '.')}.{'bias' if last == 'bias' else 'weight'}".lstrip(".") if first else path


def arrays(family: str, name: str) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return (arrays by path, tensors by name in torch) with the same values."""
    expected = entries(family, name)
    shapes = {torch_name(path): shape[::-1] if turned else shape for path, (shape, turned) in expected.items()}
    torch = published.weights(shapes)
    stored = {path: torch[torch_name(path)].T if turned else torch[torch_name(path)] for path, (_, turned) in expected.items()}
    return stored, torch


def content_of(family: str, name: str) -> dict[str, Any]:
    plain = PLAIN_T5 if name == "T5ForConditionalGeneration" else {}
    return NUMBERS[family] | plain | {"architectures": [name.removesuffix("-gated")]}


def write(folder: Path, content: Mapping[str, Any], stored: Mapping[str, Any], shards: int = 0) -> Path:
    """Write a folder as `save_pretrained` of a Flax class does: nested maps, in one file or in shards with flat names."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(content))
    if not shards:
        (folder / SINGLE).write_bytes(serialized(stored))
        return folder
    paths = sorted(stored)
    files = {path: f"flax_model-{number % shards + 1:05d}-of-{shards:05d}.msgpack" for number, path in enumerate(paths)}
    for file in set(files.values()):
        (folder / file).write_bytes(serialized({path: stored[path] for path in paths if files[path] == file}))
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": files}))
    return folder


def serialized(stored: Mapping[str, Any]) -> bytes:
    return flax.serialization.msgpack_serialize(unflatten_dict(dict(stored), sep="/"))


@pytest.mark.parametrize(("family", "name"), CLASSES)
def test_files_of_flax_classes_have_the_tensors_of_torch(family: str, name: str, tmp_path: Path) -> None:
    stored, torch = arrays(family, name)
    folder = write(tmp_path / "model", content_of(family, name), stored)
    opened = published_weights.open_folder(folder)
    assert opened.tensors.keys() == torch.keys()
    assert all(np.array_equal(opened.tensors[key].view(), tensor) for key, tensor in torch.items())
    safe = published_weights.open_folder(published.write_files(tmp_path / "safe", content_of(family, name), torch))
    assert (opened.config, opened.leaves, opened.notes) == (safe.config, safe.leaves, safe.notes)


COUSINS = [
    ("T5", "T5ForConditionalGeneration-gated", published.MT5 | {"architectures": ["MT5ForConditionalGeneration"]}),
    *(
        ("Roberta", f"Roberta{head}", published.XLM | {"architectures": [f"XLMRoberta{head}"]})
        for head in ("Model", "ForMaskedLM", "ForTokenClassification")
    ),
]


@pytest.mark.parametrize(("family", "name", "content"), COUSINS)
def test_files_of_mt5_and_xlm_r_are_read(family: str, name: str, content: dict[str, Any], tmp_path: Path) -> None:
    """Their Flax classes have the names of T5's and RoBERTa's; no safetensors were released with the first mT5 and ByT5."""
    stored, torch = arrays(family, name)
    opened = published_weights.open_folder(write(tmp_path / "model", content, stored, shards=2))
    assert opened.notes == () and opened.tensors.keys() == torch.keys()
    assert all(np.array_equal(opened.tensors[key].view(), tensor) for key, tensor in torch.items())


def test_files_of_the_flax_llama_are_read(tmp_path: Path) -> None:
    """Its scales of norms are called `weight`, as in torch (`modeling_flax_llama.py` of transformers 4.46.3)."""
    torch = published.write(tmp_path / "safe", content := published.config("llama", "causal"))
    ends = {"norm": "weight", "embed_tokens": "embedding"}
    last = {name: next((end for part, end in ends.items() if part in name), "kernel") for name in torch}
    paths = {name: f"{name.removesuffix('.weight').replace('.', '/')}/{end}" for name, end in last.items()}
    stored = {path: torch[name].T if last[name] == "kernel" else torch[name] for name, path in paths.items()}
    opened = published_weights.open_folder(write(tmp_path / "model", content, stored))
    assert opened.notes == () and opened.tensors.keys() == torch.keys()
    assert all(np.array_equal(opened.tensors[name].view(), tensor) for name, tensor in torch.items())


FIRST = [next(head for head in CLASSES if head[0] == family) for family in NUMBERS]


@pytest.mark.planted(sum(turned and shape[0] != shape[1] for head in FIRST for shape, turned in entries(*head).values()))
def test_a_matrix_with_the_axes_of_torch_is_refused(tmp_path: Path) -> None:
    """A matrix that is not square shows whether a file has the axes of Flax."""
    for family, name in FIRST:
        stored, _ = arrays(family, name)
        for path, (shape, turned) in entries(family, name).items():
            if turned and shape[0] != shape[1]:
                write(tmp_path / "model", content_of(family, name), stored | {path: stored[path].T})
                wrong = f"{torch_name(path)} ({path}, transposed) has shape {list(shape)}, not {list(shape[::-1])}"
                published.assert_refused(tmp_path / "model", wrong)


@pytest.mark.parametrize("shards", [0, 3])
def test_parameters_are_those_of_safetensors(shards: int, tmp_path: Path) -> None:
    """Shards hold each other's neighbours; each slice of a parameter is read onto its own device."""
    stored, torch = arrays("GPT2", "GPT2LMHeadModel")
    content = content_of("GPT2", "GPT2LMHeadModel")
    mesh = device_mesh.make_mesh(run_config.Mesh(fsdp=4), jax.devices()[:4])
    cfg, params = published_weights.load_published(write(tmp_path / "flax", content, stored, shards), mesh)
    same, expected = published_weights.load_published(published.write_files(tmp_path / "safe", content, torch), mesh)
    assert cfg == same
    jax.tree.map(np.testing.assert_array_equal, params, expected)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_arrays_are_those_that_flax_restores(dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every type, in chunks as those of more than 1 GiB, without elements, and with a single one."""
    monkeypatch.setattr(flax.serialization, "MAX_CHUNK_SIZE", 100)
    generator = np.random.Generator(np.random.PCG64(0))
    stored = {f"a/{rows}/kernel": jnp.asarray(generator.normal(size=(rows, 7)), dtype) for rows in (1, 3, 19, 90, 3000)}
    stored |= {"b/embedding": np.zeros((0, 3), np.float32), "d/scale": np.float32(3), "c/bias": np.arange(5)}
    file = write(tmp_path / "model", {}, stored) / SINGLE
    assert flax_msgpack.CHUNKED.encode() in file.read_bytes()
    restored = flatten_dict(flax.serialization.msgpack_restore(file.read_bytes()), sep="/")
    tensors = flax_msgpack.read_msgpack(tmp_path / "model")
    assert {tensor.stored_name.removesuffix(", transposed") for tensor in tensors.values()} == restored.keys()
    for path, array in restored.items():
        tensor = tensors[torch_name(path)]
        expected = np.asarray(array).T if path.endswith("kernel") else np.asarray(array)
        view = tensor.view()
        assert (view.dtype, view.shape, tensor.shape) == (expected.dtype, expected.shape, expected.shape)
        assert np.array_equal(view, expected)


def flax_path(name: str) -> str:
    """Return the path of a tensor of RoBERTa."""
    first, _, last = name.rpartition(".")
    kind = "scale" if "LayerNorm" in first or "layer_norm" in first else "embedding" if "embeddings" in first else "kernel"
    return f"{first}.{kind if last == 'weight' else last}".replace(".", "/")


def test_an_import_of_a_flax_folder_is_one_of_safetensors(tmp_path: Path) -> None:
    folder = encoders.folder(tmp_path / "roberta", "roberta")
    torch = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    stored = {flax_path(name): array.T if flax_path(name).endswith("kernel") else array for name, array in torch.items()}
    (folder / SINGLE).write_bytes(serialized(stored))
    import_export.import_weights(str(folder), out=str(tmp_path / "models"), name="", explain=False, mesh=run_config.Mesh())
    imported = load_file(tmp_path / "models" / "roberta" / "model.safetensors")
    assert imported.keys() == torch.keys() and all(np.array_equal(imported[name], torch[name]) for name in torch)
    assert not (tmp_path / "models" / "roberta" / SINGLE).exists()


def test_safetensors_come_first(tmp_path: Path) -> None:
    stored, torch = arrays("Bert", "BertForMaskedLM")
    folder = write(tmp_path / "model", content_of("Bert", "BertForMaskedLM"), {path: 2 * array for path, array in stored.items()})
    opened = published_weights.open_folder(published.write_files(folder, content_of("Bert", "BertForMaskedLM"), torch))
    assert opened.notes == (f"{folder}: contains safetensors and {SINGLE}; the safetensors are read",)
    assert all(np.array_equal(opened.tensors[key].view(), tensor) for key, tensor in torch.items())


def test_one_format_of_a_model_is_fetched(tmp_path: Path) -> None:
    assert "flax_model.msgpack" not in hub.patterns_for(["model-00001-of-00002.safetensors", SINGLE])
    assert "flax_model.msgpack" in hub.patterns_for(["onnx/model.safetensors", SINGLE])
    stored, _ = arrays("Bert", "BertModel")
    folder = write(tmp_path / "model", content_of("Bert", "BertModel"), stored, shards=2)
    (folder / "vocab.txt").touch()
    assert hub._is_complete(folder)
    (folder / "flax_model-00002-of-00002.msgpack").unlink()
    assert not hub._is_complete(folder)
    wrong = ("[1]", '{"weight_map": 3}', '{"weight_map": {"a": []}}', '{"weight_map": {"a": "%s"}}' % ("x" * 5000))
    for index in (*wrong, "[" * 100_000):
        (folder / INDEX).write_text(index)
        assert not hub._is_complete(folder)


@pytest.mark.planted(6)
def test_another_class_is_refused_by_the_name_of_a_leaf(tmp_path: Path) -> None:
    masked, _ = arrays("Bert", "BertForMaskedLM")
    content = content_of("Bert", "BertForMaskedLM")
    broken = masked["cls/predictions/bias"].copy()
    broken[7] = np.nan
    head = "bert/encoder/layer/1/output/dense/kernel"
    for stored, part in (
        (arrays("Roberta", "RobertaForMaskedLM")[0], "bert.embeddings.word_embeddings.weight is missing"),
        ({path: array for path, array in masked.items() if path != head}, "bert.encoder.layer.1.output.dense.weight is missing"),
        (masked | {"bert/extra/kernel": masked[head]}, "bert.extra.weight (bert/extra/kernel, transposed) is unexpected"),
        (masked | {"cls/predictions/bias": broken}, "cls.predictions.bias holds NaN or infinity"),
        (masked | {head: masked[head].astype(np.float64)}, "bert.encoder.layer.1.output.dense.weight is F64, not F32"),
        ({f"params/{path}": array for path, array in masked.items()}, "bert.embeddings.word_embeddings.weight is missing"),
    ):
        published.assert_refused(write(tmp_path / "model", content, stored), part)


@pytest.mark.planted(4)
def test_shards_must_be_complete(tmp_path: Path) -> None:
    stored, _ = arrays("Bert", "BertModel")
    folder = write(tmp_path / "model", content_of("Bert", "BertModel"), stored, shards=2)
    index = json.loads((folder / INDEX).read_text())
    last = sorted(stored)[-1]
    for files, message in (
        ({**index["weight_map"], "x/bias": "flax_model-00001-of-00002.msgpack"}, "lacks x/bias, unlike flax_model.msgpack.index"),
        ({path: file for path, file in index["weight_map"].items() if path != last}, f"also contains {last}"),
        ({**index["weight_map"], last: "model.safetensors"}, "only .msgpack files beside it are read"),
    ):
        (folder / INDEX).write_text(json.dumps({"weight_map": files}))
        published.assert_refused(folder, message)
    (folder / INDEX).write_text(json.dumps(index))
    (folder / "flax_model-00002-of-00002.msgpack").unlink()
    published.assert_refused(folder, "flax_model-00002-of-00002.msgpack: cannot be read (No such file or directory)")


@pytest.mark.planted
def test_a_file_and_an_index_are_one_too_many(tmp_path: Path) -> None:
    stored, _ = arrays("Bert", "BertModel")
    folder = write(write(tmp_path / "model", {}, stored), content_of("Bert", "BertModel"), stored, shards=2)
    published.assert_refused(folder, f"contains both {SINGLE} and {INDEX}")


packed: Callable[[Any], bytes] = msgpack.packb  # pyright: ignore[reportAssignmentType]
"""Encode a value. The stubs of the library allow None."""


def extension(code: int, *parts: Any) -> msgpack.ExtType:
    return msgpack.ExtType(code, packed(parts))


def pairs(*entries: tuple[str, bytes]) -> bytes:
    """Return a msgpack map of encoded values, in which a name may come twice."""
    return bytes([0x80 + len(entries)]) + b"".join(packed(name) + value for name, value in entries)


ONE = flax.serialization.msgpack_serialize({"a": np.ones(2, np.float32)})
ARRAY = ONE[len(pairs(("a", b""))) :]
HOSTILE: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "empty"),
    "a pickle": (pickle.dumps({"a": [1, 2]}), "begins like a pickle"),
    "a pickle of protocol 0": (b"cos\nsystem\n(S'touch ran'\ntR.", "not msgpack with a map"),
    "torch": (b"PK\3\4data.pkl", "a zip archive"),
    "a pointer to the file": (b"version https://git-lfs.github.com/spec/v1\n", "not msgpack with a map"),
    "a list": (packed([1, 2]), "not msgpack with a map"),
    "more at the end": (ONE + b"\0\0", "2 bytes after its end"),
    "a number": (packed({"a": {"b": 3}}), "a/b is 3, not an array"),
    "a truth": (packed({"a": True}), "a is True, not an array"),
    "a text": (packed({"a": "b"}), "a is neither a map nor an array"),
    "a list of arrays": (packed({"a": [1]}), "a is neither a map nor an array"),
    "nothing": (packed({"a": None}), "a is neither a map nor an array"),
    "a fraction": (packed({"a": 0.5}), "a is neither a map nor an array"),
    "a complex number": (flax.serialization.msgpack_serialize({"a": 1j}), "a is a complex number"),
    "another extension": (packed({"a": extension(4, 1)}), "a has msgpack's extension 4"),
    "a date": (pairs(("a", b"\xd6\xff\0\0\0\0")), "a has msgpack's extension 255"),
    "no array": (packed({"a": extension(1, [2], "float32")}), "a is not an array"),
    "a type of objects": (packed({"a": extension(1, [1], "object", b"\0" * 8)}), "a has the type object"),
    "a type of pairs": (packed({"a": extension(1, [1], "complex64", b"\0" * 8)}), "a has the type complex64"),
    "bytes unlike the shape": (
        packed({"a": extension(1, [3], "float32", b"\0" * 8)}),
        "a has 8 bytes, unlike its shape [3]",
    ),
    "a negative size": (packed({"a": extension(1, [-1], "float32", b"")}), "a is not a number"),
    "a huge size": (packed({"a": extension(1, [1 << 62, 4], "float32", b"")}), "a has 0 bytes, unlike"),
    "no elements of 2^62 bytes": (packed({"a": extension(1, [1 << 60, 0], "float32", b"")}), "a has the shape"),
    "many axes of chunks": (
        pairs(
            (
                "a",
                pairs(
                    (flax_msgpack.CHUNKED, b"\xc3"),
                    ("shape", packed({f"{axis}": 2 - (axis > 0) for axis in range(70)})),
                    ("chunks", pairs(("0", ARRAY))),
                ),
            )
        ),
        "a has the shape",
    ),
    "many axes": (packed({"a": extension(1, [1] * 20, "float32", b"\0" * 4)}), "a has 20 axes"),
    "more in an array": (packed({"a": extension(1, [1], "float32", b"\0" * 4, 3)}), "a is not an array"),
    "bytes after an array": (
        packed({"a": msgpack.ExtType(1, packed(([1], "float32", b"\0" * 4)) + b"\0")}),
        "a has 4 bytes",
    ),
    "a name twice": (pairs(("a", ARRAY), ("a", ARRAY)), "a comes twice"),
    "one tensor twice": (pairs(("a", pairs(("scale", ARRAY), ("weight", ARRAY)))), "a/scale and a/weight are both a.weight"),
    "a path as a name": (pairs(("../../etc/passwd", ARRAY)), "names must be"),
    "a point in a name": (pairs(("a.b", ARRAY)), "names must be"),
    "a NUL in a name": (pairs(("a\0b", ARRAY)), "names must be"),
    "a long name": (pairs(("a" * 257, ARRAY)), "names must be"),
    "a number as a name": (packed({3: 4}), "a name in its first map is not a text"),
    "deep nesting": (b"\x81\xa1a" * 100_000, "maps inside each other"),
    "a long map": (b"\xdf\xff\xff\xff\xff", "it ends at 5 bytes"),
    "chunks without a shape": (packed({"a": {flax_msgpack.CHUNKED: True, "chunks": {}}}), "the chunks of a are not"),
    "a chunk that is none": (
        packed({"a": {flax_msgpack.CHUNKED: True, "shape": {"0": 1}, "chunks": {"0": 3}}}),
        "the chunks of a are not",
    ),
    "a chunk too few": (
        pairs(("a", pairs((flax_msgpack.CHUNKED, b"\xc3"), ("shape", b"\x81\xa10\x03"), ("chunks", pairs(("0", ARRAY)))))),
        "a has 2 elements, unlike its shape [3]",
    ),
    "chunks out of order": (
        pairs(
            (
                "a",
                pairs(
                    (flax_msgpack.CHUNKED, b"\xc3"), ("shape", b"\x81\xa10\x04"), ("chunks", pairs(("1", ARRAY), ("0", ARRAY)))
                ),
            )
        ),
        "the chunks of a are not",
    ),
}
"""Files, and a part of the message."""


@pytest.mark.parametrize("case", HOSTILE)
@pytest.mark.planted
def test_a_hostile_file_is_refused(case: str, tmp_path: Path) -> None:
    content, message = HOSTILE[case]
    (tmp_path / SINGLE).write_bytes(content)
    with pytest.raises(BadInput) as refusal:
        read_msgpack(tmp_path)
    assert str(refusal.value).startswith(f"{tmp_path / SINGLE}: ") and message in str(refusal.value), refusal.value
    assert len(str(refusal.value)) < 600 and "\n" not in str(refusal.value)


SMALL = serialized({"a/kernel": np.ones((2, 3), np.float32), "b/scale": np.arange(80, dtype=np.float16)})


@pytest.mark.planted(len(SMALL))
def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    for length in range(len(SMALL)):
        (tmp_path / SINGLE).write_bytes(SMALL[:length])
        with pytest.raises(BadInput, match=r"flax_model\.msgpack: (damaged msgpack|empty|not msgpack|a is|a/kernel)"):
            read_msgpack(tmp_path)


def test_a_changed_byte_is_refused_or_read(tmp_path: Path) -> None:
    """Nothing but `BadInput` leaves the reader, and what it reads has values; most bytes are values themselves."""
    generator = np.random.Generator(np.random.PCG64(3))
    for position in range(len(SMALL)):
        changed = bytearray(SMALL)
        changed[position] = generator.integers(256)
        (tmp_path / SINGLE).write_bytes(changed)
        try:
            tensors = read_msgpack(tmp_path)
        except BadInput:
            continue
        assert all(tensor.view().shape == tensor.shape for tensor in tensors.values())
