"""Options that a run cannot use: those that its objective states, and those that follow from its metrics and its start."""

import pytest

from train import recipes
from train.config import usable_options
from train.config.objectives import DistilledOptions, SpanOptions


def unusable(recipe: str, *, has_weights: bool = True) -> set[str]:
    return usable_options.unusable_options(recipes.find_recipe(recipe)(), tokenizer="gpt", has_weights=has_weights)


@pytest.mark.planted
def test_an_objective_states_the_options_that_it_does_not_use(monkeypatch: pytest.MonkeyPatch) -> None:
    head = {"model.labels", "model.head_dropout", "spikes"}
    assert unusable("gpt-nano") & head == {"model.labels", "model.head_dropout"}
    assert unusable("finetune-span") & head == {"model.labels"}
    assert unusable("finetune-classification") & head == set()
    assert unusable("grpo") & head == head
    # The mistake: the head of spans is not known to have one output for each position.
    monkeypatch.setattr(SpanOptions, "unused", ())
    assert unusable("finetune-span") & head == set()


@pytest.mark.planted
def test_a_student_may_stay_close_to_its_teacher(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = {*usable_options.FINE_TUNING}
    assert rates <= unusable("gpt-nano", has_weights=False) and not rates & unusable("gpt-nano")
    [recipe] = [name for name, recipe in recipes.recipes().items() if isinstance(recipe().options, DistilledOptions)][:1]
    assert not rates & unusable(recipe, has_weights=False)
    # The mistake: its parameters count as random.
    monkeypatch.setattr(DistilledOptions, "has_pretrained_start", False)
    assert rates <= unusable(recipe, has_weights=False)


def test_positions_change_only_where_there_are_some_and_a_model_to_take_them_from() -> None:
    assert "init_positions" not in unusable("gpt-nano") | unusable("llama-nano")
    assert "init_positions" in unusable("gpt-nano", has_weights=False) & unusable("t5-nano")


def test_metrics_that_follow_the_loss_leave_no_choice() -> None:
    """The losses of a language model select the same checkpoint, those of an encoder's words do not."""
    assert "selection.metric" in unusable("gpt-nano") and "selection.metric" not in unusable("bert-nano")
