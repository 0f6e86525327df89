"""Several slices: which devices an axis joins, and that losses do not depend on it."""

import dataclasses
import itertools
from typing import Any

import jax
import numpy as np
import pytest
from jax.experimental import mesh_utils

from tests.support import mesh_steps, tiny
from train.config import mesh_sizes
from train.config.run_config import Mesh, TrainingMachine
from train.engine import device_mesh
from zoo.errors import BadInput
from zoo.mesh_axes import AXES
from zoo.runtime import hardware

MESHES = {
    "data": Mesh(data=2, fsdp=2, tensor=2),
    "a part of data": Mesh(data=4, tensor=2),
    "a part of fsdp": Mesh(data=1, fsdp=4, sequence=2),
    "data and a part of fsdp": Mesh(data=2, fsdp=4),
}
SLICES = {"data": 2, "a part of data": 2, "a part of fsdp": 2, "data and a part of fsdp": 4}


@pytest.fixture
def report_slices(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that makes the devices report slices in turn: the first device is in slice 0, the second in 1."""

    def report(count: int) -> None:
        kind = type(jax.devices()[0])
        monkeypatch.setattr(kind, "slice_index", property(lambda device: device.id % count), raising=False)
        monkeypatch.setattr(hardware, "SLICED", ("cpu",))

    return report


def check_layout(mesh: jax.sharding.Mesh, slices: int) -> None:
    """Check that each slice is a block of the mesh, and that only data and fsdp go from one slice to another."""
    numbers = np.vectorize(lambda device: device.slice_index)(mesh.devices)
    outer = mesh_sizes.slice_sizes(Mesh(**mesh.shape), mesh.shape, slices)
    inner = [mesh.shape[axis] // outer[axis] for axis in AXES]
    for number, corner in enumerate(np.ndindex(*outer.values())):
        block = tuple(slice(at * size, (at + 1) * size) for at, size in zip(corner, inner, strict=True))
        assert (numbers[block] == number).all(), (number, numbers)


@pytest.mark.planted
@pytest.mark.parametrize("case", MESHES)
def test_a_slice_is_a_block_of_the_mesh(case: str, report_slices: Any) -> None:
    """It is also what JAX's own function makes. The mistake: devices in the order of JAX, so that tensor crosses slices."""
    shape, slices = MESHES[case], SLICES[case]
    report_slices(slices)
    mesh = device_mesh.make_mesh(shape)
    check_layout(mesh, slices)
    outer = mesh_sizes.slice_sizes(shape, mesh.shape, slices)
    inner = [mesh.shape[axis] // outer[axis] for axis in AXES]
    hybrid = mesh_utils.create_hybrid_device_mesh(inner, tuple(outer.values()), jax.devices())
    assert (mesh.devices == hybrid).all()
    naive = np.array(jax.devices()).reshape(*mesh.shape.values())
    with pytest.raises(AssertionError):
        check_layout(jax.sharding.Mesh(naive, AXES), slices)


def test_losses_do_not_depend_on_the_slices(report_slices: Any) -> None:
    """Bit for bit: the program is the same, on other devices."""
    expected = mesh_steps.train(3, mesh=MESHES["data"])[0]
    report_slices(2)
    np.testing.assert_array_equal(mesh_steps.train(3, mesh=MESHES["data"])[0], expected)


@pytest.mark.full
@pytest.mark.parametrize("changes", [{"mesh": Mesh(data=8), "engine": "pmap"}, {"mesh": Mesh(data=1, fsdp=8)}])
def test_losses_are_those_of_one_device(changes: dict[str, Any], report_slices: Any) -> None:
    report_slices(2)
    np.testing.assert_allclose(mesh_steps.train(3, **changes)[0], mesh_steps.train(3)[0], rtol=1e-5)


def test_devices_that_report_no_slice_are_divided_in_their_order() -> None:
    devices = jax.devices()
    mesh = device_mesh.make_mesh(Mesh(data=2, fsdp=2, tensor=2, slices=2))
    assert [*mesh.devices[0].flat] == devices[:4] and [*mesh.devices[1].flat] == devices[4:]
    shape = Mesh(data=1, fsdp=4, tensor=2, slices=4)
    assert [*device_mesh.make_mesh(shape).devices.flat] == devices


@dataclasses.dataclass(frozen=True)
class HostDevice:
    """A device of a host of eight, as JAX describes it."""

    id: int
    platform: str
    device_kind: str = "NVIDIA H100"

    @property
    def slice_index(self) -> int:
        return self.id // 8


@pytest.mark.parametrize("platform", ["gpu", "cpu"])
def test_hosts_are_no_slices(platform: str) -> None:
    """What GPUs and CPUs report under this name counts hosts, of which `jax.make_mesh` refuses several. --mesh.slices counts."""
    devices = [HostDevice(number, platform) for number in range(16)]
    assert [len(members) for members in device_mesh.divide_into_slices(Mesh(), devices)] == [16]
    assert [len(members) for members in device_mesh.divide_into_slices(Mesh(slices=4), devices)] == [4] * 4
    mesh = device_mesh.make_mesh(Mesh(data=2, fsdp=8), devices)
    assert [device.id for device in mesh.devices.flat] == [*range(16)] and mesh.shape["fsdp"] == 8


@pytest.mark.parametrize(
    ("reported", "shape", "message"),
    [
        (1, Mesh(slices=3), r"--mesh\.slices 3: it does not divide the 8 devices; choose one of 1, 2, 4, 8$"),
        (2, Mesh(slices=4), r"--mesh\.slices 4: the devices are in 2 slices; choose 2, or 0$"),
        (3, Mesh(), r"--mesh\.slices 3: the slices have 3, 3, 2 devices; start the run on slices of one size$"),
        (
            4,
            Mesh(fsdp=2, tensor=4),
            r"--mesh data=-1 fsdp=2 tensor=4: data x fsdp = 2 is not divisible by the 4 slices of 2 devices; valid: "
            r"data=4,fsdp=2,tensor=1; data=2,fsdp=2,tensor=2; ",
        ),
    ],
)
def test_slices_that_do_not_fit_are_refused(reported: int, shape: Mesh, message: str, report_slices: Any) -> None:
    if reported > 1:
        report_slices(reported)
    with pytest.raises(BadInput, match=message):
        device_mesh.make_mesh(shape)


def test_every_mesh_that_slices_divide_has_a_layout() -> None:
    """Of all sizes up to 12, exactly those whose rows the slices divide; the parts multiply to the slices and divide the axes."""
    for data, fsdp, slices in itertools.product(range(1, 13), repeat=3):
        sizes = dict.fromkeys(AXES, 1) | {"data": data, "fsdp": fsdp, "tensor": slices}
        try:
            outer = mesh_sizes.slice_sizes(Mesh(), sizes, slices)
        except BadInput:
            assert data * fsdp % slices
            continue
        assert outer["data"] * outer["fsdp"] == slices and not data % outer["data"] and not fsdp % outer["fsdp"]
        # No more of data could be outside.
        assert outer["data"] == max(part for part in range(1, slices + 1) if slices % part == 0 and data % part == 0)


def test_a_run_shrinks_only_to_processes_that_its_slices_divide() -> None:
    machine = TrainingMachine(processes=8, restart="2:fewer")
    run = tiny.run(machine=machine, mesh=Mesh(slices=2))
    run = dataclasses.replace(run, data=dataclasses.replace(run.data, batch=24))
    assert mesh_sizes.fewer_processes(run) == (6, 4, 2)
