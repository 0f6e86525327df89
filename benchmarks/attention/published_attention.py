"""Published times of attention kernels, and the requests and implementations of the zoo that they correspond to by form."""

import dataclasses
import hashlib
import re
from collections.abc import Iterable
from pathlib import Path

from benchmarks.core.published_rows import read_published_rows
from zoo.attention.attention import IMPLEMENTATIONS
from zoo.attention.kernels import flash_gpu
from zoo.attention.request import Request
from zoo.errors import BadInput

DEVICES = {
    "tpu_v5": ("tpu", "TPU v5p"),
    "tpu_v6_lite": ("tpu", "TPU v6e"),
    "tpu7x": ("tpu", "TPU7x"),
    "nvidia_h100_80gb_hbm3": ("gpu", "NVIDIA H100"),
}
"""Device of a row -> platform and the name of the device in `zoo.attention.auto`."""
FORMS = {
    "dot_product_attention": "xla",
    "xla_chunked_dot_product_attention": "blocked",
    "jax_nn_dot_product_attention": "cudnn",
    "pallas_mosaic_tpu_flash_attention": "splash",
    "pallas_triton_flash_attention": "flash_gpu",
    "pallas_mosaic_gpu_flash_attention": "",
}
"""Published implementation -> the zoo's of the same form; "": there is none. (`tokamax` of the zoo is the last one, where it is
installed; `auto` does not use it.) `flash_tpu` has the form of the Mosaic kernel for TPU too, but is not counted as measured."""
HEADS = {"cudnn": 256, "flash_gpu": flash_gpu.LARGEST_HEAD}
"""Largest head of an implementation on the devices above, in the dtypes of the rows."""
ARGUMENTS = ("q_shape", "k_shape", "dtype", "causal", "bool_mask", "bias", "logits_dtype", "precision", "return_residuals")
NEEDED = (*ARGUMENTS, "device", "implementation", "direction", "at_head", "time_us_median")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """A set of arguments on a device, with the times of all implementations that were measured."""

    device: str
    """Name of the device, as in `zoo.attention.auto`."""
    platform: str
    direction: str
    """forward or vjp. That of dense attention includes the forward pass; that of the fused kernels does not."""
    arguments: tuple[str, ...]
    """The values of `ARGUMENTS`."""
    is_newest: bool
    """The row is in the newest revision; others may be of older kernels."""
    times: dict[str, float]
    """Published implementation -> microseconds."""

    @property
    def shape(self) -> tuple[int, int, int, int, int, int]:
        """Return B, T, S, N, K, H."""
        q, k = (tuple(map(int, text.split("x"))) for text in self.arguments[:2])
        return q[-4], q[-3], k[-3], q[-2], k[-2], q[-1]

    @property
    def has_bias(self) -> bool:
        """Return whether it has a bias, which all rows with a mask have: an array each."""
        return bool(self.arguments[ARGUMENTS.index("bias")])

    @property
    def is_held_out(self) -> bool:
        """Return whether the case is for judging, by a hash of its arguments: the same arguments on all devices go together."""
        text = "|".join((self.direction, *self.arguments))
        return hashlib.sha256(text.encode()).digest()[0] % 2 == 1

    def requests(self) -> dict[str, Request]:
        """Return the requests of the zoo that are of the form of this case, by a name for the form.

        A bias and a mask that are arrays are two of them: as they are, and as T5's bias with key lengths, which the fused kernels
        of the zoo support. `cudnn` gets an array of the bias then, and `flash_gpu` reads less than the published kernel.
        """
        b, t, s, n, k, h = self.shape
        grouped = {"grouped heads"} if n != k else set()
        causal = {"causal"} if self.arguments[ARGUMENTS.index("causal")] == "1" else set()
        forms = {"no bias": set()}
        if self.has_bias:
            forms = {"bias of T5": {"bucket bias", "key lengths"}, "array": {"dense bias", "explicit mask"}}
        dtype = {"bf16": "bfloat16", "f16": "float16"}[self.arguments[ARGUMENTS.index("dtype")]]
        return {
            name: Request(features=frozenset(features | grouped | causal), shape=(b, t, s, n, k, h), dtype=dtype)
            for name, features in forms.items()
        }

    def zoo_times(self, request: Request) -> dict[str, float]:
        """Return the times by the zoo's implementation of the same form, of those that support a request."""
        named = {FORMS[name]: time for name, time in self.times.items() if FORMS[name]}
        return {name: time for name, time in named.items() if supports(name, request, self.platform)}


def supports(name: str, request: Request, platform: str) -> bool:
    """Return whether an implementation supports a request on the measured device of a platform, whatever is installed here."""
    row = IMPLEMENTATIONS[name]
    if platform not in row.platforms or not request.features <= row.features or request.shape[-1] > HEADS.get(name, 1 << 30):
        return False
    is_aligned = request.shape[1] % 128 == request.shape[2] % 128 == 0
    return request.dtype != "float16" if name == "flash_tpu" else name != "splash" or (is_aligned and request.dtype != "float16")


def read_cases(path: Path) -> list[Case]:
    """Return the cases of the file of published times; of several rows of one configuration the fastest counts.

    Raises:
        BadInput: the file is missing or has not the columns, or a row has an unknown device or implementation.
    """
    cases: dict[tuple[object, ...], Case] = {}
    for number, row in enumerate(read_published_rows(path, NEEDED), 2):
        valid = row["device"] in DEVICES and row["implementation"] in FORMS and re.fullmatch(r"[\d.]+", row["time_us_median"])
        if not valid:
            raise BadInput(f"{path}:{number}: the device, the implementation or the time is unknown; leave the row out")
        platform, device = DEVICES[row["device"]]
        arguments = tuple(row[name] for name in ARGUMENTS)
        case = Case(
            device=device,
            platform=platform,
            direction=row["direction"],
            arguments=arguments,
            is_newest=row["at_head"] == "1",
            times={},
        )
        case = cases.setdefault((device, case.direction, arguments, case.is_newest), case)
        time = float(row["time_us_median"])
        case.times[row["implementation"]] = min(time, case.times.get(row["implementation"], time))
    return list(cases.values())


def ratios(cases: Iterable[Case], form: str, name: str, other: str) -> dict[str, list[float]]:
    """Return the times of an implementation relative to those of another one, by direction, where both are measured."""
    by_direction: dict[str, list[float]] = {}
    for case in cases:
        request = case.requests().get(form)
        times = case.zoo_times(request) if request else {}
        if name in times and other in times:
            by_direction.setdefault(case.direction, []).append(times[name] / times[other])
    return by_direction
