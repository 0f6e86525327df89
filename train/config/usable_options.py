"""Options that a run cannot use. The command line of such a run does not list them."""

from collections.abc import Iterable, Iterator

from train.config.objectives import LOSS_METRICS, PermutationOptions, RolloutOptions
from train.config.run_config import Run
from zoo.configs import changeable_positions

ADAPTERS = ("adapter", "lora")
"""Options of adapters, which are trained beside the frozen parameters of another model."""
FINE_TUNING = ("optim.layer_decay", "optim.freeze_layers", "optim.freeze_embeddings")
"""Options that keep some parameters closer to those of another model: random parameters are not worth keeping."""
POSITIONS = "init_positions"
"""Option of positions that replace those of another model."""


def unusable_options(run: Run, *, tokenizer: str, has_weights: bool = True) -> set[str]:
    """Return the options that have no use in a run, by dotted name; that of a group stands for all of its options.

    Args:
        run: the default run of a command.
        tokenizer: the kind of its tokenizer, which may differ from the default.
        has_weights: the run may begin with the parameters of another model.
    """
    return {*_unusable(run, tokenizer, has_weights)}


def by_class(run: Run, options: Iterable[str]) -> dict[type, set[str]]:
    """Group dotted names of options by the class of a run's configuration that has the field."""
    fields: dict[type, set[str]] = {}
    for option in options:
        *groups, name = option.split(".")
        owner = run
        for group in groups:
            owner = getattr(owner, group)
        fields.setdefault(type(owner), set()).add(name)
    return fields


def _unusable(run: Run, tokenizer: str, has_weights: bool) -> Iterator[str]:
    if not has_weights or changeable_positions(run.model)[0] == "same":
        yield POSITIONS
    if not has_weights:
        yield from ADAPTERS
        if not run.options.has_pretrained_start:
            yield from FINE_TUNING
    if not hasattr(run.model, "experts"):
        yield "mesh.expert"
    yield from run.options.unused
    if isinstance(run.options, PermutationOptions | RolloutOptions):
        yield "data.ramp"
    # --labelled.multi-label determines it.
    yield "model.multi_label"
    if run.options.metrics and len({"loss" if name in LOSS_METRICS else name for name in run.options.metrics}) == 1:
        yield "selection.metric"
    if tokenizer != "wordpiece":
        yield "tokenizer.lowercase"
