"""Outcomes of items come back as they were written, set by set, and a damaged file is refused."""

import io
import lzma
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from train.run import outcome_sets
from train.run.item_outcomes import Outcomes, read_outcomes, write_outcomes
from train.run.run_dir import RunDir
from zoo.errors import BadInput


def outcomes(*right: float) -> Outcomes:
    return Outcomes.of([f"folder/a.tsv:{n // 2}" for n in range(len(right))], np.array(right), np.full(len(right), np.nan))


@pytest.mark.planted
def test_each_set_of_items_is_replaced_alone(tmp_path: Path) -> None:
    folder = RunDir(tmp_path)
    for name, values in (("blimp", (1.0, 0.5, 0.0)), ("labelled:sst2 (first 2)", (1.0,)), ("blimp", (0.0, 0.5))):
        write_outcomes(folder, name, outcomes(*values))
    blimp, labelled = (read_outcomes(folder, name) for name in ("blimp", "labelled:sst2 (first 2)"))
    assert blimp.id == ("a.tsv:0", "a.tsv:0 (2)") and blimp.right.tolist() == [0.0, 0.5]
    assert blimp.count.tolist() == [1, 1] and np.isnan(blimp.nats).all() and labelled.right.tolist() == [1.0]
    # Contributions to BLEU are there only if they were computed, and go with their set.
    assert blimp.bleu is None
    write_outcomes(folder, "text", Outcomes.of(["a:1", "a:2"], np.zeros(2), np.zeros(2), bleu=np.array([10.0, 30.0])))
    scored = read_outcomes(folder, "text")
    assert scored.bleu is not None and scored.bleu.tolist() == [10.0, 30.0]
    write_outcomes(folder, "text", outcomes(1.0))
    assert read_outcomes(folder, "text").bleu is None
    outcome_sets.write_sets(
        folder.outcomes,
        {name: outcome_sets.parse_sets(folder.outcomes.read_bytes())[name] for name in ("blimp", "labelled:sst2 (first 2)")},
    )
    with pytest.raises(BadInput, match=r"no outcomes of lambada \(it has blimp, labelled:sst2 \(first 2\)\); score the run"):
        read_outcomes(folder, "lambada")
    folder.outcomes.write_bytes(folder.outcomes.read_bytes()[:-20])
    for act in (lambda: read_outcomes(folder, "blimp"), lambda: write_outcomes(folder, "blimp", blimp)):
        with pytest.raises(BadInput, match=r"outcomes\.npz is not a file of arrays .*; remove it, and score the run again"):
            act()


@pytest.mark.planted
@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_sets_of_a_file_with_any_changed_byte_count_as_absent(method: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A damaged header may name any method of compression; an error that is not in `DAMAGE` is noticed."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        archive.writestr("blimp/id.npy", b"abcdefgh" * 4)
    content = file.getvalue()

    def parse_changed() -> None:
        for place, byte in enumerate(content):
            outcome_sets.parse_sets(content[:place] + bytes([byte ^ 0x55]) + content[place + 1 :])

    assert outcome_sets.parse_sets(content) == {"blimp": {"id": b"abcdefgh" * 4}}
    parse_changed()
    # Its checksum is wrong where nothing else is.
    removed = lzma.LZMAError if method == zipfile.ZIP_LZMA else zipfile.BadZipFile
    monkeypatch.setattr(outcome_sets, "DAMAGE", tuple(error for error in outcome_sets.DAMAGE if error is not removed))
    with pytest.raises(removed):
        parse_changed()


def npy(header: str, data: bytes = b"") -> bytes:
    """Return a .npy file with any header."""
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header) + 1) + header.encode() + b"\n" + data


def of_zip(members: dict[str, bytes]) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as file:
        for name, member in members.items():
            file.writestr(name, member)
    return content.getvalue()


HEADER = "{'descr': '%s', 'fortran_order': False, 'shape': %s}"
HOSTILE = {
    "a declared terabyte": (npy(HEADER % ("<f8", f"({1 << 37},)")), "0 bytes for 137,438,953,472 items"),
    "objects": (npy(HEADER % ("|O", "(1,)"), b"\0" * 8), "an array of object"),
    "complex numbers": (npy(HEADER % ("<c16", "(1,)"), b"\0" * 16), "an array of complex128"),
    "long names": (npy(HEADER % ("<U99999999", "(0,)")), "expected one of texts or numbers"),
    "two axes": (npy(HEADER % ("<f8", "(1, 1)"), b"\0" * 8), "with 2 axes"),
    "a negative size": (npy(HEADER % ("<f8", "(-1,)"), b"\0" * 8), "-1 items"),
    "code as a header": (npy("__import__('os').abort()"), "is not a file of arrays"),
    "no array": (b"text", "is not a file of arrays"),
}
"""Content of a member, and a part of the message."""


@pytest.mark.planted
@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_array_is_refused_before_it_takes_memory(case: str, tmp_path: Path) -> None:
    member, message = HOSTILE[case]
    folder = RunDir(tmp_path)
    folder.outcomes.write_bytes(of_zip({"blimp/id.npy": member}))
    with pytest.raises(BadInput, match=r"outcomes\.npz is not a file of arrays") as refusal:
        read_outcomes(folder, "blimp")
    assert message in str(refusal.value) and "\n" not in str(refusal.value)


@pytest.mark.planted
def test_a_file_that_unpacks_to_gigabytes_is_refused_by_its_headers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, content = RunDir(tmp_path), of_zip({f"blimp/{name}.npy": bytes(1 << 20) for name in ("id", "right")})
    folder.outcomes.write_bytes(content)
    assert len(content) < 1 << 13
    monkeypatch.setattr(outcome_sets, "LARGEST_UNPACKED", (2 << 20) - 1)
    monkeypatch.setattr(zipfile.ZipFile, "read", pytest.fail)
    with pytest.raises(BadInput, match="it unpacks to 2,097,152 bytes; at most 2,097,151 are read"):
        read_outcomes(folder, "blimp")
    assert outcome_sets.parse_sets(content) == {}


@pytest.mark.planted(2)
def test_a_set_without_all_arrays_is_refused(tmp_path: Path) -> None:
    folder = RunDir(tmp_path)
    write_outcomes(folder, "blimp", outcomes(1.0, 0.5))
    sets = outcome_sets.parse_sets(folder.outcomes.read_bytes())
    short = npy(HEADER % ("<f8", "(1,)"), bytes(8))
    for change, message in (({"right": short}, "different lengths"), ({"right": sets["blimp"]["id"]}, "no blimp/right")):
        outcome_sets.write_sets(folder.outcomes, {"blimp": sets["blimp"] | change})
        with pytest.raises(BadInput, match=message):
            read_outcomes(folder, "blimp")
