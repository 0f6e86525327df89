"""The command `zoo audit`."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any

from zoo.cli.command_setup import prepare_process, require_one_process
from zoo.cli.option_parser import parse
from zoo.errors import BadInput, printable, require
from zoo.file_access import check_output_file


def audit(args: list[str]) -> int:
    """Run `zoo audit RUN [options]` or `zoo audit [RUN] --verify FILE`; the exit code is 1 unless everything passes."""
    import tyro

    from train.config.run_config import Machine

    @dataclasses.dataclass(frozen=True)
    class Audit:
        """Replay parts of a run from its checkpoints, check its digests from the data to the score, and print a certificate.

        The exit code is 0 if every check passes, to the bit or within the bounds between machines, and 1 if one fails or cannot
        be made.
        """

        run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")] = ""
        """Folder of a run, trained with --log.ledger; its data must be where config.json names them."""
        steps: int = 3
        """Number of intervals of steps that are replayed; 0 = all steps of the run. The last one, and the one with the best
        checkpoint, are always among them, the others are chosen at random."""
        share: float = 0.02
        """Largest share of the steps of the run that the intervals take together. The last one is always replayed completely, and
        the one with the best checkpoint up to it, whatever the share: how long that takes depends on --checkpoint.every of the
        run. The others have at least a row of metrics."""
        seed: int | None = None
        """Seed of the choice of intervals. None = a hash of the run's files, which nobody chooses."""
        other_versions: bool = False
        """Compare with other versions of packages than those of the run: losses within a relative 1e-5, parameters within
        1e-3 of their norm."""
        out: str = ""
        """File for the certificate; empty = it is printed."""
        key: str = ""
        """SSH key (a private key, or the public one of a key that ssh-agent has) that signs the certificate, into FILE.sig."""
        verify: str = ""
        """Certificate whose signature, and whose digests of the files of the run, are checked; nothing is replayed."""
        signers: str = ""
        """File of the keys that may have signed, as `ssh-keygen` reads it: lines of NAME and a public key."""
        machine: Annotated[Machine, tyro.conf.arg(name="", prefix_name=False)] = dataclasses.field(default_factory=Machine)

    options = parse(Audit, args=args, prog="zoo audit")
    require(not options.signers or bool(options.verify), "signers", options.signers, "it belongs to --verify; leave it out")
    return _verify(options) if options.verify else _audit(options, args)


def _audit(options: Any, args: list[str]) -> int:
    """Audit a run, print or write the certificate, and return the exit code."""
    from eval.audit import certificate
    from eval.audit.run_digests import require_audit_files
    from train.run.run_dir import RunDir, read_config
    from train.store import run_fetch

    if not options.run:
        raise BadInput("RUN: name the folder of a run, as in zoo audit runs/gpt-nano")
    require(options.steps >= 0, "steps", options.steps, "choose 1 or more intervals, or 0 for all steps")
    require(0 < options.share <= 1, "share", options.share, "choose a share above 0 and up to 1")
    require(options.seed is None or 0 <= options.seed < 1 << 32, "seed", options.seed, "choose 0 to 4,294,967,295")
    if options.out:
        check_output_file(Path(options.out), "out")
        check_output_file(certificate.signature_path(Path(options.out)), "out")
    if options.key:
        certificate.check_key(options.key, options.out)
    require_one_process(options.machine)
    path = run_fetch.local_name(options.run, all_steps=True)
    run = read_config(path)
    require_audit_files(RunDir(path))
    # As many simulated devices as the run had, unless others are asked for.
    devices = options.machine.devices or run.machine.devices * run.machine.processes
    machine = dataclasses.replace(options.machine, devices=devices)
    if (code := prepare_process(machine, ["audit", *args])) is not None:
        return code
    from eval.audit.audit_run import AuditOptions, audit_run

    chosen = AuditOptions(steps=options.steps, share=options.share, seed=options.seed, other_versions=options.other_versions)
    result = audit_run(path, chosen)
    if options.out:
        certificate.write_certificate(result, Path(options.out), options.key)
        _print_checks(result["checks"])
        print(f"{result['verdict']}: {options.out}")
    else:
        print(certificate.certificate_text(result), end="")
    return 0 if result["verdict"] in certificate.PASSED else 1


def _verify(options: Any) -> int:
    """Check a certificate, print the results, and return the exit code."""
    from eval.audit import certificate
    from train.store import run_fetch

    folder = run_fetch.local_name(options.run, all_steps=True) if options.run else ""
    content, checks = certificate.verify_certificate(Path(options.verify), folder, options.signers)
    _print_checks([dataclasses.asdict(check) | {"check": check.name} for check in checks])
    verdict = certificate.verdict_of(checks, exact=content["verdict"] == "passed")
    print(f"{verdict}: {options.verify}")
    return 0 if verdict in certificate.PASSED else 1


def _print_checks(checks: list[dict[str, Any]]) -> None:
    for check in checks:
        print(printable(f"{check['result']:11}  {check['check']}{': ' if check['detail'] else ''}{check['detail']}"))
