"""Damage safetensors and index files at random and read them: `python -m tests.support.fuzz_weights SEED COUNT`."""

import json
import resource
import sys
import tempfile
from pathlib import Path

import numpy as np

from tests.support import published
from zoo import published_weights
from zoo.errors import BadInput
from zoo.hf import safetensors_dir

NUMBERS = (b"0", b"-1", b"1e9", b"4294967296", b"18446744073709551615", b"NaN", b"null", b"[]", b'""', b"true")
PARTS = (b"{", b"}", b"[", b"]", b",", b":", b'"', b"\\", b"\\u0000", b"../", b"\xff", b"\0", b'"F64"', b'"wte.weight":')


def mutate(raw: bytes, rng: np.random.Generator) -> bytes:
    """One to four changes of the kinds that make a parser stumble, most of them where the header is."""
    data = bytearray(raw)
    for _ in range(rng.integers(1, 5)):
        header = min(len(data), 8 + int.from_bytes(raw[:8], "little")) if raw[8:9] == b"{" else len(data)
        at = int(rng.integers(0, max(1, header if rng.random() < 0.8 else len(data))))
        match rng.integers(0, 8):
            case 0:
                data[at : at + 1] = bytes([int(rng.integers(256))])
            case 1:
                del data[at : at + int(rng.integers(1, 40))]
            case 2:
                data[at:at] = rng.choice(PARTS)
            case 3:
                data[at:at] = bytes(data[at : at + int(rng.integers(1, 200))])
            case 4:
                del data[at:]
            case 5:
                data[:8] = int(rng.integers(0, 1 << 62) >> rng.integers(0, 62)).to_bytes(8, "little")
            case 6:
                digits = [i for i in range(8, header) if 48 <= data[i] < 58] or [0]
                chosen = int(rng.choice(digits))
                data[chosen : chosen + 1] = rng.choice(NUMBERS)
            case 7:
                data += bytes(data[at : at + 64])
    return bytes(data)


def main(seed: int, count: int) -> dict[str, int]:
    rng = np.random.default_rng(seed)
    told = {"refused": 0, "read": 0}
    with tempfile.TemporaryDirectory() as made:
        one, many = Path(made, "one"), Path(made, "many")
        published.write(one, published.GPT2)
        published.write(many, published.GPT2, sharded=True)
        cfg, _ = published_weights.read_config(one)
        files = [one / safetensors_dir.SINGLE, many / safetensors_dir.INDEX, many / published.file(0)]
        originals = {file: file.read_bytes() for file in files}
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for number in range(count):
            file = files[number % len(files)]
            file.write_bytes(mutate(originals[file], rng))
            try:
                published_weights.plan_import(cfg, safetensors_dir.read_safetensors(file.parent), file.parent)
                told["read"] += 1
            except BadInput as refusal:
                if "\n" in str(refusal) or len(str(refusal)) > 1000:
                    raise ValueError(f"not one short line: {refusal}") from refusal
                told["refused"] += 1
            file.write_bytes(originals[file])
        told["grown_kb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return told


if __name__ == "__main__":
    print(json.dumps(main(int(sys.argv[1]), int(sys.argv[2]))))
