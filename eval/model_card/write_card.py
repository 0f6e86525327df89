"""Writes the model card of an exported folder."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from eval.model_card import card_text
from eval.model_card.card_metadata import base_model, card_metadata
from eval.model_card.card_scores import read_card_scores
from eval.model_card.markdown_spans import plain
from eval.pages.charts import draw_png
from eval.pages.html_page import Block
from eval.pages.markdown_page import render_markdown
from eval.report import run_charts
from train.run.costs import read_costs
from train.run.metrics_file import read_metrics, read_starts
from train.run.provenance import read_code
from train.run.result_files import read_result
from train.run.run_dir import RunDir
from train.run.time_account import run_seconds
from train.weights.import_export import Exported
from train.weights.load import open_checkpoints
from zoo.errors import BadInput

CARD, CURVE = "README.md", "curve.png"
DIGESTS = {"data": "the training rows", "held_out": "the held-out data", "tokenizer": "the tokenizer"}
"""Key of the metadata of a checkpoint -> what it is the digest of."""

T = TypeVar("T")


def write_card(folder: Path, exported: Exported, *, name: str, license_id: str = "", command: Sequence[str] = ()) -> None:
    """Write README.md, and curve.png if the run has a curve, into an exported folder.

    A file of the run that is damaged costs the card what it would say, with a notice on stderr, and not the export.

    Args:
        name: of the model.
        license_id: id of a licence on the hub; "" = none.
        command: words of the command that trains such a run; none = there is no command.
    """
    facts = _RunFacts(exported)
    base = base_model(exported, facts.parents)
    scores, others = facts.scores
    metadata = card_metadata(folder, exported, scores, name=name, license_id=license_id, base=base)
    sections: dict[str, Sequence[Block]] = {"Model": [card_text.model_facts(exported.config)]}
    run = exported.run
    if run is not None:
        training = card_text.training_facts(exported, base, facts.parents, facts.starts, facts.seconds)
        sections["Training"] = [training, *card_text.command_blocks(command, run.recipe)]
        sections["Data"] = card_text.data_blocks(run, facts.sources, facts.digests)
        sections["Training curve"] = _curve(folder, exported, facts)
    sections["Scores"] = card_text.score_blocks(scores, others)
    sections["Limits"] = [card_text.limits(exported, facts.tokens, scores)]
    sections["Licence"] = [] if license_id else ["No licence was given: ask the owner of these weights before you use them."]
    sections["Provenance"] = [card_text.provenance(exported, facts.starts, read_code())]
    introduction = card_text.introduction(exported, facts.tokens)
    body = render_markdown(plain(name), [introduction], sections)
    (folder / CARD).write_text(f"---\n{_yaml(metadata)}---\n\n{body}", encoding="utf-8")


def _yaml(metadata: dict[str, Any]) -> str:
    from huggingface_hub.utils import yaml_dump

    return yaml_dump(metadata, sort_keys=False)


def _curve(folder: Path, exported: Exported, facts: "_RunFacts") -> list[Block]:
    """Write the picture of the run's main curve, and return the line that shows it; nothing without any rows."""
    train, valid = ([row for row in facts.rows if row["kind"] == kind] for kind in ("train", "valid"))
    if not (train or valid):
        return []
    assert exported.run is not None
    # The run scores its choice, the best checkpoint if it keeps one.
    is_choice = any(not score.task for score in facts.scores[0])
    chosen = exported.step if is_choice and train and exported.step != train[-1]["step"] else None
    marked = run_charts.MarkedSteps([start["step"] for start in facts.starts[1:]], chosen)
    figure = run_charts.run_curves(train, valid, marked, (), exported.run.selection.metric)[0]
    (folder / CURVE).write_bytes(draw_png(figure))
    return [f"![{plain(figure.label)}]({CURVE})"]


class _RunFacts:
    """The files of a run as far as they can be read; empty for published weights."""

    def __init__(self, exported: Exported) -> None:
        self.rows: list[Any] = []
        self.starts: list[Any] = []
        self.sources: Any = None
        self.scores: tuple[Any, Any] = ([], [])
        self.parents: dict[str, Any] = {}
        self.digests: dict[str, str] = {}
        self.tokens: float | int | None = None
        self.seconds: float = 0.0
        if (run := exported.run) is None:
            return
        files = RunDir(exported.source)
        # An average has no scores, and the step of its newest checkpoint.
        step, scored = exported.step, None if exported.average else exported.step
        meta = _read(lambda: open_checkpoints(exported.source, run, step).meta(step) if step is not None else {}, {}, "digests")
        self.parents = meta.get("parents", {})
        self.digests = {text: meta[name] for name, text in DIGESTS.items() if name in meta}
        self.rows = _read(lambda: read_metrics(files), [], "curve")
        self.starts = _read(lambda: read_starts(files), [], "versions")
        self.sources = _read(lambda: read_result(files.data), None, "sources of data")
        self.scores = _read(lambda: read_card_scores(files, scored), ([], []), "scores")
        if step is not None and self.rows:
            self.tokens = _read(lambda: read_costs(files, step, meta, run.data.sizes)["tokens"], None, "number of tokens")
        self.seconds = sum(run_seconds(self.starts).values(), 0.0)


def _read(reader: Callable[[], T], missing: T, what: str) -> T:
    """Return what a file says, or `missing`, with a notice, if it is damaged."""
    try:
        return reader()
    except BadInput as error:
        print(f"! {error}; {CARD} has no {what}", file=sys.stderr)
        return missing
