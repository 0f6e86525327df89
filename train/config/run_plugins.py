"""Code that a run names, above all plug-ins, and the requirements on an objective from a plug-in. Nothing here imports JAX."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, get_args

from train.config.optim_options import Optimizer
from train.config.reward_names import FunctionName, parse_reward
from train.config.run_config import Run
from zoo import configs, object_store, plugins, trust
from zoo.configs import Implementation, Objective
from zoo.errors import BadInput
from zoo.hf import hub
from zoo.plugins import Plugin
from zoo.trust import REWARD, Reference


def used_plugins(run: Run) -> list[Plugin]:
    """Return the plug-ins that provide the recipe, hooks, model, objective, attention and optimizer of a run."""
    attention = getattr(getattr(run.model, "compute", None), "attention", "auto")
    recipes = [plugin for plugin in plugins.installed_plugins("zoo.recipes") if plugin.name == run.recipe]
    hooks = [plugin for plugin in plugins.installed_plugins("zoo.hooks") if plugin.name in run.log.hooks]
    return recipes + hooks + _plugins_of(configs.family_of(run.model), run.objective, attention, run.optim.name)


def _plugins_of(family: Any, objective: Any, attention: Any, optimizer: Any) -> list[Plugin]:
    """Return the plug-ins with these names, which may be any values of a file."""
    named = {
        "zoo.models": (family, configs.families()),
        "zoo.objectives": (objective, get_args(Objective)),
        "zoo.attention": (attention, get_args(Implementation)),
        "zoo.optimizers": (optimizer, get_args(Optimizer)),
    }
    return [
        plugin
        for group, (name, own) in named.items()
        if isinstance(name, str) and name not in own
        for plugin in plugins.installed_plugins(group)
        if plugin.name == name
    ]


def references(config: Mapping[str, Any]) -> tuple[Reference, ...]:
    """Return what the content of a run's config.json names: plug-ins, reward functions, and what would be fetched.

    The recipe and the folder of the run are not among them: reading a run uses neither. The values may be of any type.
    """
    attention = _value(config, "model", "compute", "attention")
    optimizer = _value(config, "optim", "name")
    used = _plugins_of(config.get("family"), config.get("objective"), attention, optimizer)
    names = [plugin.reference() for plugin in used]
    rewards = _value(config, "rollout", "reward")
    for text in rewards if isinstance(rewards, list | tuple) else ():
        try:
            parsed = parse_reward(text) if isinstance(text, str) else None
        except BadInput:
            # Nothing is imported for it: who uses it raises the error.
            continue
        if isinstance(parsed, FunctionName) and not parsed.is_own:
            names.append(Reference(REWARD, text, trust.find_module(parsed.module)))
    return (*names, *(Reference(key, text, is_code=False) for key, text in _addresses(config, "") if key != "out"))


def _value(config: Any, *keys: str) -> Any:
    for key in keys:
        config = config.get(key) if isinstance(config, Mapping) else None
    return config


def _addresses(value: Any, key: str) -> Iterator[tuple[str, str]]:
    """Return the texts that name something on the network, with their dotted keys."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from _addresses(item, f"{key}.{name}".removeprefix("."))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _addresses(item, key)
    elif isinstance(value, str) and (value.startswith(hub.PREFIX) or object_store.is_uri(value)):
        yield key, value


def find_hook(name: str) -> Plugin:
    """Return the plug-in that --log.hooks names; nothing is imported.

    Raises:
        BadInput: there is no such plug-in, or two distributions provide it.
    """
    if (plugin := plugins.find_plugin("zoo.hooks", name, ())) is None:
        names = ", ".join(plugins.described_plugins("zoo.hooks")) or "none is installed"
        raise BadInput(f"--log.hooks {name}: no plug-in in the group zoo.hooks has this name; choose from: {names}")
    return plugin


def load_hook_factory(name: str) -> Callable[[Run], Callable[[Any], None]]:
    """Load a plug-in's function, which takes a run and returns its hook (see `train.loop.hooks`).

    Raises:
        BadInput: no plug-in has this name (see `find_hook`), or it cannot be used.
    """
    return plugins.load_plugin(
        find_hook(name), "a function that takes a `train.config.run_config.Run` and returns a hook", callable
    )
