"""`zoo doctor`."""

from zoo.commands.machine import on_machine
from zoo.commands.options import parse


def doctor(args: list[str]) -> int:
    """`zoo doctor`."""
    from train.config import Machine

    machine = parse(Machine, args=args, prog="zoo doctor", description=DESCRIPTION)
    if (code := on_machine(machine, ["doctor", *args], canary=False)) is not None:
        return code
    from zoo import attention
    from zoo import doctor as doctors

    return doctors.doctor(attention.usable(), attention.auto())


DESCRIPTION = """Versions, devices and attention implementations of this machine, and whether it computes right numbers.

Ends with 1 if it does not, or if parts of the zoo come from different places."""
