"""`zoo ...`: which command is asked for, and how it ends. Imported by nothing."""

import contextlib
import difflib
import errno
import importlib
import importlib.metadata
import platform
import sys
from collections.abc import Callable, Sequence

from zoo.cli import early_checks
from zoo.errors import BadInput, remedy
from zoo.runtime import stdio

USAGE = """\
usage: zoo COMMAND ...

  zoo models [NAME]           every published size with its exact count, or one of them in full
  zoo train [RECIPE] [...]    train (gpt-nano unless told); the same command resumes a run that was stopped
  zoo eval RUN [...]          exact held-out loss, perplexity and bits per byte; --task blimp|lambada|... scores local files
  zoo compare RUN...          finished runs side by side, those that differ in their seed alone as one row
  zoo generate RUN|DIR [...]  continue prompts, or choose the likelier of given continuations
  zoo predict RUN|DIR ...     a fine-tuned model's classes, numbers, tags, answers or choices for texts or files without labels
  zoo fill-mask RUN|DIR ...   an encoder's likeliest words for the masks of texts, or how likely given words are
  zoo embed RUN|DIR ...       an encoder's vectors of texts, or how alike the texts are
  zoo data inspect [...]      rows as a run trains on them, decoded, with their masks and segments
  zoo import DIR|HUB_ID       check published weights and keep them under models/
  zoo export RUN DIR          a run's weights as a folder that transformers loads
  zoo bench attention [...]   every attention implementation here, its numbers checked, then timed; --quick is a minute's worth
  zoo bench step MODEL...     training, inference and decoding steps, beside transformers and KerasHub, and where their time goes
  zoo bench growth [MODEL]    how the cost of a small model grows with length, layers, width and devices
  zoo bench compare A B       two results of a benchmark: what became slower, faster, wrong or missing
  zoo plan MODEL|RECIPE ...   compile a job for devices that are not here: memory, FLOPs, communication, what bounds its MFU
  zoo doctor                  versions, devices, attention implementations, and whether this machine computes rightly

Every command takes --help; `zoo --version` prints versions. `zoo train --help` lists the recipes.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0, 2 for wrong input (one line on stderr), 130 and 143 for signals.

    Raises:
        SystemExit: with 0, after the help of a command.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    if not args or args[0] in ("-h", "--help", "help"):
        print(USAGE, end="", file=sys.stdout if args else sys.stderr)
        return 0 if args else 2
    if args[0] in ("-V", "--version", "version"):
        print(_version())
        return 0
    try:
        if args[0] not in COMMANDS:
            near = difflib.get_close_matches(args[0], COMMANDS, n=1)
            nearest = f"the nearest is {near[0]}; " if near else ""
            raise BadInput(f"there is no command {args[0]!r}; {nearest}choose {', '.join(COMMANDS)}")
        early_checks.check_packages()
        return _find(args[0])(args[1:])
    except BadInput as wrong:
        stdio.complain(str(wrong))
        return 2
    except (MemoryError, OSError, RuntimeError, ImportError) as error:
        if not (line := _exhausted(error)):
            raise
        stdio.complain(line)
        return 2
    except KeyboardInterrupt:
        from zoo.runtime import launch

        return launch.abandon(130)


def _version() -> str:
    """Return the versions that a report of a problem should name."""
    versions = []
    for package in ("transformer-zoo", "jax", "flax"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions.append(f"{package} {importlib.metadata.version(package)}")
    return ", ".join([*versions, f"Python {platform.python_version()}"])


def _exhausted(error: Exception) -> str:
    """Return a line about a disk or a memory that is full; "" for any other error."""
    text = " ".join(str(error).split())
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        where = error.filename or "standard output or a file"
        return f"{where} cannot be written ({error.strerror}); {remedy(error)}, and run the same command again"
    full = ("cannot allocate memory", "failed to map segment", "can't start new thread", "resource_exhausted", "out of memory")
    if isinstance(error, MemoryError) or any(words in text.lower() for words in full):
        return f"out of memory ({text[:200] or type(error).__name__}); free memory, raise the limit (ulimit -v), or ask for less"
    return ""


COMMANDS = {
    "models": "models:models",
    "train": "train:train",
    "eval": "evaluate:evaluate",
    "compare": "compare:compare",
    "generate": "generate:generate",
    "predict": "predict:predict",
    "fill-mask": "fill_mask:fill_mask",
    "embed": "embed:embed",
    "data": "data:data",
    "import": "exchange:import_weights",
    "export": "exchange:export",
    "bench": "bench:bench",
    "plan": "plan:plan",
    "doctor": "doctor:doctor",
}
"""Command -> the file of `zoo.cli.commands` and the function in it, called with the arguments; it returns the exit code."""


def _find(command: str) -> Callable[[list[str]], int]:
    module, _, function = COMMANDS[command].partition(":")
    return getattr(importlib.import_module(f"zoo.cli.commands.{module}"), function)


def run() -> None:
    """The console script."""
    from zoo.runtime import launch

    if not stdio.prepare():
        stdio.complain("standard output is closed; let it go to a file, or to /dev/null")
        sys.exit(2)
    launch.heed_interrupts()
    try:
        try:
            code = main()
        except SystemExit as end:
            if isinstance(end.__context__, BrokenPipeError):
                raise BrokenPipeError from None  # rich makes an exit with 1 of it
            code = end.code if isinstance(end.code, int) else 0
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader left (`| head`): nothing more can be said, and flushing at exit must not try.
        stdio.discard(sys.stdout)
        code = launch.abandon(launch.CLOSED_PIPE)
    except OSError as error:
        if not (line := _exhausted(error)):
            raise
        stdio.discard(sys.stdout)
        stdio.complain(line)
        code = 2
    sys.exit(launch.leave(code))
