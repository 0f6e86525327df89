"""The folder of a run: its files, its lock, and the configuration fields that identify the run."""

import contextlib
import dataclasses
import json
import os
import re
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from train.config.find_objective import find_options
from train.config.from_json import CORRECT, from_json, inner_key
from train.config.run_config import Run
from train.config.run_plugins import references, used_plugins
from train.run.run_identity import may_change
from zoo import configs, object_store, plugins, trust
from zoo.configs import Objective
from zoo.errors import BadInput, cannot_write, printable
from zoo.fault_points import fault_point
from zoo.file_access import LARGEST_JSON, open_new, read_regular, read_regular_text, refuse_links_out, remove_partial
from zoo.hf import config_json
from zoo.sha256_and_fsync import fsync

LOCK = "run.lock"
WAIT = "wait for it or choose another --name"
RESULTS_LOCK = "evaluations.lock"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class RunDir:
    """The paths of RUN/ and the files in it; constructing it does not touch the disk, and `claim` creates the folder."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config = self.path / "config.json"
        self.metrics = self.path / "metrics.jsonl"
        self.ledger = self.path / "ledger.jsonl"
        self.starts = self.path / "starts.jsonl"
        self.failure = self.path / "failure.json"
        self.scores = self.path / "scores.json"
        self.predictions = self.path / "predictions.json"
        self.samples = self.path / "samples.json"
        self.evaluations = self.path / "evaluations.json"
        self.outcomes = self.path / "outcomes.npz"
        self.data = self.path / "data.json"
        self.checkpoints = self.path / "checkpoints"
        self.best = self.path / "best"
        self.base = self.path / "base"
        self.tokenizer = self.path / "tokenizer"
        self.generation = self.path / "generation_config.json"
        self.embedding = self.path / "embedding"
        self.rollouts = self.path / "rollouts"
        self.report = self.path / "report.html"
        self.profile = self.path / "profile"

    def stacks(self, process: int) -> Path:
        """Return the file with the stacks of the threads of a process that was stuck, or of all processes of one machine."""
        return self.path / (f"stacks-{process}.txt" if process else "stacks.txt")

    def native(self, process: int) -> Path:
        """Return the file with the messages of native code in a process; see `zoo.runtime.native_log`."""
        return self.path / (f"native-{process}.txt" if process else "native.txt")

    @property
    def is_resumable(self) -> bool:
        """True if a checkpoint was committed here from which the run continues; the best one is not such a checkpoint."""
        return any(self.checkpoints.glob("*/COMMIT.json"))

    @property
    def has_results(self) -> bool:
        """True if there is a checkpoint, a best one or a score, which a run of another configuration must not replace."""
        return self.has_checkpoint or self.scores.exists()

    @property
    def has_checkpoint(self) -> bool:
        """True if any checkpoint was committed here, the best one included."""
        return self.is_resumable or any(self.best.glob("*/COMMIT.json"))

    @classmethod
    def of(cls, run: Run) -> "RunDir":
        """Return the folder of a run: `out`/`name`, or `out`/`recipe` if it has no name.

        If `out` is in an object store, it is the folder in the cache in which the run is trained.

        Raises:
            BadInput: the name is not a plain file name, or is a link out of `out`; or `out` is a wrong URI.
        """
        name = run.name or run.recipe
        if not NAME.fullmatch(name):
            raise BadInput(
                f"--name {name!r}: choose up to 100 letters, digits, '.', '_' and '-', beginning with a letter or digit"
            )
        out = object_store.working_folder(run.out)
        path = out / name
        if path.resolve().parent != out.resolve():
            raise BadInput(f"--name {name}: {path} is a link out of {run.out}; choose another name")
        return cls(path)

    @contextlib.contextmanager
    def claim(self, process: int = 0) -> Iterator[None]:
        """Create the run's folder if necessary, and lock it for this process until the block or the process ends.

        What a killed process left of the files that are written under this lock is removed.

        Args:
            process: number of this process in its run. Only process 0 locks, since only it writes here.

        Raises:
            BadInput: another process has locked the folder (its host is named), or the folder cannot be written or locked; see
                also `refuse_links`.
        """
        refuse_links(self.path)
        if process != 0:
            yield
            return
        with contextlib.ExitStack() as stack:
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                stack.enter_context(_lock(self.path))
                (self.path / LOCK).write_text(f"process {os.getpid()} on {socket.gethostname()}\n")
                # Only these: an evaluation may be writing its results now, which have another lock.
                for file in (self.config, self.scores, self.failure, self.rollouts / "*.jsonl"):
                    remove_partial(file)
            except TimeoutError:
                raise _in_use(self.path) from None
            except OSError as error:
                raise BadInput(f"{self.path} cannot be written or locked ({error.strerror}); choose another --out") from None
            yield

    @contextlib.contextmanager
    def lock_results(self, notify: Callable[[str], None] | None = None) -> Iterator[None]:
        """Lock evaluations.json and outcomes.npz, which several processes may change at the same time, after waiting for them.

        Args:
            notify: receives a line if another process has the lock for more than a second; None = printed on stderr.

        Raises:
            BadInput: the folder cannot be written or locked.
        """
        from filelock import FileLock, Timeout

        path = self.path / RESULTS_LOCK
        try:
            lock = FileLock(path, fallback_to_soft=False)
            try:
                lock.acquire(timeout=1.0)
            except Timeout:
                line = f"the results in {self.path} are in use by {_holder(path)}; this command waits for it"
                (notify or _print_notice)(line)
                lock.acquire()
        except OSError as error:
            raise cannot_write(path, error) from None
        try:
            with contextlib.suppress(OSError):  # as on a full disk, which the writer of the results reports
                path.write_text(f"process {os.getpid()} on {socket.gethostname()}\n")
            yield
        finally:
            lock.release()

    def write_config(self, run: Run) -> None:
        """Write config.json, as `as_json` returns it."""
        write_json(self.config, as_json(run))


def as_json(run: Run) -> dict[str, Any]:
    """Return every field of a run as in config.json, with the family of its model, its objective, and its plug-ins if it has any.

    The options of the objective are beside the fields.
    """
    values, records = dataclasses.asdict(run), [plugin.record() for plugin in used_plugins(run)]
    header = {"family": configs.family_of(run.model), "objective": run.objective} | ({"plugins": records} if records else {})
    return header | values.pop("options") | values


def refuse_links(folder: str | Path) -> None:
    """Refuse a run's folder of which a file or a folder of the run is a link out of it, to where the run would write or delete.

    Raises:
        BadInput: names the link.
    """
    own = {path.name for path in vars(RunDir(folder)).values()}
    trackers = {"tensorboard", "wandb", "trackio", "mlflow"}
    refuse_links_out(folder, own | trackers | {LOCK, RESULTS_LOCK, "reward_scale.json", "writer.json", "fetched"})


def modules_folder(folder: Path) -> Path:
    """Return the folder with the files of `zoo.embedding_modules`: RUN/embedding of a run, that of published weights itself."""
    return RunDir(folder).embedding if is_run(folder) else folder


def is_run(folder: Path) -> bool:
    """Return whether a folder is a run's, not one of published weights: by its config.json, or by its checkpoints."""
    try:
        has_family = "family" in config_json.read_json(RunDir(folder).config, config_json.LARGEST_FILE)
    except BadInput:
        # The next reader reports the error in it.
        has_family = False
    return has_family or RunDir(folder).checkpoints.is_dir()


def read_config(folder: str | Path, *, compute: bool = True) -> Run:
    """Return the configuration in the config.json of a run's folder.

    An absent key takes its default: the default of a new field is what runs did before it existed.

    Args:
        compute: False replaces `model.compute` by its default, to compare a run whose attention implementation is absent here.

    Raises:
        BadInput: no run there, broken JSON, an unknown or missing key, a value of another type or out of range, or a plug-in that
            is not installed, or that neither this command names nor a confirmation of the folder permits (`zoo.trust`).
    """
    refuse_links(folder)
    stored = _stored_config(folder)
    with _names_file(folder):
        if not isinstance(stored, dict):
            raise BadInput(f"expected an object; {CORRECT}")
        plugins.check_records(stored.get("plugins", []), () if compute else ("zoo.attention",))
    needed = [kind for group, kind in plugins.GROUPS.items() if compute or group != "zoo.attention"]
    trust.admit_references(_references_in(folder, stored), needed)
    with _names_file(folder):
        stored.pop("plugins", None)
        if not compute and isinstance(stored.get("model"), dict):
            stored["model"].pop("compute", None)
        name = stored.pop("family", None)
        if name not in (families := [*configs.families(), *plugins.plugin_names("zoo.models")]):
            raise BadInput(f"family {name!r}: expected one of {', '.join(families)}; {CORRECT}")
        kind = find_options(from_json(Objective | str, stored.pop("objective", None), "objective"))
        stored["options"] = {field.name: stored.pop(field.name) for field in dataclasses.fields(kind) if field.name in stored}
        return from_json(Run, stored, "", model=configs.family(name).Config, options=kind, data=kind.data)


@contextlib.contextmanager
def _names_file(folder: str | Path) -> Iterator[None]:
    """Put the config.json of a run before an error about it."""
    try:
        yield
    except BadInput as error:
        raise BadInput(f"{RunDir(folder).config}: {error}") from None


def run_references(folder: str | Path) -> trust.References:
    """Return what the config.json of a run names that a user permits or confirms, see `zoo.trust`.

    What identifies the run is part of it: a copy or options in `MAY_CHANGE` need no new confirmation, and others do.

    Raises:
        BadInput: no run there, or broken JSON.
    """
    return _references_in(folder, _stored_config(folder))


def confirm_own(folder: Path, *, notify: Callable[[str], None]) -> None:
    """Confirm a run that its user has just described by a command, so that later commands do not ask about it."""
    if (own := run_references(folder)).names:
        try:
            trust.confirm_references(own)
        except BadInput as error:
            notify(f"{error}; until then other commands ask for {trust.OPTION} {folder}")


def _references_in(folder: str | Path, stored: Any) -> trust.References:
    config = stored if isinstance(stored, dict) else {}
    # The records of plug-ins have their versions.
    content = {key: value for key, value in _flat_json(config, "") if not may_change(key) and key != "plugins"}
    return trust.References(str(folder), RunDir(folder).config.name, references(config), content)


def _flat_json(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for name, item in value.items():
            yield from _flat_json(item, inner_key(key, name))
    else:
        yield key, value


def plugin_notices(folder: str | Path) -> list[str]:
    """Return a line for each plug-in of a run whose installed version differs from the one that the run used."""
    stored = _stored_config(folder)
    return plugins.plugin_changes(stored.get("plugins", [])) if isinstance(stored, dict) else []


def _stored_config(folder: str | Path) -> Any:
    path, fix = RunDir(folder).config, "name a folder that `zoo train` wrote"
    try:
        stored = json.loads(read_regular_text(path))
    except FileNotFoundError:
        what = f"there is no {path.name} in it" if Path(folder).is_dir() else "no such folder"
        raise BadInput(f"{folder} is not a run: {what}; {fix}") from None
    except NotADirectoryError:
        raise BadInput(f"{folder} is not a run: it is a file; {fix}") from None
    except OSError as error:
        raise BadInput(f"{folder} is not a run: {path.name} cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{path} is not valid JSON: {error}") from None
    if isinstance(stored, dict) and "model_type" in stored and "family" not in stored:
        raise BadInput(f"{folder} is not a run: it holds published weights; {fix}")
    return stored


def check_unlocked(folder: Path, fix: str = WAIT) -> None:
    """Refuse a folder that another process has locked, without keeping it locked or changing it.

    Args:
        fix: what the user can do about it, for the message.

    Raises:
        BadInput: names the process that has locked it.
    """
    if not (folder / LOCK).exists():
        return
    try:
        with _lock(folder):
            pass
    except TimeoutError:
        raise _in_use(folder, fix) from None
    except OSError:
        return  # `RunDir.claim` reports the error.


def no_checkpoint(path: Path) -> BadInput:
    """Return the error for a run that has no checkpoint to load yet."""
    return BadInput(f"{RunDir(path).checkpoints}: no checkpoint yet; train the run first")


def write_json(path: Path, value: Any) -> None:
    """Write strict JSON atomically."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically.

    Raises:
        BadInput: it cannot be written; the old content is still there.
    """
    content = text.encode()
    try:
        with replace_atomically(path) as file:
            file.write(content)
    except OSError as error:
        raise cannot_write(path, error) from None


@contextlib.contextmanager
def replace_atomically(path: Path) -> Iterator[IO[bytes]]:
    """Yield a file that replaces `path` atomically: readers, also after a crash, see either the old content or the new one."""
    with open_new(path) as (partial, file):
        fault_point("file.write")
        yield file
        file.flush()
        fault_point("file.fsync")
        os.fsync(file.fileno())
        fault_point("file.rename")
        partial.replace(path)
    # The rename is a change of the folder, which needs its own sync.
    fsync(path.parent)


def _lock(folder: Path) -> Any:
    """Return the lock RUN/`LOCK`, not acquired yet; the kernel releases a lock when the process that holds it ends.

    The file contains the name of the locking process. It is never removed: else two processes could lock two different files.
    """
    # Imported here, since every command imports this module and few lock a folder.
    from filelock import FileLock

    # A process that only checks the lock has it for a moment.
    return FileLock(folder / LOCK, timeout=0.2, fallback_to_soft=False)


def _in_use(folder: Path, fix: str = WAIT) -> BadInput:
    """Return the error for a folder that the process named in its lock has locked."""
    return BadInput(f"{folder} is in use by {_holder(folder / LOCK)}; {fix}")


def _holder(lock: Path) -> str:
    """Return the process that the file of a lock names."""
    return read_regular(lock, LARGEST_JSON).decode(errors="replace")[:300].strip() or "another process"


def _print_notice(line: str) -> None:
    print(f"! {printable(line)}", file=sys.stderr, flush=True)
