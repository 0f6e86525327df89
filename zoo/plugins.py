"""Plug-ins: models, objectives, attention, optimizers, tasks, recipes and hooks of other packages. Nothing here imports JAX.

A distribution extends the zoo by an entry point in one of `GROUPS`. The names are read from the metadata of the installed
distributions once, when a name is first looked up. An object is imported only when its name is requested, so that a broken
plug-in affects only those who use it.
"""

import dataclasses
import difflib
import functools
import importlib
import importlib.metadata
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from zoo.errors import DISTRIBUTION, BadInput
from zoo.trust import Reference

GROUPS = {
    "zoo.models": "model family",
    "zoo.objectives": "objective",
    "zoo.attention": "attention implementation",
    "zoo.optimizers": "optimizer",
    "zoo.tasks": "task",
    "zoo.recipes": "recipe",
    "zoo.hooks": "hook",
}
"""Group of entry points -> the noun for its members, in messages."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plugin:
    """An entry point of an installed distribution."""

    group: str
    name: str
    value: str
    """The object: MODULE or MODULE:ATTRIBUTE."""
    distribution: str
    version: str

    @property
    def origin(self) -> str:
        """The distribution with its version."""
        return f"{self.distribution} {self.version}".strip()

    @property
    def title(self) -> str:
        """The kind, the name and the distribution, for messages."""
        return f"{GROUPS[self.group]} {self.name!r} of {self.origin}"

    def record(self) -> dict[str, str]:
        """Return what config.json stores about a plug-in that a run uses."""
        return {name: getattr(self, name) for name in RECORDED}

    def reference(self) -> Reference:
        """Return the reference to the plug-in in a folder; another version of the distribution has the same one."""
        return Reference(GROUPS[self.group], self.name, f"{self.value} of {self.distribution}")


RECORDED = ("group", "name", "distribution", "version")
LONGEST = 100
"""Number of characters of the longest name or version in a record."""
PATTERNS = {
    "name": re.compile(r"\w([\w.-]*\w)?", re.ASCII),
    "distribution": re.compile(r"[a-z0-9]([a-z0-9._-]*[a-z0-9])?", re.ASCII | re.IGNORECASE),
    "version": re.compile(r"(v?[0-9][a-z0-9.!+_-]*)?", re.ASCII | re.IGNORECASE),
}
"""The values of a record: names of entry points as the packaging guide recommends them, those of distributions as in PEP 508, and
the characters of versions as in PEP 440."""


@functools.cache
def _installed() -> Mapping[str, tuple[Plugin, ...]]:
    """Return the plug-ins of each group, by name."""
    entries = importlib.metadata.entry_points()
    by_group = {}
    for group in GROUPS:
        plugins = []
        for entry in entries.select(group=group):
            distribution = entry.dist
            name = (distribution.name if distribution else "") or "unnamed"
            version = (distribution.version if distribution else "") or ""
            plugins.append(Plugin(group=group, name=entry.name, value=entry.value, distribution=name, version=version))
        by_group[group] = tuple(sorted(plugins, key=lambda plugin: (plugin.name, plugin.distribution)))
    return by_group


def installed_plugins(group: str) -> tuple[Plugin, ...]:
    """Return the plug-ins of a group, by name; none of them is imported."""
    return _installed()[group]


def plugin_names(group: str) -> list[str]:
    """Return the names that plug-ins add to a group, each once."""
    return list(dict.fromkeys(plugin.name for plugin in installed_plugins(group)))


def described_plugins(group: str) -> list[str]:
    """Return the names that plug-ins add to a group, each with its distribution, for lists."""
    return [f"{plugin.name} ({plugin.origin})" for plugin in installed_plugins(group)]


def plugin_owner(group: str, name: str) -> str:
    """Return the name in a group that is `name`, or that `name` begins with before a hyphen; "" if there is none."""
    return next((entry for entry in plugin_names(group) if f"{name}-".startswith(f"{entry}-")), "")


def find_plugin(group: str, name: str, own: Collection[str]) -> Plugin | None:
    """Return the plug-in with a name; None if the name is one of the zoo's `own`, or if there is none.

    Raises:
        BadInput: the zoo and a distribution, or two distributions, have this name.
    """
    plugins = [plugin for plugin in installed_plugins(group) if plugin.name == name]
    if not plugins:
        return None
    if name in own or len(plugins) > 1:
        origins = [*([DISTRIBUTION] if name in own else []), *(plugin.origin for plugin in plugins)]
        fix = f"uninstall {plugins[0].distribution}" if name in own else "uninstall one of them"
        where = f"rename its entry point in the group {group}"
        raise BadInput(f"{GROUPS[group]} {name!r}: provided by {' and by '.join(origins)}; {fix}, or {where}")
    return plugins[0]


def check_name(group: str, name: str, own: Sequence[str], key: str) -> None:
    """Refuse a value of an option that is neither one of the zoo's `own` names nor a plug-in's; nothing is imported.

    Raises:
        BadInput: there is no such name, with the nearest and all; or two distributions have it.
    """
    if name not in own and find_plugin(group, name, own) is None:
        near = difflib.get_close_matches(name, [*own, *plugin_names(group)], n=1, cutoff=0.0)[0]
        choices = ", ".join([*own, *described_plugins(group)])
        raise BadInput(f"--{key} {name}: choose {choices}; the nearest is {near}")


def load_plugin(plugin: Plugin, expected: str, fits: Callable[[Any], bool]) -> Any:
    """Return the object of a plug-in, which is imported by the first call.

    Args:
        expected: description of the required object, for the message.
        fits: returns whether an object is as expected.

    Raises:
        BadInput: it cannot be imported, or is something else.
    """
    value = _import(plugin)
    if plugin not in _ACCEPTED and not fits(value):
        kind = type(value).__name__
        fix = f"see docs/extending.md, or report it to {plugin.distribution}"
        raise BadInput(f"{plugin.title}: {plugin.value} is a {kind}; expected {expected}; {fix}")
    _ACCEPTED.add(plugin)
    return value


_ACCEPTED: set[Plugin] = set()
"""Plug-ins whose object was checked."""


@functools.cache
def _import(plugin: Plugin) -> Any:
    entry = importlib.metadata.EntryPoint(plugin.name, plugin.value, plugin.group)
    try:
        return entry.load()
    except MemoryError:
        raise
    except (Exception, SystemExit) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        fix = f"reinstall or fix {plugin.distribution}, or uninstall it"
        raise BadInput(f"{plugin.title}: {plugin.value} cannot be imported ({reason}); {fix}") from error


def has_attributes(value: Any, *functions: str, attributes: Sequence[str] = ()) -> bool:
    """Return whether an object has these functions, and these attributes of any kind."""
    return all(callable(getattr(value, name, None)) for name in functions) and all(hasattr(value, name) for name in attributes)


# --- plug-ins of a run ----------------------------------------------------------------------------------------------------------

UNREAD = ("zoo.recipes", "zoo.hooks")
"""Groups whose plug-ins a run is not read with: its config.json has the values of a recipe, and hooks run in training alone."""


def check_records(records: Any, without: Collection[str] = ()) -> None:
    """Refuse a config.json with a plug-in that is not installed; another version of it is accepted (see `plugin_changes`).

    Args:
        without: groups whose plug-ins are not needed.

    Raises:
        BadInput: one is missing, or its name now belongs to another distribution; or the records are malformed.
    """
    for record in _parse(records):
        others = [plugin for plugin in installed_plugins(record.group) if plugin.name == record.name]
        if record.group in (*UNREAD, *without) or record.distribution in (plugin.distribution for plugin in others):
            continue
        version = f", version {record.version}," if record.version else ""
        instead = f"; here {' and '.join(plugin.origin for plugin in others)} has this name" if others else ""
        # No command to copy: the name is that of whoever wrote the file.
        fix = f"install the distribution {record.distribution}{version} if you trust it"
        raise BadInput(f"the run uses the {record.title}, which is not installed{instead}; {fix}")


def plugin_changes(records: Any) -> list[str]:
    """Return a line for each plug-in in a config.json whose installed version is another one."""
    lines = []
    for record in _parse(records):
        for plugin in installed_plugins(record.group):
            same = (plugin.name, plugin.distribution) == (record.name, record.distribution)
            if same and plugin.version != record.version and record.group not in UNREAD:
                fix = f"version {record.version} of the distribution {record.distribution} restores it"
                lines.append(f"{record.title}: the run used this version, and {plugin.version} is installed; {fix}")
    return lines


def _parse(records: Any) -> list[Plugin]:
    plugins = []
    for record in records if isinstance(records, list) else [records]:
        valid = isinstance(record, dict) and record.keys() == set(RECORDED) and record["group"] in GROUPS
        if not valid or not all(isinstance(value, str) for value in record.values()):
            raise BadInput(f"plugins: expected a list of objects with {', '.join(RECORDED)}, found {str(record)[:60]!r}")
        for key, pattern in PATTERNS.items():
            if len(record[key]) > LONGEST or not pattern.fullmatch(record[key]):
                raise BadInput(f"plugins: {record[key][:60]!r} is not the {key} of a plug-in; restore the file")
        plugins.append(Plugin(**record, value=""))
    return plugins
