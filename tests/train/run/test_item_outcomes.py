"""Outcomes of items come back as they were written, set by set, and a damaged file is refused."""

import io
import lzma
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
