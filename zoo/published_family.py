"""The family of a published config.json, which a plug-in provides only with the user's permission. Nothing here imports JAX."""

from pathlib import Path
from typing import Any

from zoo import configs, plugins, trust
from zoo.hf.config_json import PublishedConfig
from zoo.sha256_and_fsync import sha256

GROUP = "zoo.models"


def find_family(published: PublishedConfig) -> str:
    """Return the name of the family, whose module is not imported.

    Raises:
        BadInput: there is no such family, or it is a plug-in's and the user has not confirmed the folder (`zoo.trust`).
    """
    name = published.choice("model_type", configs.published_types(), "none", why="the families here are")
    if name not in configs.families():
        trust.admit_references(published_references(published.file, name), [plugins.GROUPS[GROUP]])
    return name


def published_references(file: Path, model_type: Any) -> trust.References:
    """Return the plug-in that the `model_type` of a published config.json names, for `zoo.trust`."""
    used = [plugin for plugin in plugins.installed_plugins(GROUP) if plugin.name == model_type]
    own = {name for name, family in configs.published_types().items() if family in configs.families()}
    names = tuple(plugin.reference() for plugin in used if plugin.name not in own)
    return trust.References(str(file.parent), file.name, names, sha256(file))
