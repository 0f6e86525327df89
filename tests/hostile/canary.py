"""The canary: the folders of a user with secrets, a process that is confined to them, and what it did to them.

Nothing here imports `tests.support.environment`, see `tests.support.forked`.
"""

import atexit
import contextlib
import ctypes
import hashlib
import os
import resource
import stat
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.support import object_stores

SECRET = "canary-secret-7f3a"
"""Text that all secrets contain: in files, and in variables of the environment."""
SECRETS = (".ssh/id_rsa", ".netrc", ".aws/credentials", ".cache/huggingface/token", ".config/wandb/settings")
TOKENS = ("HF_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "OPENAI_API_KEY")
CODE_RAN, EVENTS = "code-ran", "events"
"""File in the home folder that payloads write; file beside it with what the process did, a line each."""
ADDRESS_SPACE, CPU_SECONDS = 4 << 30, 60
LARGEST_FILE = 1 << 30
CLONE_NEWNET = 0x40000000


def write_home(trial: Path) -> None:
    """Write a home folder with secrets, and a folder of another project, beside the folder where a command runs."""
    for name in SECRETS:
        file = trial / "home" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{SECRET} in {name}\n")
    (trial / "home" / ".bashrc").write_text("alias ll='ls -l'\n")
    for name in ("notes.txt", "rollouts/00000001.jsonl", "stacks.txt", "metrics.jsonl", "model.safetensors"):
        file = trial / "outside" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{SECRET} in {name}\n")
    for name in ("work", "cache", "tmp"):
        (trial / name).mkdir(mode=0o700)


def payload(trial: Path) -> str:
    """Return Python code that leaves a file in the home folder."""
    return f"open({str(trial / 'home' / CODE_RAN)!r}, 'w').close()"


def environment(trial: Path) -> dict[str, str]:
    """Return the variables of a confined process."""
    folders = {"HOME": "home", "XDG_CACHE_HOME": "home/.cache", "ZOO_CACHE": "cache", "TMPDIR": "tmp"}
    secrets = {name: f"{SECRET}-{name}" for name in TOKENS}
    return {name: str(trial / folder) for name, folder in folders.items()} | secrets | {"WANDB_MODE": "offline"}


def confine(trial: Path, cpu_seconds: int) -> None:
    """Confine this process, which a command will run in: limits, no network, the home of the canary; record what it does."""
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds + 5))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (LARGEST_FILE, LARGEST_FILE))
    os.environ.update(environment(trial))
    # Only root may; elsewhere the events below show an attempt.
    ctypes.CDLL(None).unshare(CLONE_NEWNET)
    _set_hub(trial)
    if (trial / "work" / "store").exists():
        object_stores.enter("dir://runs/out", trial / "work" / "store")
    log = os.open(trial / EVENTS, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    owner, inside = os.getpid(), str(trial)

    def record(event: str, args: tuple[object, ...]) -> None:
        if event == "exec":
            name = getattr(args[0], "co_filename", "")
            if name.startswith(inside):
                os.write(log, f"code {name}\n".encode())
        elif event in ("socket.connect", "socket.sendto", "socket.getaddrinfo", "socket.gethostbyname"):
            os.write(log, f"network {event} {args[1:]!r}\n".encode())
        elif event == "os.system":
            os.write(log, f"code {args!r}\n".encode())

    sys.addaudithook(record)

    def record_memory() -> None:
        if os.getpid() == owner:
            os.write(log, f"memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}\n".encode())

    atexit.register(record_memory)


def _set_hub(trial: Path) -> None:
    """Let the library of the hub use this home, and the network: it read the environment when it was imported."""
    from huggingface_hub import constants

    home = trial / "home" / ".cache" / "huggingface"
    constants.HF_HOME, constants.HF_HUB_CACHE = str(home), str(home / "hub")
    constants.HF_TOKEN_PATH, constants.HF_HUB_OFFLINE = str(home / "token"), False
    os.environ.pop("HF_HUB_OFFLINE", None)


def snapshot(trial: Path) -> dict[str, str]:
    """Return a description of every file below the folders of the canary, by path: kind, mode, and digest or target."""
    return {
        os.path.relpath(os.path.join(folder, name), trial): _describe(os.path.join(folder, name))
        for folder, folders, files in os.walk(trial)
        for name in (*folders, *files)
    }


def _describe(path: str) -> str:
    status = os.lstat(path)
    mode = f"{stat.filemode(status.st_mode)}"
    if stat.S_ISLNK(status.st_mode):
        return f"{mode} {os.readlink(path)}"
    if not stat.S_ISREG(status.st_mode):
        return mode
    if status.st_size > 1 << 24:
        return f"{mode} {status.st_size} bytes, {status.st_mtime_ns}"
    with open(path, "rb") as file:
        return f"{mode} {hashlib.sha256(file.read()).hexdigest()}"


def changes(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """Return the paths of files that were created, changed or deleted."""
    return sorted(path for path in before.keys() | after.keys() if before.get(path) != after.get(path))


def descendants(pid: int) -> list[int]:
    """Return a process and all processes that it has started, directly or not."""
    pids = [pid]
    with contextlib.suppress(OSError):
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            pids += descendants(int(child))
    return pids


def processor_time(pid: int) -> float:
    """Return the seconds of a processor that a process and its descendants have used."""
    total = 0.0
    for process in descendants(pid):
        with contextlib.suppress(OSError, ValueError, IndexError):
            fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
            total += sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
    return total
