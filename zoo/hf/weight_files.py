"""The files of weights in a published folder, in any format that is read: safetensors, or the msgpack of `transformers`' Flax."""

from pathlib import Path

from zoo.hf import flax_msgpack, safetensors_dir
from zoo.hf.safetensors_dir import Tensor


def read_tensors(folder: Path) -> tuple[dict[str, Tensor], list[str]]:
    """Return (every tensor of a folder by its published name, a line for a file that is not read because of another).

    Raises:
        BadInput: see `safetensors_dir.read_safetensors` and `flax_msgpack.read_msgpack`.
    """
    msgpack = [name for name in (flax_msgpack.SINGLE, flax_msgpack.INDEX) if (folder / name).exists()]
    if any((folder / name).exists() for name in (safetensors_dir.SINGLE, safetensors_dir.INDEX)) or not msgpack:
        lines = [f"{folder}: contains safetensors and {name}; the safetensors are read" for name in msgpack]
        return safetensors_dir.read_safetensors(folder), lines
    return flax_msgpack.read_msgpack(folder), []
