"""The option --trust of all commands that read a folder: confirms the code that it names (`zoo.trust`)."""

import sys
from collections.abc import Sequence
from pathlib import Path

from zoo import trust
from zoo.errors import BadInput, printable
from zoo.hf import config_json
from zoo.published_family import published_references
from zoo.trust import OPTION, References

COMMANDS = (
    "train",
    "eval",
    "compare",
    "experiment",
    "sweep",
    "audit",
    "generate",
    "chat",
    "serve",
    "predict",
    "fill-mask",
    "embed",
    "search",
    "mine",
    "data",
    "import",
    "export",
    "plan",
)
"""Commands that have the option."""


def take_trust(command: str, args: Sequence[str]) -> list[str]:
    """Confirm the folders that --trust names, and return the other arguments, with which processes of the command start too.

    Raises:
        BadInput: the command reads no folder; or see `trust_folder`.
    """
    others, words = [], iter(args)
    for word in words:
        option, equals, value = word.partition("=")
        if option != OPTION:
            others.append(word)
            continue
        if command not in COMMANDS:
            raise BadInput(f"{OPTION}: zoo {command} reads no run; leave the option out")
        value = value if equals else next(words, "")
        if not value or value.startswith("-"):
            raise BadInput(f"{OPTION}: has no value; name the folder of a run, or a task file")
        trust_folder(value)
    return others


def trust_folder(name: str) -> None:
    """Confirm what a folder names, and print a line on stderr for each name.

    Raises:
        BadInput: there is no such folder, it is neither a run nor a model, or the confirmation cannot be stored.
    """
    references = references_of_folder(name)
    if not references.names:
        print(f"{OPTION} {name}: it names no code of others, so there is nothing to confirm", file=sys.stderr)
        return
    trust.confirm_references(references)
    for reference in references.names:
        use = "may be fetched"
        if reference.is_code:
            use = f"is imported from {reference.origin}" if reference.origin else "is not found from this folder"
        print(printable(f"{OPTION} {name}: {reference.title} {use}"), file=sys.stderr)


def references_of_folder(name: str) -> References:
    """Return what a folder names, without importing it.

    Raises:
        BadInput: there is no such folder, or it is neither a run nor a model.
    """
    from train.run.run_dir import is_run, run_references
    from zoo.cli.config_option import is_options_file, options_references

    folder = Path(name)
    if not folder.exists():
        raise BadInput(f"{OPTION} {name}: no such folder; name the folder of a run or of published weights, or a task file")
    if is_options_file(folder):
        return options_references(folder)
    if is_run(folder):
        return run_references(folder)
    file = folder / config_json.FILE
    if folder.suffix == ".yaml" or (not file.is_file() and any(folder.rglob("*.yaml"))):
        from eval.tasks.harness.harness_files import task_references

        return task_references(name)
    if not file.is_file():
        fix = "name the folder of a run or of published weights, or a .yaml file of a task"
        raise BadInput(f"{OPTION} {name}: there is no {file.name} in it; {fix}")
    return published_references(file, config_json.read_json(file, config_json.LARGEST_FILE).get("model_type"))
