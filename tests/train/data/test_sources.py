"""Files and data sets of text: the same documents from each, and every fault named by file and row."""

import bz2
import gzip
import json
import lzma
import sys

import pytest

from tests.support.processes import ROOT, run_python
from train.config.data_options import TextData
from train.data import arrow, text_files
from train.data.sources import find_sources
from zoo.errors import BadInput, install_advice

TEXTS = ["one", "two\nlines \U0001f433", "drei grün"]
LINES = "".join(json.dumps({"id": i, "text": text}) + "\n" for i, text in enumerate(TEXTS)).encode()
PACKERS = {".gz": gzip.compress, ".xz": lzma.compress, ".bz2": bz2.compress}


def read(*paths, **options):
    data = TextData(paths=tuple(map(str, paths)), **options)
    return [(document.name, document.text) for source in find_sources(data.paths, data) for document in source.read()]


def refusal(*paths, **options):
    with pytest.raises(BadInput) as refused:
        read(*paths, **options)
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize("suffix", PACKERS)
def test_compressed_files_are_read_as_what_is_in_them(tmp_path, suffix, monkeypatch):
    monkeypatch.setattr(text_files, "READ_SIZE", 3)
    (tmp_path / f"a.jsonl{suffix}").write_bytes(PACKERS[suffix](LINES))
    parts = ("\ufeffgrün\r\n", "und \U0001f433")
    (tmp_path / f"b.TXT{suffix}").write_bytes(b"".join(PACKERS[suffix](part.encode()) for part in parts))
    assert [text for _, text in read(tmp_path / f"a.jsonl{suffix}")] == TEXTS
    assert read(tmp_path / f"b.TXT{suffix}") == [(f"b.TXT{suffix}", "grün\r\nund \U0001f433")]


@pytest.mark.parametrize("suffix", PACKERS)
def test_damaged_compressed_files_are_refused(tmp_path, suffix):
    whole, file = PACKERS[suffix](b"some text " * 999), tmp_path / f"a.txt{suffix}"
    for content, message in [
        (whole[:-9], "ends before its compressed data does"),
        (b"no such format", "cannot be"),
        (whole[: len(whole) // 2] + b"\xff\x00\xff" + whole[len(whole) // 2 + 3 :], "cannot be"),
        (b"", "ends before its compressed data does" if suffix != ".gz" else "holds no text"),
    ]:
        file.write_bytes(content)
        assert f"{file}: {message}" in refusal(file)


def test_an_xz_may_have_several_streams_and_not_ask_for_gigabytes(tmp_path):
    file = tmp_path / "a.txt.xz"
    file.write_bytes(lzma.compress(b"one ") + b"\0" * 8 + lzma.compress(b"two") + b"\0" * 4)
    assert read(file) == [("a.txt.xz", "one two")]
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 1 << 30}]
    file.write_bytes(lzma.compress(b"small", filters=filters))
    assert "a.txt.xz: cannot be decompressed (Memory usage limit exceeded)" in refusal(file)


@pytest.mark.parametrize("end", [" ", "\n", "\r", "\t", "\u3042\u3002", ""])
def test_a_text_streams_if_its_words_end(tmp_path, monkeypatch, end):
    monkeypatch.setattr(text_files, "READ_SIZE", 1000)
    monkeypatch.setattr("train.data.chunking.CHUNK", 100)
    monkeypatch.setattr("train.data.chunking.LONGEST_CHUNK", 3000)
    text = ("x" * 50 + "\u00e9" + end) * 200
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    if not end:
        assert "a.txt: 3,000 characters without the end of a word" in refusal(tmp_path / "a.txt")
        return
    (source,) = find_sources((f"{tmp_path}/a.txt",), TextData())
    pieces = list(source.read())
    assert "".join(piece.text for piece in pieces) == text
    assert max(len(piece.text) for piece in pieces) < 250
    assert [piece.last for piece in pieces] == [False] * (len(pieces) - 1) + [True]


def test_errors_far_into_a_text_name_line_and_byte(tmp_path, monkeypatch):
    monkeypatch.setattr(text_files, "READ_SIZE", 7)
    for bad, message in (
        (b"\0", "binary content (a NUL at byte 605)"),
        (b"\xff", "not UTF-8 (byte 605)"),
        (b"\xc3", "not UTF-8 ("),
    ):
        (tmp_path / "a.txt").write_bytes("grün\n".encode() * 100 + b"text " + bad)
        assert f"a.txt:101: {message}" in refusal(tmp_path / "a.txt")


@pytest.mark.parametrize("kind", ["string", "large_string"])
def test_parquet_is_a_document_a_row(tmp_path, kind):
    import pyarrow.parquet

    rows = [*TEXTS, "", *TEXTS] * 40
    content = pyarrow.table({"id": list(range(len(rows))), "body": pyarrow.array(rows, kind)})
    pyarrow.parquet.write_table(content, tmp_path / "a.parquet", row_group_size=100)
    found = read(tmp_path / "a.parquet", field="body")
    assert [text for _, text in found] == [text for text in rows if text]
    assert [name for name, _ in found[:4]] == ["a.parquet:1", "a.parquet:2", "a.parquet:3", "a.parquet:5"]


def test_parquet_faults_name_file_and_row_or_the_missing_library(tmp_path, monkeypatch):
    import pyarrow.parquet

    file = tmp_path / "a.parquet"
    buffers = [None, pyarrow.py_buffer(b"\0\0\0\0\2\0\0\0"), pyarrow.py_buffer(b"a\xff")]
    not_utf8 = pyarrow.Array.from_buffers(pyarrow.string(), 1, buffers)
    for content, message in [
        ({"body": ["a"], "id": [1]}, ': no column "text"; it has "body", "id": choose one with --data.field'),
        ({"text": [1], "body": ["a"]}, ': column "text" holds int64, not strings; it has "text", "body"'),
        ({"text": ["a"] * 70 + [None]}, ': row 71: column "text" holds null, not a string'),
        ({"text": not_utf8}, ': row 1: column "text" is not UTF-8 (byte 1)'),
        ({"text": ["", ""]}, ': holds no text in column "text"'),
    ]:
        pyarrow.parquet.write_table(pyarrow.table(content), file)
        assert f"{file}{message}" in refusal(file)
    whole = file.read_bytes()
    for content in (b"", b"PAR1 and nothing more", whole[:-20], whole[:30] + b"\xff" * 30 + whole[60:]):
        file.write_bytes(content)
        assert f"{file}: " in refusal(file)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    assert install_advice("data") in refusal(file)


def test_a_folder_is_its_files_by_name(tmp_path):
    for name in ("b/2.txt", "b/10.txt", "a.txt", "b/c/x.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(LINES)
    (tmp_path / ".hidden.pdf").touch()
    (tmp_path / "b" / ".git").mkdir()
    (tmp_path / "b" / ".git" / "config").touch()
    names = [name for name, _ in read(tmp_path)]
    assert names == ["a.txt", "b/10.txt", "b/2.txt", "b/c/x.jsonl:1", "b/c/x.jsonl:2", "b/c/x.jsonl:3"]


def test_files_that_cannot_be_read_in_a_folder_are_refused_by_name(tmp_path):
    folder = tmp_path / "data"
    (folder / "inside").mkdir(parents=True)
    assert f"{folder / 'inside'}: no files in it" in refusal(folder)
    (folder / "inside" / "README.md").touch()
    assert f"{folder / 'inside' / 'README.md'}: of no kind that can be read" in refusal(folder)
    (folder / "inside" / "README.md").rename(folder / "inside" / "README.txt")
    (folder / "inside" / "up").symlink_to(folder)
    assert f"{folder / 'inside' / 'up'}: a link to a folder" in refusal(folder)


def test_a_link_out_of_a_named_folder_is_refused_and_one_inside_it_is_read(tmp_path):
    (folder := tmp_path / "data" / "inside").mkdir(parents=True)
    (tmp_path / "data" / ".original.txt").write_text("a whale")
    (tmp_path / "secret.txt").write_text("a secret")
    (link := folder / "b.txt").symlink_to("../.original.txt")
    assert read(tmp_path / "data") == [("inside/b.txt", "a whale")]
    link.unlink()
    link.symlink_to("../../secret.txt")
    assert f"{link}: a link out of {tmp_path / 'data'}; name that file itself in --data.paths" in refusal(tmp_path / "data")
    assert read(link) == [("b.txt", "a secret")]
    link.unlink()
    link.symlink_to(link.name)
    assert f"{link}: " in refusal(folder) and f"{link}: no such file" in refusal(link)


@pytest.fixture(scope="module")
def datasets():
    import datasets

    datasets.disable_progress_bars()
    return datasets


def test_a_folder_of_a_data_set_is_its_rows(datasets, tmp_path):
    rows = datasets.Dataset.from_dict({"id": [1, 2, 3], "body": ["one", "", "three \U0001f433"]})
    one, several = tmp_path / "one", tmp_path / "several"
    rows.save_to_disk(one, num_shards=2)
    # Saved as chosen and sorted: the files behind it hold other rows.
    datasets.DatasetDict(train=rows.select([2, 0]), test=rows).save_to_disk(several)
    assert read(one, field="body") == [("one:1", "one"), ("one:3", "three \U0001f433")]
    assert [text for _, text in read(several, field="body")] == ["three \U0001f433", "one"]
    assert [text for _, text in read(several, field="body", split="test")] == ["one", "three \U0001f433"]
    assert 'one: no column "text"; it has "id", "body": choose one with --data.field' in refusal(one)
    assert 'several: no split dev; it has "train", "test": choose one with --data.split' in refusal(several, split="dev")
    assert "--data.split dev: " in refusal(one, split="dev")
    with pytest.raises(BadInput, match=r"--data\.split train\[:10%\]: give its name only"):
        TextData(split="train[:10%]")
    (tmp_path / "dataset_info.json").write_text("{")
    assert f"{tmp_path}: cannot be loaded" in refusal(tmp_path)


@pytest.mark.planted(3)
def test_a_table_with_more_references_than_text_is_refused(tmp_path, monkeypatch):
    """The text is in the file once, and the documents would be 100 MB."""
    import pyarrow
    import pyarrow.ipc
    import pyarrow.parquet

    values = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 3000, pyarrow.int32()), pyarrow.array(["a whale " * 4000]))
    columns = pyarrow.table({"text": values})
    pyarrow.parquet.write_table(columns, file := tmp_path / "a.parquet", compression="zstd")
    assert file.stat().st_size < 10_000
    message = f"{file}: unpacks to more than 1,000 times its size, which no text does; write it uncompressed"
    assert refusal(file) == message
    with pytest.raises(BadInput) as refused:
        sum(len(row["text"]) for row in arrow.read_parquet_rows(file))
    assert str(refused.value) == message
    with pyarrow.OSFile(str(tmp_path / "a.arrow"), "wb") as out, pyarrow.ipc.new_stream(out, columns.schema) as stream:
        stream.write_table(columns)
    with pytest.raises(BadInput, match="b: unpacks to more than"):
        sum(len(document.text) for document in arrow.arrow_streams([tmp_path / "a.arrow"], "b", "text"))
    monkeypatch.setattr(text_files, "MOST_UNCHECKED", 1 << 30)
    assert sum(len(text) for _, text in read(file)) == 3000 * 32_000


@pytest.mark.planted(7)
def test_a_data_set_of_other_files_or_types_is_refused_in_one_line(datasets, tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    for folder in (one, other):
        datasets.Dataset.from_dict({"text": ["one", "a secret"]}).save_to_disk(folder)
    state = json.loads((one / "state.json").read_text())
    (outside,) = other.glob("*.arrow")
    for files in ([{"filename": f"../other/{outside.name}"}], [{"filename": str(outside)}]):
        (one / "state.json").write_text(json.dumps({**state, "_data_files": files}))
        assert f"{one}: its files name " in (line := refusal(one)) and "outside of it; name that data set itself" in line
    for files in ([], [{}], 3, [[]]):
        (one / "state.json").write_text(json.dumps({**state, "_data_files": files}))
        assert f"{one}: cannot be loaded (" in refusal(one)
    (one / "state.json").write_text("[" * 100_000)
    assert f"{one}: cannot be loaded (" in refusal(one)


def test_the_hub_is_read_from_the_cache_without_a_network(datasets, tmp_path, monkeypatch):
    (tmp_path / "a.json").write_text(json.dumps({"text": "cached"}))
    builder = datasets.load_dataset_builder("json", data_files=f"{tmp_path}/a.json", cache_dir=str(tmp_path))
    builder.dataset_name = "my_name"
    builder.download_and_prepare(str(tmp_path / "cache" / "some-Org___my_name" / "default" / "0.0.0" / "hash"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    assert read("hub:some-Org/MyName") == [("some-Org/MyName:1", "cached")]
    assert read("hub:some-Org/my_name", subset="default") == [("some-Org/my_name:1", "cached")]
    assert 'no split test; it has "train"' in refusal("hub:some-Org/MyName", split="test")
    for name in ("hub:", "hub:name", "hub:../x", "hub:a/b/c", "hub:a b/c"):
        assert "not a hub id; write hub:ORGANISATION/NAME" in refusal(name)
    assert "for config 'other' Available configs in the cache: ['default']" in refusal("hub:some-Org/MyName", subset="other")


@pytest.mark.parametrize(("offline", "message"), [("0", "the hub does not answer"), ("1", "HF_HUB_OFFLINE forbids the download")])
def test_a_hub_out_of_reach_is_reported_without_importing_datasets(offline, message):
    """In a new process, with its own settings of the library; no server answers at port 9."""
    child = (
        "import sys; from train.config.data_options import TextData; from train.data.sources import find_sources\n"
        "from zoo.errors import BadInput\n"
        "try: find_sources(('hub:no-organisation/nothing',), TextData())\n"
        "except BadInput as error: print(error)\n"
        "assert 'datasets' not in sys.modules"
    )
    environment = {"HF_HUB_OFFLINE": offline, "HF_ENDPOINT": "http://127.0.0.1:9"}
    done = run_python("-c", child, env=environment, cwd=ROOT)
    assert done.stdout.startswith("hub:no-organisation/nothing: not in the local cache, and ") and message in done.stdout
    assert done.code == 0, done.stderr
