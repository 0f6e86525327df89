"""The score of a run on its held-out data, computed again from its checkpoint, and outcomes of single items."""

import numpy as np

from eval.audit.audit_types import Check, passed_or_failed
from eval.audit.comparison import LARGEST_OF_SCORES, LARGEST_SHARE, SCALES, array_problem, values_problem
from eval.audit.run_digests import Manifests
from eval.tasks.held_out.language_model_scores import TextScore
from eval.tasks.held_out.masked_lm_scores import MaskedScore
from train.loop.prepare import PreparedRun
from train.run.item_outcomes import HELD_OUT, Outcomes, outcome_names, read_outcomes
from train.run.result_files import read_result
from train.run.run_dir import RunDir
from train.weights.load import restore_params
from zoo.errors import BadInput


def check_scores(folder: RunDir, prepared: PreparedRun, manifests: Manifests, best: Manifests, *, bits: bool) -> list[Check]:
    """Score the checkpoint that scores.json belongs to again, and compare; none if the run has no score yet.

    Args:
        prepared: the run with its data.
        bits: compare all numbers exactly; else within the bounds of `values_problem`.
    """
    stored = read_result(folder.scores)
    if stored is None:
        return []
    scored = max(best) if prepared.run.selection.best and best else max(manifests)
    params, step, _ = restore_params(folder.path, prepared.run, prepared.mesh, scored, scores=True)
    stride = max(1, prepared.run.data.length // 2)
    score = prepared.scorer(prepared.data.scored_rows(prepared.run, stride))(params)
    problem = values_problem(stored, {**score.record(), "stride": stride, "step": step}, bits=bits, scores=True)
    name = "best" if prepared.run.selection.best and best else "newest"
    checks = [passed_or_failed("scores.json", problem, f"computed again from the {name} checkpoint, of step {step}")]
    if outcomes := getattr(score, "outcomes", None):
        if isinstance(score, TextScore | MaskedScore) and HELD_OUT not in outcome_names(folder):
            text = "the run has none: earlier versions stored no outcomes of the rows of a text"
            return [*checks, Check(f"outcomes.npz: {HELD_OUT}", "not checked", text)]
        checks.append(outcomes_check(folder, HELD_OUT, outcomes, bits=bits))
    return checks


def outcomes_check(folder: RunDir, name: str, computed: Outcomes, *, bits: bool) -> Check:
    """Compare the stored outcomes of single items with those computed again."""
    title = f"outcomes.npz: {name}"
    try:
        stored = read_outcomes(folder, name)
    except BadInput as error:
        return Check(title, "failed", str(error))
    # Earlier versions gave the rows of `masked` their numbers as names.
    numbered = tuple(f"row {number}" for number in range(len(computed.id)))
    if stored.id not in (computed.id, numbered):
        return Check(
            title, "failed", f"it has {len(stored.id):,} items, and other ones than the {len(computed.id):,} of the task"
        )
    if (stored.bleu is None) != (computed.bleu is None):
        return Check(
            title, "failed", f"bleu is {'not ' if stored.bleu is None else ''}stored, unlike in the outcomes of the task"
        )
    names = ("count", *(("right", "nats", "bleu") if bits else ()))
    # A text that differs changes the contributions of all texts to BLEU a little.
    near = {} if bits else {"right": 1e-8, "bleu": LARGEST_SHARE * SCALES["bleu"]}
    for name, largest in near.items():
        old, new = getattr(stored, name), getattr(computed, name)
        share = np.mean(~np.isclose(old, new, atol=largest, equal_nan=True)) if old is not None and len(old) else 0.0
        if share > LARGEST_SHARE:
            return Check(title, "failed", f"{name} differs in {share:.2%} of the items")
    if not bits and not np.allclose(stored.nats, computed.nats, rtol=LARGEST_OF_SCORES, equal_nan=True):
        return Check(title, "failed", f"nats of items differ by more than {LARGEST_OF_SCORES:g}")
    arrays: list[dict[str, np.ndarray]] = [
        {field: value for field in names if (value := getattr(own, field)) is not None} for own in (stored, computed)
    ]
    return passed_or_failed(title, array_problem(*arrays), f"{len(stored.id):,} items")
