"""Declarations of objectives: what they name exists, and everything that is named for objectives is declared by one."""

import dataclasses

import pytest

from eval.tasks.held_out.scorers import SCORERS
from train.config.declaration import ObjectiveOptions, scored_as
from train.config.objectives import OPTIONS, CausalOptions, DistilledOptions
from train.inputs.run_inputs import EXAMPLES
from train.objectives import objectives
from train.run.metric_definitions import METRICS


def missing(declarations: dict[str, type[ObjectiveOptions]]) -> list[str]:
    """Return what declarations name and nothing implements."""
    absent = [f"objective {name}" for name in declarations.keys() - {*objectives()}]
    for kind in declarations.values():
        absent += [f"scorer {kind.scorer}"] if kind.scorer not in SCORERS else []
        absent += [f"data {kind.data.kind}"] if kind.data.kind not in {"text", *EXAMPLES} else []
        absent += [f"metric {name}" for name in kind.metrics if name not in METRICS]
    return absent


def test_what_a_declaration_names_exists() -> None:
    assert missing(OPTIONS) == []
    assert {kind.scorer for kind in OPTIONS.values()} == SCORERS.keys()
    assert {kind.data.kind for kind in OPTIONS.values()} == {"text", *EXAMPLES}
    assert {*OPTIONS} == {*objectives()}


@pytest.mark.planted(3)
@pytest.mark.parametrize("mistake", [{"scorer": "words"}, {"metrics": ("words",)}, {"objective": "words"}], ids=str)
def test_a_declaration_of_something_absent_is_noticed(mistake: dict[str, object]) -> None:
    wrong = dataclasses.dataclass(frozen=True, kw_only=True)(type("Wrong", (CausalOptions,), mistake))
    assert len(missing({wrong.objective: wrong})) == 1


def test_scores_are_comparable_with_those_of_the_objective_that_names_the_scorer() -> None:
    own = {name: scored_as(kind) for name, kind in OPTIONS.items()}
    assert own == {name: name for name in OPTIONS} | {"distilled": "masked"}
    extended = type("Extended", (DistilledOptions,), {"objective": "extended"})
    assert scored_as(extended) == "masked"
