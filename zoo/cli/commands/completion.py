"""The command `zoo completion`."""

import dataclasses
from typing import Annotated

from zoo.cli.option_parser import parse
from zoo.errors import BadInput


def completion(args: list[str]) -> int:
    """Run `zoo completion bash|zsh|fish`."""
    import tyro

    from zoo.cli.completion.word_tables import SHELLS

    @dataclasses.dataclass(frozen=True)
    class Completion:
        """Print the script that completes commands, recipes, options and their values in a shell.

        Write it to a file once, and again after an upgrade: docs/install.md names the file of each shell.
        """

        shell: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SHELL")]
        """bash, zsh or fish."""

    options = parse(Completion, args=args, prog="zoo completion")
    if options.shell not in SHELLS:
        raise BadInput(f"completion {options.shell}: choose {', '.join(SHELLS)}")
    from zoo.cli.completion import shell_scripts

    print(shell_scripts.completion_script(options.shell), end="")
    return 0
