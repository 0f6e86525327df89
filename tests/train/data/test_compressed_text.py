"""Compressed text of which a few bytes stand for gigabytes ends with an error; ordinary text does not."""

import bz2
import gzip
import lzma
from collections.abc import Callable
from pathlib import Path

import pytest

from train.data import text_files
from zoo.errors import BadInput

COMPRESS: dict[str, Callable[[bytes], bytes]] = {".gz": gzip.compress, ".xz": lzma.compress, ".bz2": bz2.compress}


@pytest.mark.planted
@pytest.mark.parametrize("suffix", COMPRESS)
def test_text_that_unpacks_to_a_thousand_times_its_size_is_refused(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_files, "MOST_UNCHECKED", 1 << 20)
    monkeypatch.setattr(text_files, "LARGEST_RATIO", 100)
    file, line = tmp_path / f"a.txt{suffix}", b"a line\n"
    file.write_bytes(COMPRESS[suffix](line * 140_000))
    assert sum(1 for _ in text_files.decoded_lines(file)) == 140_000
    file.write_bytes(COMPRESS[suffix](line * 2_000_000))
    message = "unpacks to more than 100 times its size, which no text does; write it uncompressed"
    sizes: list[int] = []
    with pytest.raises(BadInput, match=message) as refusal:
        sizes.extend(len(chunk.text) for chunk in text_files.read_plain_text(file, "a"))
    assert str(refusal.value).startswith(f"{file}: ") and sum(sizes) <= (1 << 20) + 100 * file.stat().st_size
    with pytest.raises(BadInput, match=message):
        text_files.read_whole(file)


def test_several_parts_of_a_compressed_file_are_one_text(tmp_path: Path) -> None:
    for suffix, compress in COMPRESS.items():
        (tmp_path / f"a{suffix}").write_bytes(compress(b"one\n") + compress(b"two\n"))
        assert [text for _, text in text_files.decoded_lines(tmp_path / f"a{suffix}")] == ["one\n", "two\n"]
