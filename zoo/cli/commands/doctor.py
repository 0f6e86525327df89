"""The command `zoo doctor`."""

import dataclasses
from typing import Annotated

from zoo.cli.command_setup import prepare_process
from zoo.cli.option_parser import parse


def doctor(args: list[str]) -> int:
    """Run `zoo doctor [--json]`."""
    import tyro

    from train.config.run_config import Machine

    @dataclasses.dataclass(frozen=True)
    class Doctor:
        json: bool = False
        """Print JSON."""
        machine: Annotated[Machine, tyro.conf.arg(name="", prefix_name=False)] = dataclasses.field(default_factory=Machine)

    options = parse(Doctor, args=args, prog="zoo doctor", description=DESCRIPTION)
    if (code := prepare_process(options.machine, ["doctor", *args], canary=False)) is not None:
        return code
    from train.engine import loss_chunks
    from zoo.attention import attention
    from zoo.cli import doctor_report

    auto = attention.describe_auto(), attention.auto_reasons()
    logits = loss_chunks.describe_rule()
    return doctor_report.print_doctor_report(
        attention.implementation_status(), *auto, logits=logits, wrong=attention.wrong_kernels(), as_json=options.json
    )


DESCRIPTION = """Show versions, devices and attention implementations of this machine, and check that it computes correct numbers.

The exit code is 1 if it does not, or if the packages of the zoo come from different folders."""
