"""Runs of families with more than a stack of layers: killed, in several processes and on every engine, they stay the same."""

import numpy as np
import pytest

from tests.support.runs import EVERY, Training, assert_close, assert_same, home, reference

pytestmark = pytest.mark.slow

FAMILIES = ("t5-nano", "transformer-nano", "xlnet-nano")
TWO = {"processes": 2, "devices": 2}


@pytest.mark.parametrize("recipe", FAMILIES)
def test_a_killed_run_ends_with_the_same_bits(recipe: str) -> None:
    """In parameters, optimizer and what is carried from row to row, in metrics and in the score."""
    run = reference(recipe=recipe).copied(f"killed-{recipe}", EVERY)
    with run.start() as started:
        started.committed(2 * EVERY)
        started.killed()
    newest = run.latest()
    run.finish()
    assert run.resumed_at() == [0, EVERY, newest]
    assert_same(run, reference(recipe=recipe))


@pytest.mark.parametrize(
    ("recipe", "flags", "machine"),
    [
        # Each family on at least two of the four machines.
        ("t5-nano", (), TWO),
        ("t5-nano", ("--mesh.fsdp", "2", "--mesh.tensor", "2"), {}),
        ("transformer-nano", ("--engine", "pmap"), {}),
        ("transformer-nano", ("--mesh.fsdp", "4"), {}),
        ("xlnet-nano", (), TWO),
        ("xlnet-nano", ("--engine", "pmap"), {}),
        ("xlnet-nano", ("--mesh.fsdp", "2", "--mesh.tensor", "2"), {}),
    ],
)
def test_losses_are_the_same_in_two_processes_and_on_every_engine(
    recipe: str, flags: tuple[str, ...], machine: dict[str, int]
) -> None:
    run = Training(home(), f"{recipe}-{len(machine)}{''.join(flags)}", flags, recipe)
    run.finish(**machine)
    assert_close(run, reference(recipe=recipe))


def test_what_is_remembered_is_saved_and_full() -> None:
    """The memory of a run's last checkpoint holds what its last rows read, for every stream."""
    state = reference(recipe="xlnet-nano").state()
    memory = {path: leaf for path, leaf in state.items() if path.startswith("carry/")}
    assert {path: leaf.shape for path, leaf in memory.items()} == {"carry/hidden": (8, 2, 16, 32), "carry/filled": (8,)}
    assert (memory["carry/filled"] == 16).all()
    assert len(np.unique(memory["carry/hidden"][:, 1, -1], axis=0)) == 8
