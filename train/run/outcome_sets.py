"""The file outcomes.npz as the sets of items in it, without numpy: a command line reads none of their numbers.

See `train.run.item_outcomes` for what a set has.
"""

import io
import lzma
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

from train.run.run_dir import replace_atomically
from zoo.errors import cannot_write

LARGEST_FILE, LARGEST_UNPACKED = 256 << 20, 512 << 20
"""Bytes of the largest file, and of all its arrays: those of a million items have about 200 MB."""
DAMAGE = (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, RuntimeError)
"""Errors of reading a damaged file of arrays."""


def parse_sets(content: bytes) -> dict[str, dict[str, bytes]]:
    """Return the sets of items in the content of an outcomes.npz: name -> field -> the content of the array's .npy file.

    Those of a damaged file count as absent.
    """
    sets: dict[str, dict[str, bytes]] = {}
    try:
        for member, array in unpack_outcomes(content).items():
            name, _, field = member.rpartition("/")
            sets.setdefault(name, {})[field] = array
    except DAMAGE:
        return {}
    return sets


def unpack_outcomes(content: bytes) -> dict[str, bytes]:
    """Return the content of each array's .npy file in an outcomes.npz, by NAME/FIELD, after adding up the sizes that it declares.

    Raises:
        ValueError: the arrays are larger than `LARGEST_UNPACKED` bytes together; a few MB can declare any size.
        Exception: another one of `DAMAGE`.
    """
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        if (total := sum(member.file_size for member in file.infolist())) > LARGEST_UNPACKED:
            raise ValueError(f"it unpacks to {total:,} bytes; at most {LARGEST_UNPACKED:,} are read")
        # No member yields more bytes than it declares.
        return {member.filename.removesuffix(".npy"): file.read(member) for member in file.infolist()}


def write_sets(path: Path, sets: Mapping[str, Mapping[str, bytes]]) -> None:
    """Write an outcomes.npz from the sets that `parse_sets` returns, in place of an earlier one.

    Raises:
        BadInput: the file cannot be written.
    """
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as file:
        for name, arrays in sets.items():
            for field, array in arrays.items():
                file.writestr(f"{name}/{field}.npy", array)
    write_outcomes_file(path, content.getvalue())


def write_outcomes_file(path: Path, content: bytes) -> None:
    """Write an outcomes.npz in place of an earlier one.

    Raises:
        BadInput: the file cannot be written.
    """
    try:
        with replace_atomically(path) as file:
            file.write(content)
    except OSError as error:
        raise cannot_write(path, error) from None
