"""Set-up that the commands share: start processes, and check options that concern the machine or have no value."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from zoo.cli import early_checks
from zoo.errors import BadInput, require
from zoo.mesh_axes import AXES


def refuse_empty_options(run: Any, args: list[str]) -> None:
    """Refuse --data options without values: an empty shell variable must not select the embedded corpus."""
    for name, values in vars(run.data).items():
        name = name.replace("_", "-")
        # No values are no ramp.
        if name != "ramp" and values == () and f"--data.{name}" in (arg.replace("_", "-") for arg in args):
            raise BadInput(f"--data.{name}: has no value; give one or more, or leave the option out")


def require_one_process(machine: Any) -> None:
    """Refuse --processes above 1, for a command that writes one folder."""
    require(machine.processes == 1, "processes", machine.processes, "this command runs in one process; leave the option out")


def prepare_process(
    machine: Any, argv: list[str], *, canary: bool = True, stacks: Path | None = None, smaller_group_sizes: Sequence[int] = ()
) -> int | None:
    """Prepare this process for JAX and return None, or run --processes local processes and return their exit code.

    Args:
        machine: the `train.config.run_config.Machine`; that of a run also says what happens when a process fails.
        argv: the words of the command line after `zoo`.
        canary: raise an error if XLA computes wrong numbers.
        stacks: file for the stacks of processes that are stuck; None: stderr.
        smaller_group_sizes: numbers of local processes in which a run may continue, see `zoo.runtime.local_group.Supervision`.
    """
    from zoo.runtime import launch, local_group, progress

    supervision = local_group.Supervision(
        hang_after=getattr(machine, "hang_after", progress.ALLOWANCE),
        restarts=getattr(machine, "restarts", 0),
        smaller_group_sizes=tuple(smaller_group_sizes),
        stacks=stacks,
    )
    code = launch.prepare_launch(
        argv,
        devices=machine.devices,
        processes=machine.processes,
        coordinator=machine.coordinator,
        process=machine.process,
        canary=canary,
        supervision=supervision,
    )
    if code is None:
        set_attention_check(machine)
    return code


def set_attention_check(machine: Any) -> None:
    """Switch the check of attention kernels on or off in this process, by --attention-check."""
    from zoo.attention.kernel_check import first_uses

    first_uses.enabled = machine.attention_check == "on"


def prepare_model_command(
    model: Any, argv: list[str], files: Mapping[str, Sequence[str]], check: Callable[[str], None] = lambda source: None
) -> int | None:
    """Check the source and the files of a command that computes with a model, and prepare this process as `prepare_process`.

    Args:
        model: the `eval.commands.model_options.ModelOptions`.
        argv: the words of the command line after `zoo`.
        files: option -> files that it names; "-" is standard input.
        check: a further check of the source.
    """
    # Each of several processes would read a part of standard input or of a pipe.
    fix = "only one process can read standard input; give --files a file"
    streams = any(name == "-" or Path(name).is_fifo() for names in files.values() for name in names)
    several = streams and model.machine.processes > 1
    require(not several, "processes", model.machine.processes, fix)
    early_checks.check_source(model.source, model.step)
    early_checks.check_adapter(model.adapter)
    for option, names in files.items():
        early_checks.check_files(option, names, folders=option == "--files")
    check(model.source)
    early_checks.check_weights(model.source)
    return prepare_process(model.machine, argv)


def option_value(args: list[str], name: str) -> str:
    """Return the value of an option among arguments that are not parsed yet; "" if the option is absent."""
    for index, arg in enumerate(args):
        if arg.startswith(f"{name}="):
            return arg.removeprefix(f"{name}=")
        if arg == name and index + 1 < len(args):
            return args[index + 1]
    return ""


def names_option(args: list[str], name: str) -> bool:
    """Return whether arguments that are not parsed yet have an option."""
    return any(arg.partition("=")[0] == name for arg in args)


def named_fields(args: list[str], group: str) -> tuple[str, ...]:
    """Return the fields of a group of options that arguments name, also with their default values."""
    options = (arg.partition("=")[0].removeprefix(f"--{group}.") for arg in args if arg.startswith(f"--{group}."))
    return tuple(sorted({option.replace("-", "_").removeprefix("no_") for option in options}))


def named_mesh_axes(args: list[str]) -> tuple[str, ...]:
    """Return the axes of the mesh that arguments name, also with their default sizes."""
    return tuple(name for name in named_fields(args, "mesh") if name in AXES)


def take_adapter(run: Any, args: list[str]) -> Any:
    """Return a default run with the rank, scale and target modules of the adapter that --adapter names.

    Raises:
        BadInput: the adapter does not exist, or is of a kind that is not supported.
    """
    from train.config.lora_options import Lora

    folder = option_value(args, "--adapter")
    # A resumed run does not need the adapter that it began with, if the options repeat its rank.
    if not folder or (option_value(args, "--lora.rank") and not Path(folder).exists()):
        return run
    early_checks.check_adapter(folder)
    from zoo.lora import adapter_config

    adapters, _ = adapter_config.read_adapter_config(Path(folder))
    lora = Lora(
        rank=adapters.rank, alpha=adapters.alpha, targets=adapters.targets, rslora=adapters.rslora, dropout=adapters.dropout
    )
    return dataclasses.replace(run, lora=lora, init=option_value(args, "--init"), adapter=folder)


def unlisted_fields(run: Any, args: list[str], *, has_weights: bool = True) -> dict[type, set[str]]:
    """Return the fields of a default run that are no options of a command, by their class, for `option_parser.parse`.

    Args:
        args: the words of the command line after the name of the run.
        has_weights: the run may begin with the parameters of another model.

    Raises:
        BadInput: `args` has an option that only such a run has.
    """
    from train.config import usable_options

    kind = option_value(args, "--tokenizer.kind") or run.tokenizer.kind
    unusable = usable_options.unusable_options(run, tokenizer=kind, has_weights=has_weights)
    names = () if has_weights else (*usable_options.ADAPTERS, *usable_options.FINE_TUNING, usable_options.POSITIONS)
    for_weights = unusable.intersection(names)
    for option in (arg.partition("=")[0] for arg in args if arg.startswith("--")):
        name = option.removeprefix("--").replace("-", "_").replace(".no_", ".")
        if for_weights.intersection((name, name.partition(".")[0])):
            raise BadInput(f"{option}: only a run that begins with the parameters of a model has it; name one with --init")
    return usable_options.by_class(run, unusable)


def take_objective(run: Any, args: list[str]) -> tuple[Any, list[str]]:
    """Return a default run with the objective that --objective names, and the arguments without this option.

    The objective determines which options there are, so it is parsed before them.

    Raises:
        BadInput: there is no such objective.
    """
    from train.config.find_objective import with_objective

    if not (name := option_value(args, "--objective")):
        return run, args
    at = next(index for index, arg in enumerate(args) if arg.partition("=")[0] == "--objective")
    return with_objective(run, name), args[:at] + args[at + (1 if "=" in args[at] else 2) :]
