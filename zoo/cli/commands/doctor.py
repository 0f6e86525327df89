"""`zoo doctor`."""

from zoo.cli.machine import on_machine
from zoo.cli.options import parse


def doctor(args: list[str]) -> int:
    """`zoo doctor`."""
    from train.config.run_config import Machine

    machine = parse(Machine, args=args, prog="zoo doctor", description=DESCRIPTION)
    if (code := on_machine(machine, ["doctor", *args], canary=False)) is not None:
        return code
    from zoo.attention import attention
    from zoo.cli import doctor_report

    return doctor_report.doctor(attention.usable(), attention.auto())


DESCRIPTION = """Versions, devices and attention implementations of this machine, and whether it computes right numbers.

Ends with 1 if it does not, or if parts of the zoo come from different places."""
