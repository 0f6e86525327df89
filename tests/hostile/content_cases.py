"""JSON, numbers and compressed files that no program writes: bombs, wrong types, and values that mean something else."""

import functools
import gzip
import io
import json
import lzma
import math
import zipfile
from collections.abc import Callable
from typing import Any

from tests.hostile.case_types import READ_RUN, Case, Place, edit, forge_manifest, replace, step_of
from tests.hostile.code_cases import config
from tests.hostile.path_cases import FILES

DEEP = 100_000
TEXTS: dict[str, bytes] = {
    "deep lists": b"[" * DEEP,
    "deep objects": b'{"a":' * DEEP + b"1" + b"}" * DEEP,
    "a number of 5,000 digits": b'{"step": ' + b"9" * 5000 + b"}",
    "a list": b"[1, 2]",
    "null": b"null",
    "a text": b'"text"',
    "invalid UTF-8": b'{"a": "\xff\xfe"}',
    "a byte order mark": b"\xef\xbb\xbf{}",
    "nothing": b"",
    "zeros": bytes(1000),
    "a key twice": b'{"a": 1, "a": 2}',
    "wide": b"{" + b",".join(b'"%d":%d' % (i, i) for i in range(200_000)) + b"}",
}
EVERYWHERE = ("deep lists", "a number of 5,000 digits", "a list", "invalid UTF-8")
"""Texts that every file is replaced by; the others replace config.json."""
NUMBERS: dict[str, Any] = {"1e999": "1e999", "-1": "-1", "1e18": "1000000000000000000"}
RUN_NUMBERS = ("model.layers", "model.width", "model.vocab", "model.context")
RUN_NUMBERS += ("data.batch", "data.length", "steps", "seed", "optim.lr")
MODEL_NUMBERS = ("n_layer", "n_embd", "n_head", "vocab_size", "n_positions", "n_inner", "layer_norm_epsilon")


def content(name: str, text: bytes) -> Callable[[Place], None]:
    """Return a function that writes a file of the argument; one of rows ends with a line end, without which a row was cut off."""
    return lambda place: replace(place.folder / name, text + b"\n" if name.endswith(".jsonl") else text)


def number(file: str, key: str, text: str) -> Callable[[Place], None]:
    """Return a function that sets a number of a JSON file to any text."""

    def write(place: Place) -> None:
        edit(place.folder / file, **{key.replace(".", "__"): "NUMBER"})
        raw = (place.folder / file).read_text()
        (place.folder / file).write_text(raw.replace('"NUMBER"', text))

    return write


def row(name: str, **values: Any) -> Callable[[Place], None]:
    """Return a function that adds a row to a file of rows."""

    def write(place: Place) -> None:
        with (place.folder / name).open("a") as file:
            file.write(json.dumps(values) + "\n")

    return write


def manifest(change: Callable[[dict[str, Any]], Any]) -> Callable[[Place], None]:
    """Return a function that forges the manifest of the newest checkpoint."""
    return lambda place: forge_manifest(step_of(place.folder), change)


def _set(key: str = "", **values: Any) -> Callable[[dict[str, Any]], None]:
    """Return a function that sets values of an object, or of the object that it has under a key."""
    return lambda content: (content[key] if key else content).update(values)


def _array_header(header: bytes) -> bytes:
    """Return the beginning of a file of numpy with a header."""
    return b"\x93NUMPY\x01\x00" + (len(header) + 1).to_bytes(2, "little") + header + b"\n"


@functools.cache
def zeros_npz(gigabytes: int = 2) -> bytes:
    """Return an archive of arrays that unpacks to some GB of zeros."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("id", "right", "nats", "count"):
            with archive.open(f"perplexity/{name}.npy", "w", force_zip64=True) as file:
                header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (%d,), }" % (gigabytes << 27)
                file.write(_array_header(header))
                for _ in range(gigabytes << 4 if name == "id" else 0):
                    file.write(bytes(1 << 26))
    return stream.getvalue()


def _huge_array(place: Place) -> None:
    """Claim a shape of 2**60 elements in an archive without data."""
    with zipfile.ZipFile(place.folder / "outcomes.npz", "w") as archive:
        for name in ("id", "right", "nats", "count"):
            header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (%d,), }" % (1 << 60)
            archive.writestr(f"perplexity/{name}.npy", _array_header(header))


@functools.cache
def _gzip_member() -> bytes:
    # The most that the format can: 1,029 times the size.
    return gzip.compress(b"a" * ((1 << 24) - 1) + b"\n", 9)


@functools.cache
def _xz_member() -> bytes:
    return lzma.compress(b"a whale\n" * (1 << 21), preset=0)


def packed(name: str, member: Callable[[], bytes], count: int) -> Callable[[Place], None]:
    """Return a function that writes a compressed text of `count` members of 16 MB."""
    return lambda place: replace(place.folder / name, member() * count)


def _long_line(place: Place) -> None:
    replace(place.folder / "lines.jsonl", b'{"text": "' + b"x" * (300 << 20) + b'"}\n')


def _parquet(place: Place) -> None:
    """Write a table whose rows are a single text, by reference."""
    import pyarrow
    import pyarrow.parquet

    indices = pyarrow.array([0] * 3_000_000, pyarrow.int32())
    values = pyarrow.DictionaryArray.from_arrays(indices, pyarrow.array(["a whale " * 4000]))
    pyarrow.parquet.write_table(pyarrow.table({"text": values}), place.folder / "rows.parquet", compression="zstd")
    (place.folder / "book.txt").unlink()


def _arrow_elsewhere(place: Place) -> None:
    """Write a data set of `datasets` whose file is in another folder."""
    features = {"text": {"dtype": "string", "_type": "Value"}}
    state = {"_data_files": [{"filename": "../../outside/notes.txt"}], "_fingerprint": "0", "_format_type": None, "_split": None}
    replace(place.folder / "dataset_info.json", json.dumps({"features": features}))
    replace(place.folder / "state.json", json.dumps(state))


WRONG_TYPES = b'{"a": {"metrics": {"loss": 1}, "examples": "x", "step": [], "fingerprint": 3, "tokenizer": 4, "per_token": 5}}'
LONG = b"1" + b"0" * 400
LONG_RESULT = b'{"a": {"metrics": {"loss": %s}, "examples": 1}}' % LONG
TRAVERSAL = {"../../../../../home/.ssh/id_rsa": {"size": 30, "sha256": "x"}}
FOREIGN = {"config": 3, "tokenizer": 4, "parents": 5, "counts": 6}
COMPARED = ("compare",)
"""The command that reads the results of a run."""
STARTED = {"step": 0, "at": 1.0, "facts": {}, "versions": {}, "spent_step": 0, "began": 1.0, "restart": 0.0}
"""A row of starts.jsonl without the seconds that it spent."""
SPENT: dict[str, Any] = {
    **{"a text": "1", "a list": [1.0], "no number": {"steps": math.nan}, "infinite": {"steps": math.inf}},
    **{"negative": {"steps": -1.0}, "nested": {"steps": {"steps": 1.0}}, "huge": {"steps": 1e300}, "null": {"steps": None}},
    **{"a number of 400 digits": {"steps": 10**400}, "true": {"steps": True}},
}
"""Seconds by category as no run records them."""
CASES = [
    *(
        Case(f"{name}: {what}", "formats", kind, content(name, text), readers)
        for kind, files in FILES.items()
        for name, readers in files.items()
        for what, text in TEXTS.items()
        if name.endswith((".json", ".jsonl")) and (what in EVERYWHERE or name == "config.json")
    ),
    *(
        Case(f"{key} {what} (run)", "limits", "run", number("config.json", key, text))
        for key in RUN_NUMBERS
        for what, text in NUMBERS.items()
    ),
    *(
        Case(f"{key} {what} (weights)", "limits", "model", number("config.json", key, text))
        for key in MODEL_NUMBERS
        for what, text in NUMBERS.items()
    ),
    *(
        Case(f"rank of an adapter {what}", "limits", "adapter", number("adapter_config.json", "r", text))
        for what, text in NUMBERS.items()
    ),
    Case("1e9 labels", "limits", "classifier", config(num_labels=10**9, id2label=None)),
    Case("metrics: no tokens", "formats", "run", row("metrics.jsonl", kind="train", step=2), COMPARED),
    Case("metrics: tokens are a text", "formats", "run", row("metrics.jsonl", kind="train", step=2, tokens="x"), COMPARED),
    Case("metrics: step 0", "formats", "run", row("metrics.jsonl", kind="train", step=0, tokens=5), COMPARED),
    Case("metrics: kind is a list", "formats", "run", row("metrics.jsonl", kind=[1], step=2), ()),
    Case("starts: flops are a text", "formats", "run", row("starts.jsonl", step=0, flops="x"), COMPARED),
    Case("starts: provenance is a list", "formats", "run", row("starts.jsonl", step=0, provenance=[1], flops=1.0), COMPARED),
    Case("starts: versions are a text", "formats", "run", row("starts.jsonl", step=0, versions="x", flops=1.0), COMPARED),
    *(
        Case(f"starts: spent is {what}", "formats", "run", row("starts.jsonl", **STARTED, spent=spent), COMPARED)
        for what, spent in SPENT.items()
    ),
    Case(
        "starts: spent, and no step", "formats", "run", row("starts.jsonl", **STARTED | {"spent_step": None}, spent={}), COMPARED
    ),
    Case("evaluations: wrong types", "formats", "run", content("evaluations.json", WRONG_TYPES), COMPARED),
    Case("evaluations: number of 400 digits", "formats", "run", content("evaluations.json", LONG_RESULT), COMPARED),
    Case("scores: number of 400 digits", "formats", "run", content("scores.json", b'{"loss": %s, "tokens": 5}' % LONG), COMPARED),
    Case("manifest: other fields", "formats", "run", manifest(_set(evil=1)), ()),
    Case("manifest: no files", "formats", "run", manifest(_set(files=[])), READ_RUN),
    Case("manifest: file without a size", "formats", "run", manifest(_set("files", _METADATA={"sha256": "x"})), READ_RUN),
    Case("manifest: file elsewhere", "reads", "run", manifest(_set("files", **TRAVERSAL)), READ_RUN),
    Case("manifest: no metadata", "formats", "run", manifest(_set(meta={})), READ_RUN),
    Case("manifest: metadata of wrong types", "formats", "run", manifest(_set("meta", **FOREIGN)), READ_RUN),
    Case("manifest: counts of wrong types", "formats", "run", manifest(_set("meta", counts={"input_tokens": "x"})), ()),
    Case("manifest: leaves of wrong types", "formats", "run", manifest(_set(leaves={"params": 3})), READ_RUN),
    Case("manifest: another format", "formats", "run", manifest(_set(format="x" * 1000)), READ_RUN),
    Case("outcomes.npz of 2 GB", "limits", "run", lambda place: replace(place.folder / "outcomes.npz", zeros_npz()), ()),
    Case("outcomes.npz of 2**60 numbers", "limits", "run", _huge_array, ()),
    Case("text of 2 GB in .gz", "limits", "text", packed("more.txt.gz", _gzip_member, 128)),
    Case("lines of 100 GB in .gz", "limits", "text", packed("more.jsonl.gz", _gzip_member, 6400)),
    Case("text of 3 GB in .xz", "limits", "text", packed("more.txt.xz", _xz_member, 200)),
    Case("line of 300 MB", "limits", "text", _long_line),
    Case("table of 100 GB in .parquet", "limits", "text", _parquet),
    Case("data set with files elsewhere", "reads", "text", _arrow_elsewhere),
    Case("examples of 100 GB in .gz", "limits", "examples", packed("rows.jsonl.gz", _gzip_member, 6400), ()),
]
