"""The option --config of all commands: options from a TOML, YAML or JSON file, or from the config.json of a run."""

import contextlib
import json
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from zoo import trust
from zoo.cli.python_functions import option_words
from zoo.cli.run_options import options_beside_recipe
from zoo.errors import BadInput
from zoo.file_access import UnusableFile, read_regular_text

OPTION = "--config"
FORMATS = (".toml", ".yaml", ".yml", ".json")
LARGEST = 1 << 20
"""Bytes of a file of options."""
RECIPE = "recipe"
"""Key of a file that stands for the first word after `zoo train`, `zoo plan` and `zoo data inspect`."""
OF_RECIPES = (["train"], ["plan"], ["data", "inspect"])
"""Commands that take a recipe."""
KEY = r"""[\w-]+|"[^"]*"|'[^']*'"""
"""A part of a key of TOML."""
NO_OPTIONS = {"recipe", "family", "extended_from", "model.compute.sequence"}
"""Values in the config.json of a run that are no options, or have words of their own."""
TASK_KEYS = ("task", "group", "include")
"""Keys of the files of lm-evaluation-harness's tasks."""
NOT_TAKEN = ("machine.", "model.exported.")
"""Groups of values that are not taken from a run: where it ran, and what its weights came from."""


def take_config(command: str, args: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Return the words of a command with the options of the file that --config names, and where the file has each option.

    Options on the command line replace those of the file.

    Args:
        command: the command.
        args: the words after it.

    Returns:
        The words without --config, and option -> "FILE line N".

    Raises:
        BadInput: --config has no value or two, the file cannot be read, or it names code that the user has not confirmed.
    """
    words, name = _split(args)
    if not name:
        return words, {}
    file = Path(name)
    if file.is_dir():
        raise BadInput(f"{OPTION} {name}: is a folder; name a file in it, such as {file / 'config.json'}")
    text, values = _read(file)
    explicit = {_option_name(word) for word in words if word.startswith("--")}
    recipe = values.pop(RECIPE, "")
    start = next((len(prefix) for prefix in OF_RECIPES if [command, *words][: len(prefix)] == prefix), 0)
    if start and (len(words) < start or words[start - 1].startswith("-")) and recipe:
        words.insert(start - 1, str(recipe))
    if is_run_config(file, values):
        named = words[start - 1] if start and len(words) >= start else str(recipe)
        leaves = _run_options(file, named, words)
    else:
        leaves = dict(_leaves(values, ""))
    leaves = {key: value for key, value in leaves.items() if _option_name(f"--{key}") not in explicit}
    _check_trusted(file, values, leaves)
    lines = key_lines(text, file.suffix)
    places = {}
    for key, value in leaves.items():
        line = lines.get(key) or lines.get(key.rpartition(".")[0])
        places[_option_name(f"--{key}")] = f"{name} line {line}" if line else name
        words += option_words({key: value})
    return words, places


@contextlib.contextmanager
def name_places(places: Mapping[str, str]) -> Iterator[None]:
    """Put the file and the line before an error about an option that a file has.

    Raises:
        BadInput: the error of the block.
    """
    try:
        yield
    except BadInput as error:
        option = re.match(r"(?:there is no option )?(--[\w.-]+)", str(error))
        place = places.get(_option_name(option[1].rstrip(":")), "") if option else ""
        raise (BadInput(f"{place}: {error}") if place else error) from None


def is_run_config(file: Path, values: Mapping[str, Any]) -> bool:
    """Return whether a file is the config.json of a run."""
    return file.name == "config.json" and "family" in values


def is_options_file(file: Path) -> bool:
    """Return whether a path is that of a file of options, and not of a folder or a task of lm-evaluation-harness."""
    if not file.is_file() or file.suffix not in FORMATS:
        return False
    if file.suffix not in (".yaml", ".yml"):
        return True
    try:
        import yaml
    except ModuleNotFoundError:
        return False
    try:
        node = yaml.compose(read_regular_text(file))
    except (yaml.YAMLError, UnusableFile, RecursionError):
        return False
    # A task has one of these keys, or, if others include it, functions, whose tags are not those of YAML.
    pairs = node.value if isinstance(node, yaml.MappingNode) else []
    is_task = any(key.value in TASK_KEYS or not value.tag.startswith("tag:yaml.org,") for key, value in pairs)
    return bool(pairs) and not is_task


def options_references(file: Path) -> trust.References:
    """Return what a file of options names that a user confirms, see `zoo.trust`.

    Raises:
        BadInput: the file cannot be read.
    """
    _, values = _read(file)
    return _references(file, values, dict(_leaves(values, "")))


def _references(file: Path, values: Mapping[str, Any], leaves: Mapping[str, Any]) -> trust.References:
    from train.config.run_plugins import references
    from train.run.run_dir import run_references

    names = references(_nested(leaves))
    if is_run_config(file, values):
        own = run_references(file.parent)
        return trust.References(str(file.parent), file.name, names, own.content)
    return trust.References(str(file), file.name, names, dict(_leaves(values, "")))


def _check_trusted(file: Path, values: Mapping[str, Any], leaves: Mapping[str, Any]) -> None:
    """Refuse code and addresses that a file names, unless the user has confirmed the file or the run.

    The options of a command line are the user's own words, and these become options of one.
    """
    references = _references(file, values, leaves)
    trust.admit_references(references)
    trust.check_trusted(map(trust.key_of, references.names))


def _split(args: Sequence[str]) -> tuple[list[str], str]:
    """Return the words without --config and its value, and this value; "" if there is none."""
    others, files, words = [], [], iter(args)
    for word in words:
        option, equals, value = word.partition("=")
        if option != OPTION:
            others.append(word)
            continue
        files.append(value if equals else next(words, ""))
        if not files[-1] or files[-1].startswith("-"):
            raise BadInput(f"{OPTION}: has no value; name a TOML, YAML or JSON file of options")
    if len(files) > 1:
        raise BadInput(f"{OPTION} {files[1]}: named twice; put all options into one file")
    return others, "".join(files)


def _read(file: Path) -> tuple[str, dict[str, Any]]:
    """Return the text of a file of options, and its content."""
    readers = dict(zip(FORMATS, (tomllib.loads, _load_yaml, _load_yaml, json.loads), strict=True))
    if file.suffix not in readers:
        raise BadInput(f"{OPTION} {file}: choose a file that ends in .toml, .yaml or .json")
    try:
        text = read_regular_text(file, LARGEST)
        values = readers[file.suffix](text)
    except UnusableFile as error:
        raise BadInput(f"{OPTION} {error}") from None
    except OSError as error:
        raise BadInput(f"{OPTION} {file}: cannot be read ({error.strerror}); name a file of options") from None
    except (ValueError, RecursionError) as error:
        raise BadInput(
            f"{OPTION} {file}: not valid {file.suffix[1:].upper()} ({' '.join(str(error).split())}); correct it"
        ) from None
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise BadInput(f"{OPTION} {file}: expected options by name, as steps = 100 in TOML; correct it")
    if "model_type" in values and "family" not in values:
        raise BadInput(f"{OPTION} {file}: it belongs to published weights; name the config.json of a run, or a file of options")
    return text, values


def _load_yaml(text: str) -> Any:
    """Parse YAML without aliases, by which a short text can stand for a very long one.

    Raises:
        BadInput: PyYAML is not installed.
        ValueError: not valid YAML.
    """
    try:
        import yaml
    except ModuleNotFoundError:
        raise BadInput(f"{OPTION}: YAML needs PyYAML, which is not installed; pip install pyyaml, or write TOML") from None
    try:
        if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text)):
            raise ValueError("it has an alias, *NAME; write the value instead")
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from None


def _run_options(file: Path, recipe: str, words: Sequence[str]) -> dict[str, Any]:
    """Return the options with which a recipe gives the run that a config.json describes.

    Args:
        recipe: the recipe on the command line, or else of the file.
        words: the options on the command line; --init and --objective decide which default values a recipe has.
    """
    from train.config.usable_options import unusable_options
    from train.run.run_dir import read_config
    from zoo.cli.command_setup import option_value

    run = read_config(file.parent)
    init, objective = (option_value(list(words), option) for option in ("--init", "--objective"))
    try:
        options = options_beside_recipe(run, recipe, init=init or run.init, objective=objective or run.objective)
    except BadInput as error:
        raise BadInput(f"{file}: {error}") from None
    unusable = NO_OPTIONS | unusable_options(run, tokenizer=run.tokenizer.kind)
    return {
        key: value
        for key, value in options.items()
        if not key.startswith(NOT_TAKEN) and not any(key == name or key.startswith(f"{name}.") for name in unusable)
    }


def _leaves(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    """Yield the dotted keys and values of nested options, with underscores as Python writes them."""
    for name, value in values.items():
        key = f"{prefix}{name}".replace("-", "_")
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{key}.")
        else:
            yield key, value


def _nested(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Return options by dotted key as nested objects, as in the config.json of a run."""
    nested: dict[str, Any] = {}
    for key, value in leaves.items():
        *groups, name = key.split(".")
        inner = nested
        for group in groups:
            inner = inner.setdefault(group, {})
            if not isinstance(inner, dict):
                raise BadInput(f"{key}: {group} has a value and options of its own; leave one out")
        inner[name] = value
    return nested


def _option_name(word: str) -> str:
    """Return the name of an option of a command line without its negation: "selection.best" for --selection.no-best."""
    group, dot, last = word.partition("=")[0].removeprefix("--").replace("-", "_").rpartition(".")
    return f"{group}{dot}{last.removeprefix('no_')}"


def key_lines(text: str, suffix: str) -> dict[str, int]:
    """Return the line of each key, from 1 on, by its dotted name with underscores, of a file that is valid.

    A key within an inline table of TOML is absent.
    """
    pairs = {".toml": _toml_keys, ".json": _json_keys}.get(suffix, _yaml_keys)(text)
    lines: dict[str, int] = {}
    for key, line in pairs:
        lines.setdefault(key.replace("-", "_"), line)
    return lines


def _toml_keys(text: str) -> Iterator[tuple[str, int]]:
    dotted = rf"((?:{KEY})(?:\s*\.\s*(?:{KEY}))*)"
    prefix = ""
    for number, line in enumerate(text.splitlines(), 1):
        if header := re.match(rf"\s*\[\s*{dotted}\s*\]", line):
            prefix = f"{_plain(header[1])}."
            yield prefix[:-1], number
        elif entry := re.match(rf"\s*{dotted}\s*=", line):
            yield f"{prefix}{_plain(entry[1])}", number


def _plain(dotted: str) -> str:
    """Return a dotted key of TOML without quotes and spaces."""
    return ".".join(part.strip("\"'") for part in re.findall(KEY, dotted))


def _json_keys(text: str) -> Iterator[tuple[str, int]]:
    path: list[str] = []
    last = ""
    for token in re.finditer(r'"((?:\\.|[^"\\])*)"|[{}:]', text):
        if token[0] == "{":
            path.append("")
        elif token[0] == "}":
            path.pop()
        elif token[0] == ":":
            path[-1] = last
            yield ".".join(path), text.count("\n", 0, token.start()) + 1
        else:
            last = token[1]


def _yaml_keys(text: str) -> Iterator[tuple[str, int]]:
    import yaml

    def walk(node: Any, prefix: str) -> Iterator[tuple[str, int]]:
        if not isinstance(node, yaml.MappingNode):
            return
        for key, value in node.value:
            name = f"{prefix}{key.value}"
            yield name, key.start_mark.line + 1
            yield from walk(value, f"{name}.")

    yield from walk(yaml.compose(text), "")
