"""Sums of two numbers, a small task on which learning from rewards can be seen within minutes."""

import json
import random
from pathlib import Path

from zoo.errors import BadInput, cannot_write
from zoo.file_access import open_new, read_regular

NUMBERS = 100
"""Both numbers are below this: there are NUMBERS**2 sums."""
SHARES = {"supervised.jsonl": 1_500, "prompts.jsonl": 7_500, "held_out.jsonl": 1_000}
"""Number of sums in each file."""


def arithmetic_sums() -> dict[str, str]:
    """Return the content of each file: all sums of two numbers below 100 in a fixed random order, each in one file.

    A line is {"prompt": "07+95=", "completion": "201"}. The answer begins with its lowest digit, since a model that writes from
    left to right then has each carry before it needs it. All prompts have one length, as have all answers.
    """
    pairs = [(a, b) for a in range(NUMBERS) for b in range(NUMBERS)]
    random.Random(0).shuffle(pairs)
    lines = [json.dumps({"prompt": f"{a:02}+{b:02}=", "completion": f"{a + b:03}"[::-1]}) + "\n" for a, b in pairs]
    contents, first = {}, 0
    for name, count in SHARES.items():
        contents[name] = "".join(lines[first : first + count])
        first += count
    return contents


def write_sums(folder: Path) -> None:
    """Write the files into a folder, which is made if it is missing; files that have this content already stay as they are.

    Raises:
        BadInput: the folder has another file of one of these names, or cannot be written.
    """
    if folder.exists() and not folder.is_dir():
        raise BadInput(f"{folder}: is a file; name a folder")
    missing = {}
    for name, content in arithmetic_sums().items():
        if not (file := folder / name).exists():
            missing[name] = content
        elif not file.is_file() or read_regular(file, 1 << 30) != content.encode():
            raise BadInput(f"{file}: it has other content than the sums; name another folder, or remove the file")
    for name, content in missing.items():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with open_new(folder / name) as (partial, file):
                file.write(content.encode())
                file.flush()
                partial.replace(folder / name)
        except OSError as error:
            raise cannot_write(folder, error) from None
