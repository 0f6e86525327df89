"""The text of a model card: what a model is, how and on what it was trained, its scores, their limits, and where it is from."""

import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePath
from typing import Any

from eval.model_card.card_scores import Score, score_lines
from eval.model_card.markdown_spans import code, plain
from eval.pages.html_page import Block, Table
from eval.pages.value_text import format_number
from train.config.run_config import Run
from train.run.progress_display import format_duration, short_number
from train.weights.import_export import Exported
from zoo import configs, models
from zoo.errors import printable
from zoo.hf import hub

SIZES = ("layers", "width", "heads", "ffn", "experts")
"""Fields of configurations that the text names, where a family has them."""
MOST_LABELS = 20
WIDTH = 100
"""Columns of a command."""
VERSIONS = ("python", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def public_name(value: str) -> str:
    """Return the last part of a path that is not relative to the folder of the run: the rest is private to a machine."""
    parts = PurePath(value).parts
    is_private = value.startswith(("/", "~")) or "://" in value or ".." in parts
    return parts[-1] if is_private and parts and not value.startswith(hub.PREFIX) else value


def introduction(exported: Exported, tokens: float | int | None) -> str:
    """Return the first paragraph: the family, the number of parameters, and how the weights came about."""
    config, run = exported.config, exported.run
    family, size = configs.family_of(config), configs.published_name(config)
    named = f" of the size {code(size)}" if size else ""
    model = f"model of the family {code(family)}{named} with {models.parameter_count(config):,} parameters"
    first = f"{plain(exported.adapter)}, for a {model}" if exported.adapter else f"A {model}"
    if run is None:
        return f"{first}, converted by transformer-zoo from published weights, which it did not train."
    amount = "" if tokens is None else f", on {short_number(tokens)} tokens"
    taken = "" if exported.step is None else f" in {exported.step:,} steps{amount}"
    average = f" The weights are {exported.average}." if exported.average else ""
    return f"{first}, trained by transformer-zoo with the objective {code(run.objective)}{taken}.{average}"


def model_facts(config: Any) -> dict[str, Any]:
    """Return the facts about the architecture."""
    sizes = {name: getattr(config, name) for name in SIZES if isinstance(getattr(config, name, None), int)}
    longest, labels = configs.longest_row(config), getattr(config, "labels", ())
    facts = {
        "Family": code(configs.family_of(config)),
        "Parameters": f"{models.parameter_count(config):,}",
        "Architecture": ", ".join(f"{name} {value:,}" for name, value in sizes.items()),
        "Vocabulary": f"{config.vocab:,}",
        "Longest input": "" if longest is None else f"{longest:,} tokens",
        "Labels": ", ".join(map(code, labels[:MOST_LABELS])) + (", ..." if len(labels) > MOST_LABELS else ""),
    }
    return {name: value for name, value in facts.items() if value}


def training_facts(
    exported: Exported, base: str, parents: Mapping[str, Any], starts: Sequence[Any], seconds: float
) -> dict[str, str]:
    """Return the facts about the training of a run.

    Args:
        base: see `card_metadata.base_model`.
        parents: the record of `train.weights.lineage`.
        starts: the rows of starts.jsonl.
        seconds: of all starts together; 0 = not recorded.
    """
    run = exported.run
    assert run is not None
    facts = {
        "Recipe": code(run.recipe),
        "Objective": code(run.objective),
        "Parameters at the start": _beginning(run, base, parents),
        "Steps": _steps(exported),
        "Precision": code(run.precision),
        "Devices": code(starts[-1]["facts"].get("devices", "")) if starts and starts[-1]["facts"].get("devices") else "",
        "Time": format_duration(seconds) if seconds else "",
    }
    return {name: value for name, value in facts.items() if value}


def _beginning(run: Run, base: str, parents: Mapping[str, Any]) -> str:
    if not run.init:
        return f"initialized at random, seed {run.seed}"
    parent = parents.get("init", {})
    model, _, commit = base.partition("@")
    link = f"[{plain(model)}](https://huggingface.co/{model})" + (f" at the commit {code(commit)}" if commit else "")
    if parent.get("ancestors"):
        return f"those of the run {code(public_name(run.init))}" + (f", which descends from {link}" if base else "")
    digest = f" (SHA-256 of its files {code(parent['row'])})" if "row" in parent else ""
    return f"those of {link if base else code(public_name(run.init))}{digest}"


def _steps(exported: Exported) -> str:
    run = exported.run
    if run is None or exported.step is None:
        return ""
    part = f" of {run.steps:,}" if exported.step != run.steps else ""
    return f"{exported.step:,}{part}; {run.data.sizes} rows of {run.data.length:,} tokens in a step"


def command_blocks(words: Sequence[str], recipe: str) -> list[Block]:
    """Return the command that trains such a run, in lines; or a sentence if this version has none.

    Args:
        words: the words of the command; none = there is no command.
    """
    if not words:
        why = "this version has another recipe of the name, or the weights that it begins with are not here"
        return [f"No command was found that gives all options of this run of {code(recipe)}, which its config.json has: {why}."]
    single = [part for word in words for part in _split(word)]
    public = [public_name(word) for word in single]
    lines, line = [], ""
    for part in _options(public):
        if line and len(line) + 1 + len(part) > WIDTH:
            lines.append(line)
            line = f"  {part}"
        else:
            line = f"{line} {part}" if line else part
    command = " \\\n".join([*lines, line])
    remark = ["Folders of files are left out."] if public != single else []
    return [f"```sh\n{printable_command(command)}\n```", *remark]


def _split(word: str) -> list[str]:
    """Return "--option=value" as two words, unless the value could be taken for an option."""
    option, _, value = word.partition("=")
    return [option, value] if word.startswith("--") and value and not value.startswith("-") else [word]


def printable_command(command: str) -> str:
    """Return a command without characters that end the block of code or cannot be seen."""
    return "\n".join(printable(line) for line in command.split("\n")).replace("```", "'''")


def _options(words: Sequence[str]) -> Iterable[str]:
    """Return the words of a command as parts that stay on one line: an option with its values."""
    part: list[str] = []
    for word in words:
        if word.startswith("--") and part:
            yield shlex.join(part)
            part = []
        part.append(word)
    yield shlex.join(part)


def data_blocks(run: Run, sources: Sequence[Any] | None, digests: Mapping[str, str]) -> list[Block]:
    """Return the sources of the data with their shares, the held-out data, and the digests that the run recorded."""
    blocks: list[Block] = []
    if sources:
        rows = [
            (
                code(_source_name(source["name"], run.data.paths)),
                f"{source['share']:.1%}",
                source["tokens"],
                source["rows"],
                source["epochs"],
            )
            for source in sources
        ]
        blocks.append(Table(("Source", "Share of the run", "Tokens", "Rows", "Epochs"), rows))
    elif run.data.paths:
        blocks.append([code(public_name(path)) for path in run.data.paths])
    held_out = ", ".join(code(public_name(path)) for path in run.data.valid_paths)
    facts = {"Held out": held_out or f"about the last {100 * run.data.valid_fraction:g}% of the data"}
    facts |= {f"SHA-256 of {name}": code(digest) for name, digest in digests.items()}
    return [*blocks, facts]


def _source_name(name: str, paths: Sequence[str]) -> str:
    """Return the names of the files of a source without their folders.

    Args:
        paths: those of the data, which may have the ", " in them that separates files in the name.
    """
    for path in sorted(paths, key=len, reverse=True):
        name = name.replace(path, public_name(path))
    return ", ".join(public_name(part) for part in name.split(", "))


def score_blocks(scores: Sequence[Score], others: Sequence[str]) -> list[Block]:
    """Return the scores in tables, the held-out data first, and what else the run has scored."""
    blocks: list[Block] = []
    for task in dict.fromkeys(score.task for score in scores):
        group = [score for score in scores if score.task == task]
        blocks.append(f"Task {code(task)}:" if task else "Held-out data of the run:")
        blocks.append(Table(("Metric", "Value", "95% interval", "Items"), score_lines(group)))
    if any(score.interval for score in scores):
        blocks.append(
            "An interval is for other items from the same source: 1.96 standard errors to either side, with items (examples, or "
            "rows of a text) as independent. The choice of the seed is not in it."
        )
    return [*blocks, *others]


def limits(exported: Exported, tokens: float | int | None, scores: Sequence[Score]) -> list[str]:
    """Return plain facts that limit the use of a model."""
    run, longest = exported.run, configs.longest_row(exported.config)
    lines = []
    if run is not None:
        amount = "A number of tokens that is not recorded" if tokens is None else f"{tokens:,} tokens"
        lines.append(f"{amount} of the data above were seen, repetitions and padding included, and no other data.")
        lines.append("What the weights that it began with were trained on is not described here." if run.init else "")
        is_same = any(not score.task for score in scores) and not run.data.valid_paths
        lines.append("Its held-out score is on data of the same sources, and says little about other text." if is_same else "")
    lines.append("" if longest is None else f"It reads at most {longest:,} tokens at a time.")
    lines.append("No evaluation of safety, bias or factual accuracy is recorded.")
    lines.append("A program wrote this card from the files of the run." if run is not None else "A program wrote this card.")
    return [line for line in lines if line]


def provenance(exported: Exported, starts: Sequence[Any], versions: Mapping[str, str]) -> dict[str, str]:
    """Return versions and commits, of the run as its starts recorded them, and of this export.

    Args:
        starts: the rows of starts.jsonl.
        versions: the code that exported the weights, see `train.run.provenance.read_code`.
    """
    facts: dict[str, str] = {}
    if exported.run is not None:
        facts["Run"] = code(exported.source.resolve().name)
        recorded = [start["provenance"] for start in starts if "provenance" in start]
        commits = list(dict.fromkeys(_commit(record) for record in recorded))
        facts["Trained by"] = "; then ".join(commits)
        names = [name for name in VERSIONS if starts and name in starts[-1]["versions"]]
        facts["Packages"] = ", ".join(f"{name} {plain(format_number(starts[-1]['versions'][name]))}" for name in names)
        registration = next((record["registration"] for record in recorded if "registration" in record), "")
        facts["Registration of the experiment"] = code(registration) if registration else ""
    elif exported.origin:
        facts["Weights"] = code(exported.origin)
    facts["Exported by"] = _commit(versions)
    return {name: value for name, value in facts.items() if value}


def _commit(record: Mapping[str, Any]) -> str:
    """Return a version and a commit as text."""
    version, commit = record.get("version", ""), record.get("commit")
    changed = " with uncommitted changes" if record.get("dirty") else ""
    return f"transformer-zoo {plain(str(version))}" + (f", commit {code(commit)}{changed}" if commit else "")
