"""Runs of families with more than a stack of layers: killed, in several processes and on every engine, they stay the same."""

import numpy as np
import pytest

from tests.support.runs import EVERY, STEPS, Training, assert_close, assert_same, home, reference

FAMILIES = ("t5-nano", "transformer-nano", "xlnet-nano")
TWO = {"processes": 2, "devices": 4}


@pytest.mark.slow
@pytest.mark.parametrize("recipe", FAMILIES)
def test_a_killed_run_ends_with_the_same_bits(recipe: str) -> None:
    """In parameters, optimizer and what is carried from row to row, in metrics and in the score."""
    unharmed, run = reference(recipe=recipe), Training(home(), f"killed-{recipe}", recipe=recipe)
    for kill in range(2):
        with run.start() as started:
            started.committed((kill + 1) * 2 * EVERY)
            started.killed()
    run.finish()
    assert len(run.resumed_at()) == 3 and run.resumed_at()[1] >= 2 * EVERY
    assert_same(run, unharmed)
    assert [row["step"] for row in run.ledger()] == list(range(1, STEPS + 1))


@pytest.mark.slow
@pytest.mark.parametrize("recipe", FAMILIES)
@pytest.mark.parametrize(
    ("machine", "flags"),
    [
        (TWO, ()),
        ({}, ("--engine", "pmap")),
        ({}, ("--mesh.fsdp", "8")),
        ({}, ("--mesh.fsdp", "2", "--mesh.tensor", "2")),
    ],
)
def test_losses_are_the_same_in_two_processes_and_on_every_engine(
    recipe: str, machine: dict[str, int], flags: tuple[str, ...]
) -> None:
    run = Training(home(), f"{recipe}-{len(machine)}{''.join(flags)}", flags, recipe)
    run.finish(**machine)
    assert_close(run, reference(recipe=recipe))


@pytest.mark.slow
def test_what_is_remembered_is_saved_and_full() -> None:
    """The memory of a run's last checkpoint holds what its last rows read, for every stream."""
    state = reference(recipe="xlnet-nano").state()
    memory = {path: leaf for path, leaf in state.items() if path.startswith("carry/")}
    assert {path: leaf.shape for path, leaf in memory.items()} == {"carry/hidden": (8, 2, 16, 32), "carry/filled": (8,)}
    assert (memory["carry/filled"] == 16).all()
    assert len(np.unique(memory["carry/hidden"][:, 1, -1], axis=0)) == 8
