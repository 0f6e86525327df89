"""Forgeries with new digests that every audit notices, also the shortest one, and the check by which it does."""

import random

import pytest

from tests.support import forgeries
from tests.support.audited_runs import EVERY, STEPS, audit, copied, trained

LAST = f"steps {2 * EVERY + 1} to {STEPS}"
FOUND = {
    "other_seed_sealed": "samples of each step",
    "other_rate_sealed": LAST,
    "other_decay_sealed": LAST,
    "other_batch_sealed": "samples of each step",
    "other_dropout_sealed": LAST,
    "renumbered_checkpoint": "steps of checkpoints",
    "better_score": "scores.json",
    "step_of_score": "scores.json",
    "score_of_another_checkpoint": "scores.json",
    "other_samples": "samples of each step",
}
"""Forgery -> a check that fails."""


@pytest.mark.slow
@pytest.mark.planted(len(FOUND))
def test_the_shortest_audit_notices_forgeries_of_what_is_scored() -> None:
    for name, check in FOUND.items():
        with copied(trained("gpt")) as run:
            forgeries.FORGERIES[name](run, random.Random(0))
            certificate = audit(run, 1, share=1e-6)
        failed = {entry["check"] for entry in certificate["checks"] if entry["result"] == "failed"}
        assert check in failed, (name, failed)
