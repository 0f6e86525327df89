"""Formats of quantized weights that are not read, known by their tensors; a config.json often names them too."""

from collections.abc import Iterable
from pathlib import Path

from zoo.errors import BadInput

ENDINGS = {
    **dict.fromkeys((".qweight", ".qzeros"), "GPTQ or AWQ"),
    **dict.fromkeys((".absmax", ".quant_map", ".SCB"), "bitsandbytes"),
    **dict.fromkeys((".weight_packed", ".weight_shape"), "compressed-tensors"),
    **dict.fromkeys((".weight_scale_inv", ".weight_scale"), "fp8"),
}
"""Maps the end of the name of a tensor that only one format has to the name of the format."""


def refuse_quantized(names: Iterable[str], folder: Path) -> None:
    """Refuse the tensors of a folder if they are those of a quantized format in `ENDINGS`.

    Raises:
        BadInput: names a tensor and the format.
    """
    for name in names:
        if (ending := f".{name.rpartition('.')[2]}") in ENDINGS:
            why = "a format of quantized weights, which is not read; use the original weights"
            raise BadInput(f"{folder}: {name} is a tensor of {ENDINGS[ending]}, {why}")
