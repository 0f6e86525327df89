"""`zoo doctor`."""

from zoo.commands.machine import on_machine


def doctor(args: list[str]) -> int:
    """`zoo doctor`."""
    import tyro

    from train.config import Machine

    machine = tyro.cli(Machine, args=args, prog="zoo doctor")
    if (code := on_machine(machine, ["doctor", *args], canary=False)) is not None:
        return code
    from zoo import attention
    from zoo import doctor as doctors

    return doctors.doctor(attention.usable(), attention.auto())
