"""Published numbers of devices, and devices that have none."""

import pytest

from zoo.runtime.hardware import DEVICES, GIB, device_data, device_peak

PEAKS = {
    # A name that only begins like a known one, or a slice of a device, has no published rate rather than a wrong one.
    "NVIDIA A10": (125, 62.5),
    "NVIDIA A10G": (None, None),
    "NVIDIA H100 80GB HBM3": (989.4, 494.7),
    "NVIDIA H100 PCIe": (756, 378),
    "NVIDIA L4": (121, 60),
    "NVIDIA L40S": (None, None),
    "Tesla V100-SXM2-16GB": (None, 15.7),
    "NVIDIA H100 80GB HBM3 MIG 1g.10gb": (None, None),
    "TPU v4": (275, None),
    "TPU v4 lite": (None, None),
    "TPU7x": (1153.5, None),
    "cpu": (None, None),
}
MEMORY = {
    # Bytes and GB/s. The longest name that fits is the device's: an A100 of 80 GB is not one of 40.
    "NVIDIA A100-SXM4-40GB": (40e9, 1555),
    "NVIDIA A100-SXM4-80GB": (80e9, 2039),
    "NVIDIA H100 80GB HBM3": (80e9, 3350),
    "NVIDIA H100 NVL": (94e9, 3900),
    "TPU v5 lite": (16 * GIB, 819),
    "TPU7x": (96 * GIB, 3690),
}


def test_peaks_and_memory_are_the_published_ones() -> None:
    for kind, peaks in PEAKS.items():
        for dtype, tera in zip(("bfloat16", "float32"), peaks, strict=True):
            assert device_peak(kind, dtype) == (None if tera is None else pytest.approx(tera * 1e12)), (kind, dtype)
    assert {kind: (device_data(kind).memory, device_data(kind).bandwidth) for kind in MEMORY} == MEMORY


def test_the_table_is_of_devices_that_could_exist() -> None:
    """A slip of a unit shows: products take 10 to 1,000 FLOPs a byte, and links are slower than memory."""
    for name, each in DEVICES.items():
        fastest = max(each.peak.values()) * 1e12
        if each.bandwidth is not None:
            assert 10 < fastest / (each.bandwidth * 1e9) < 1000, name
        if each.links is not None:
            assert each.bandwidth is not None and each.links < each.bandwidth, name
        if each.network is not None:
            assert each.links is not None and each.network < each.links, name
