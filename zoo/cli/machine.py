"""What commands do about the machine they run on, and about options that are left empty."""

from typing import Any

from zoo.errors import BadInput, require


def refuse_unnamed(run: Any, args: list[str]) -> None:
    """Refuse an option without its values: an empty shell variable must not mean the embedded corpus."""
    several = {"paths": run.data.paths, "valid-paths": run.data.valid_paths, "weights": run.data.weights}
    for name, values in several.items():
        if not values and f"--data.{name}" in (arg.replace("_", "-") for arg in args):
            raise BadInput(f"--data.{name}: nothing is named; name something, or leave the option out")


def alone(machine: Any) -> None:
    """Refuse several processes for a command that writes one folder."""
    require(machine.processes == 1, "processes", machine.processes, "this command runs in one process")


def on_machine(machine: Any, argv: list[str], *, canary: bool = True) -> int | None:
    """Prepare this process for JAX, or start the processes asked for and return their exit code."""
    from zoo.runtime import launch

    return launch.enter(
        argv,
        devices=machine.devices,
        processes=machine.processes,
        coordinator=machine.coordinator,
        process=machine.process,
        canary=canary,
    )


def option(args: list[str], name: str) -> str:
    """The value of an option among arguments that are not parsed yet; "" where it is not given."""
    for place, arg in enumerate(args):
        if arg.startswith(f"{name}="):
            return arg.removeprefix(f"{name}=")
        if arg == name and place + 1 < len(args):
            return args[place + 1]
    return ""


def one_reader(machine: Any, texts: Any) -> None:
    """Refuse several processes to share standard input: each would read a part of it."""
    fix = "only one process can read standard input; give --files a file"
    require("-" not in texts.files or machine.processes == 1, "processes", machine.processes, fix)
