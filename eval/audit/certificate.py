"""The certificate of an audit: its text, its signature by ssh-keygen, and the check of both by a third party.

Nothing here imports JAX.
"""

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.audit.audit_types import Check, passed_or_failed
from eval.audit.run_digests import check_arrays, digest_run_files
from train.run.run_dir import RunDir, write_text
from zoo.errors import BadInput
from zoo.file_access import LARGEST_JSON, open_regular, read_regular
from zoo.json_shapes import shape_problem

FORMAT = 1
NAMESPACE = "zoo-audit"
"""Namespace of the signatures, for `ssh-keygen -Y`: a signature for another purpose is not one of a certificate."""
PASSED = ("passed", "passed within bounds")
"""Verdicts without a failed check: all that was replayed had the same bits, or some of it was computed by other arithmetic."""
MOST_NAMES = 1000
"""Number of names of a file of keys that are tried."""
PATIENCE = 60.0
"""Seconds to wait for ssh-keygen, for example for a touch of a security key."""
SHAPE = {
    **{"format": int, "verdict": str, "run": {"folder": str}, "files": {str: str}, "checks": [{"check": str, "result": str}]},
    **{"intervals": [{str: object}], "coverage": {str: object}, "seed": int},
}
"""Shape of a certificate, see `zoo.json_shapes`."""
LIMITS = (
    "Steps that were not replayed are covered by digests alone, which whoever wrote the folder can compute again.",
    "The machine and the versions are what the run recorded, and what the audit found about itself.",
    "Who trained the run, when, and whether other runs were discarded, is not known.",
    "Samples, predictions, the report, trackers and messages were not checked.",
)
"""Statements about what no audit shows."""


def verdict_of(checks: Sequence[Check], *, exact: bool = True) -> str:
    """Return "failed" if any check failed, "incomplete" if any could not be made, else one of `PASSED`.

    Args:
        exact: all that was replayed was compared to the bit.
    """
    results = {check.result for check in checks}
    return "failed" if "failed" in results else "incomplete" if "not checked" in results else PASSED[not exact]


def certificate_text(certificate: Mapping[str, Any]) -> str:
    """Return a certificate as JSON with a line end, the bytes that are signed."""
    return json.dumps(certificate, indent=2, allow_nan=False) + "\n"


def signature_path(file: Path) -> Path:
    """Return the file of the signature of a certificate."""
    return file.with_name(f"{file.name}.sig")


def check_key(key: str, out: str) -> None:
    """Refuse a key that cannot sign now, a signature without a file, or a machine without ssh-keygen.

    Raises:
        BadInput: names what is missing.
    """
    if not out:
        raise BadInput(f"--key {key}: the signature is a file beside the certificate; add --out FILE")
    if not Path(key).is_file():
        raise BadInput(f"--key {key}: no such file; name a private key, or the public key of one that ssh-agent has")
    _require_program("--key")
    try:
        _ssh_keygen("--key", ["sign", "-f", key, "-n", NAMESPACE])
    except BadInput as error:
        fix = "a key with a passphrase must be in ssh-agent: run ssh-add, and name its public key"
        raise BadInput(f"--key {key} cannot sign ({str(error).removeprefix('--key: ')}); {fix}") from None


def write_certificate(certificate: Mapping[str, Any], out: Path, key: str) -> None:
    """Write a certificate, and its signature if there is a key, in place of earlier ones.

    Raises:
        BadInput: a file cannot be written, or ssh-keygen cannot sign.
    """
    signature_path(out).unlink(missing_ok=True)
    write_text(out, certificate_text(certificate))
    if key:
        # ssh-keygen writes the signature to standard output if it reads the certificate from standard input.
        signature = _ssh_keygen("--key", ["sign", "-f", key, "-n", NAMESPACE], out)
        write_text(signature_path(out), signature)


def verify_certificate(file: Path, folder: str, signers: str) -> tuple[dict[str, Any], list[Check]]:
    """Return a certificate, and the checks of its signature and of the digests in it against the run.

    Args:
        folder: the run; "" = the folder that the certificate names.
        signers: file of the keys that may sign, as `ssh-keygen` calls "allowed signers"; "" = any key may.

    Raises:
        BadInput: the file is not a certificate, or there is no such run.
    """
    certificate = _read_certificate(file)
    run = RunDir(folder or certificate["run"]["folder"])
    if not run.config.is_file():
        raise BadInput(f"{run.path} is not a run; name the folder of the run before --verify")
    checks = [_check_signature(file, signers)]
    current, recorded = digest_run_files(run), certificate["files"]
    changed = sorted(name for name in current.keys() | recorded.keys() if current.get(name) != recorded.get(name))
    states = {True: "is not here", False: "has other content"}
    named = ", ".join(f"{name} {states[name not in current] if name in recorded else 'was added'}" for name in changed[:3])
    checks.append(passed_or_failed("files", named, f"{len(current)} files have the digests of the certificate"))
    for place in (run.checkpoints, run.best, run.base):
        checks += check_arrays(place)[1]
    recorded_verdict = certificate["verdict"]
    problem = "" if recorded_verdict in PASSED else f"the audit found: {recorded_verdict}"
    if (wrong := [check["check"] for check in certificate["checks"] if check["result"] != "passed"]) and not problem:
        problem = f"it is {recorded_verdict}, but its check {wrong[0]} is not"
    return certificate, [*checks, passed_or_failed("verdict of the audit", problem, recorded_verdict)]


def _read_certificate(file: Path) -> dict[str, Any]:
    fix = "name a file that `zoo audit RUN --out FILE` wrote"
    try:
        content = json.loads(read_regular(file, LARGEST_JSON))
    except OSError as error:
        raise BadInput(f"--verify {file} cannot be read ({error.strerror}); {fix}") from None
    except (ValueError, RecursionError) as error:
        raise BadInput(f"--verify {file} is invalid JSON ({error}); {fix}") from None
    if problem := shape_problem(content, SHAPE):
        raise BadInput(f"--verify {file} is not a certificate ({problem}); {fix}")
    if content["format"] != FORMAT:
        raise BadInput(f"--verify {file}: format {content['format']}, but this version of zoo reads {FORMAT}")
    return content


def _check_signature(file: Path, signers: str) -> Check:
    """Check that the signature beside a certificate is of its content, by a key that `signers` lists."""
    signature = signature_path(file)
    if not signature.is_file():
        detail = f"not signed: there is no {signature.name} beside it, so anybody can have edited it"
        return Check("signature", "failed" if signers else "not checked", detail)
    _require_program("--verify")
    if signers and not Path(signers).is_file():
        raise BadInput(f"--signers {signers}: no such file; name one with lines of NAME and a public key")
    try:
        if not signers:
            good = _ssh_keygen("--verify", ["check-novalidate", "-n", NAMESPACE, "-s", str(signature)], file)
            return Check("signature", "not checked", f"{good.strip()}; name --signers, since anybody can sign with some key")
        _ssh_keygen("--verify", ["find-principals", "-s", str(signature), "-f", signers])
        # ssh-keygen prints the first line with the key only, which may be limited to other namespaces or dates.
        lines = read_regular(signers, LARGEST_JSON).decode(errors="replace").splitlines()
        names = dict.fromkeys(
            name for line in lines if line.strip() and line[0] != "#" for name in line.split()[0].strip('"').split(",")
        )
        return _first_valid([*names][:MOST_NAMES], signers, signature, file)
    except BadInput as error:
        return Check("signature", "failed", str(error))


def _first_valid(names: Sequence[str], signers: str, signature: Path, file: Path) -> Check:
    """Return the check of the first of the names by which the signature is valid, else that it is by none of them."""
    reasons = []
    for name in names:
        command = ["verify", "-f", signers, "-I", name, "-n", NAMESPACE, "-s", str(signature)]
        try:
            return Check("signature", "passed", _ssh_keygen("--verify", command, file).strip())
        except BadInput as error:
            reasons.append(str(error))
    fix = f"{signers} permits no name for its key" if len(set(reasons)) != 1 else reasons[0]
    return Check("signature", "failed", fix)


def _require_program(option: str) -> None:
    if shutil.which("ssh-keygen") is None:
        raise BadInput(f"{option}: ssh-keygen is not installed; install OpenSSH 8.1 or newer")


def _ssh_keygen(option: str, command: Sequence[str], file: Path | None = None) -> str:
    """Return what a command of `ssh-keygen -Y` prints, which gets a file as standard input.

    Raises:
        BadInput: it fails, with the message of the program, or does not end.
    """
    with contextlib.ExitStack() as stack:
        content = subprocess.DEVNULL if file is None else stack.enter_context(open_regular(file))
        options: dict[str, Any] = {"stdin": content, "capture_output": True, "text": True, "timeout": PATIENCE}
        # Without a terminal, and with this variable, it fails where it would ask for a passphrase.
        environment = {**os.environ, "SSH_ASKPASS_REQUIRE": "never"}
        try:
            done = subprocess.run(["ssh-keygen", "-Y", *command], env=environment, start_new_session=True, **options)
        except subprocess.TimeoutExpired:
            raise BadInput(f"{option}: ssh-keygen has not ended within {PATIENCE:.0f} s; try it by hand") from None
    if done.returncode:
        reason = " ".join((done.stderr or done.stdout).split())[:200]
        raise BadInput(f"{option}: ssh-keygen says: {reason or f'exit code {done.returncode}'}")
    return done.stdout
