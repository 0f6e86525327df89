"""Audits of honest and of forged runs of every family: none of the first fails, and none of the second passes."""

import random
import zlib

import pytest

from tests.support.audited_runs import FAMILIES, STEPS, copied, evaluated, findings, trained
from tests.support.forgeries import EVALUATED, FORGERIES

HONEST = 8
"""Honest runs of each family: with other seeds, and killed at other steps."""


def honest_run(family: str, number: int) -> list[str]:
    """Return what an audit finds in an honest run, of which every second one was killed and continued."""
    fault = f"train.step:error:{1 + number % STEPS}" if number % 2 else ""
    run = trained(family, "--seed", str(number), fault=fault)
    with copied(run) as copy:
        return findings(copy)


def forged_run(family: str, name: str, seed: int) -> list[str]:
    """Return what an audit finds in a forged run of a family."""
    rng = random.Random(zlib.crc32(f"{family} {name} {seed}".encode()))
    run = evaluated(family) if name in EVALUATED else trained(family)
    with copied(run) as copy:
        ({**FORGERIES, **EVALUATED}[name])(copy, rng)
        return findings(copy)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_honest_runs_pass(family: str) -> None:
    assert [problems for number in range(HONEST) if (problems := honest_run(family, number))] == []


@pytest.mark.slow
@pytest.mark.planted(len(FORGERIES))
@pytest.mark.parametrize("family", FAMILIES)
def test_forged_runs_are_noticed(family: str) -> None:
    assert [name for name in FORGERIES if not forged_run(family, name, 0)] == []
