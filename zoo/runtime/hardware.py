"""Published data of devices: rates of matrix products, memory and its bandwidth, links to other devices.

A device is a JAX device: a chip, or half of one where JAX sees a chip as two. Rates and bandwidths are upper limits.
"""

import dataclasses
import os
import re
from typing import Any

GIB = 1 << 30


@dataclasses.dataclass(frozen=True, kw_only=True)
class Device:
    """The data of one JAX device; None where a value is unknown or not published."""

    peak: dict[str, int | float]
    """Rate of dense matrix products by dtype, in TFLOP/s. float32 is TF32 from Ampere on. Where a data sheet gives only the rate
    with 2:4 sparsity, this is half of it."""
    memory: int | float | None = None
    """Memory size in bytes."""
    bandwidth: int | float | None = None
    """Bandwidth of the memory, GB/s."""
    links: int | float | None = None
    """Sum of all links to nearby devices (NVLink within a host, a TPU's interconnect), GB/s in one direction."""
    torus: int = 0
    """Dimensions of the torus that those links form; 0 = any device reaches any other with all of its links."""
    host_link: int | float | None = None
    """Bandwidth to the memory of the host, GB/s in one direction."""
    network: int | float | None = None
    """A device's share of its host's network, GB/s in one direction; a TPU slice needs none."""
    between_slices: int | float | None = None
    """A device's share of the network between slices, GB/s in one direction."""
    host: int = 1
    """Number of devices of a host, which the links connect; the links of a torus continue to other hosts."""


def host_memory() -> int:
    """Return the bytes of memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def device_data(kind: str) -> Device | None:
    """Return the published data of a `device_kind`; None for a CPU, a slice of a GPU and a device that is not in the table."""
    names = [name for name in DEVICES if re.fullmatch(f"{name}([ -].*)?", kind) and (name == kind or not name.startswith("TPU"))]
    return None if not names or "MIG" in kind else DEVICES[max(names, key=len)]


def is_kind(kind: str, name: str) -> bool:
    """Return whether a `device_kind` is that of a name: the name itself, or with further words after it."""
    return re.match(rf"{re.escape(name)}(?![\w.])", kind) is not None


def device_peak(kind: str, dtype: Any) -> float | None:
    """Return the published peak of one JAX device for dense matrix products of `dtype` (float32 or bfloat16), in FLOP/s.

    None where none is published for that dtype: a TPU's float32, the bfloat16 of a GPU older than Ampere, a slice of a GPU, any
    CPU. MFU is then relative to the measured `train.run.matmul_rate`. On Ampere and later float32 means TF32, which
    is how JAX multiplies float32 matrices there by default.
    """
    # Imported here: a command that only names a device should not wait for it.
    import numpy as np

    data = device_data(kind)
    tflops = None if data is None else data.peak.get(np.dtype(dtype).name)
    return None if tflops is None else tflops * 1e12


DEVICES: dict[str, Device] = {
    # NVIDIA B200: HGX B200 data sheet, 36 and 18 PFLOP/s (sparse), 1.44 TB and 64 TB/s for eight, NVLink 1.8 TB/s in both
    # directions; DGX B200 data sheet: eight ports of 400 Gb/s.
    "NVIDIA B200": Device(peak={"bfloat16": 2250, "float32": 1125}, memory=180e9, bandwidth=8000, links=900, network=50, host=8),
    # NVIDIA H200 data sheet: SXM 1,979 and 989; NVL 1,671 and 835 (sparse); both 141 GB, 4.8 TB/s, NVLink 900 GB/s in both
    # directions, NVL's between two or four. DGX H100/H200 data sheet: eight ports of 400 Gb/s.
    "NVIDIA H200 NVL": Device(
        peak={"bfloat16": 835.5, "float32": 417.5}, memory=141e9, bandwidth=4800, links=450, network=50, host=4
    ),
    "NVIDIA H200": Device(
        peak={"bfloat16": 989.4, "float32": 494.7}, memory=141e9, bandwidth=4800, links=450, network=50, host=8, host_link=64
    ),
    # NVIDIA H100 architecture white paper: SXM5 989.4 and 494.7, PCIe 756 and 378; data sheet: NVL 1,671 and 835 (sparse), memory
    # 80, 80 and 94 GB at 3.35, 2 and 3.9 TB/s, NVLink 900, 600 and 600 GB/s in both directions, the last two between two.
    "NVIDIA H100 NVL": Device(
        peak={"bfloat16": 835.5, "float32": 417.5}, memory=94e9, bandwidth=3900, links=300, network=50, host=2
    ),
    "NVIDIA H100 PCIe": Device(
        peak={"bfloat16": 756, "float32": 378}, memory=80e9, bandwidth=2000, links=300, network=50, host=2
    ),
    "NVIDIA H100": Device(
        peak={"bfloat16": 989.4, "float32": 494.7}, memory=80e9, bandwidth=3350, links=450, network=50, host=8, host_link=64
    ),
    # NVIDIA A100 data sheet: the same rates for SXM4 and PCIe; memory 40 or 80 GB at 1,555 or 2,039 GB/s (PCIe 80 GB 1,935),
    # NVLink 600 GB/s and PCIe 64 GB/s in both directions. DGX A100 data sheet: eight ports of 200 Gb/s.
    "NVIDIA A100": Device(
        peak={"bfloat16": 312, "float32": 156}, memory=40e9, bandwidth=1555, links=300, network=25, host=8, host_link=32
    ),
    "NVIDIA A100-SXM4-80GB": Device(
        peak={"bfloat16": 312, "float32": 156}, memory=80e9, bandwidth=2039, links=300, network=25, host=8, host_link=32
    ),
    "NVIDIA A100 80GB PCIe": Device(
        peak={"bfloat16": 312, "float32": 156}, memory=80e9, bandwidth=1935, links=300, network=25, host=2
    ),
    # NVIDIA L4 data sheet: 242 and 120 (sparse), 24 GB, 300 GB/s.
    "NVIDIA L4": Device(peak={"bfloat16": 121, "float32": 60}, memory=24e9, bandwidth=300),
    # NVIDIA A10 data sheet.
    "NVIDIA A10": Device(peak={"bfloat16": 125, "float32": 62.5}, memory=24e9, bandwidth=600),
    # NVIDIA V100 and T4 data sheets: no bfloat16, no TF32. The V100 has 16 or 32 GB.
    "Tesla V100-PCIE": Device(peak={"float32": 14}, bandwidth=900),
    "Tesla V100-SXM2": Device(peak={"float32": 15.7}, bandwidth=900, links=150, host=8),
    "Tesla T4": Device(peak={"float32": 8.1}, memory=16e9, bandwidth=320),
    # Jouppi et al. 2020, "A domain-specific supercomputer for training deep neural networks": 46 and 123 TFLOP/s, 16 and 32 GB,
    # 700 and 900 GB/s a chip, which is two devices.
    "TPU v2": Device(peak={"bfloat16": 23}, memory=8 * GIB, bandwidth=350),
    "TPU v3": Device(peak={"bfloat16": 61.5}, memory=16 * GIB, bandwidth=450),
}
"""`device_kind` -> its data; the kind of a GPU may have further words after the one here."""

# Cloud TPU documentation, one page per version, a chip being one device: 275, 197, 459 and 918 TFLOP/s; 32, 16, 95 and 32 GiB at
# 1,200, 819, 2,765 and 1,638 GB/s; interconnect 2,400 Gb/s in one direction, then 400, 1,200 and 800 GB/s in both. Data-center
# network: v5e 6.4 Tb/s for a pod of 256 chips; v5p 50, v6e 100 and TPU7x 100 Gb/s a chip; none is stated for v4.
_V4 = Device(peak={"bfloat16": 275}, memory=32 * GIB, bandwidth=1200, links=300, torus=3, host=4)
_V5E = Device(peak={"bfloat16": 197}, memory=16 * GIB, bandwidth=819, links=200, torus=2, host=8, between_slices=3.125)
_V5P = Device(peak={"bfloat16": 459}, memory=95 * GIB, bandwidth=2765, links=600, torus=3, host=4, between_slices=6.25)
_V6E = Device(peak={"bfloat16": 918}, memory=32 * GIB, bandwidth=1638, links=400, torus=2, host=8, between_slices=12.5)
# 2,307 TFLOP/s, 192 GiB, 7,380 GB/s and 1,200 GB/s in both directions a chip, which is two devices.
_TPU7X = Device(peak={"bfloat16": 1153.5}, memory=96 * GIB, bandwidth=3690, links=300, torus=3, host=8, between_slices=6.25)
DEVICES |= {
    "TPU v4": _V4,
    "TPU v5 lite": _V5E,
    "TPU v5e": _V5E,
    "TPU v5": _V5P,
    "TPU v5p": _V5P,
    "TPU v6 lite": _V6E,
    "TPU v6e": _V6E,
    "TPU7x": _TPU7X,
}


SLICED = ("tpu",)
"""Platforms whose devices report slices. Under the same name, others count the hosts, or groups of hosts that NVLink joins; the
network that joins these may be one for all axes."""


def slice_number(device: Any) -> int | None:
    """Return the number of the slice that a device reports; None if it reports none."""
    return getattr(device, "slice_index", None) if device.platform in SLICED else None
