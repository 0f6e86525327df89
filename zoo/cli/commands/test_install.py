"""The command `zoo test-install`."""

import dataclasses

from zoo.cli.command_setup import prepare_process
from zoo.cli.option_parser import parse


def test_install(args: list[str]) -> int:
    """Run `zoo test-install`."""
    from train.config.run_config import Machine

    @dataclasses.dataclass(frozen=True)
    class TestInstall:
        """Check an installation: its files, the checks of zoo doctor, all modules, and a tiny model.

        The model is trained for a step, exported and loaded again. Nothing is written outside of a temporary folder and the
        cache. The exit code is 1 if a check fails.
        """

    parse(TestInstall, args=args, prog="zoo test-install")
    if (code := prepare_process(Machine(), ["test-install"], canary=False)) is not None:
        return code
    from zoo.cli import install_checks

    return install_checks.run_install_checks()
