"""Entry point of `zoo`: selects the command and turns its outcome into an exit code. Only its completion imports this module."""

import contextlib
import difflib
import errno
import importlib
import importlib.metadata
import os
import platform
import sys
from collections.abc import Callable, Sequence

from zoo import fault_points, trust
from zoo.cli import early_checks
from zoo.cli.config_option import name_places, take_config
from zoo.cli.trust_option import take_trust
from zoo.errors import BadInput, without_secrets, write_remedy
from zoo.runtime import stdio
from zoo.runtime.native_log import native_log

USAGE = """\
usage: zoo COMMAND ...

  zoo models [NAME]           list every published size with its exact parameter count, or those of a family, or show one in full
  zoo recipes [NAME]          list the published recipes, or show one: which of its numbers are published, assumed or unknown
  zoo train [RECIPE] [...]    train a recipe (default: gpt-nano); the same command resumes a run that was stopped
  zoo eval RUN [...]          compute the held-out loss, perplexity and bits per byte; --task blimp|lambada|... scores local files
  zoo compare RUN...          compare finished runs; runs that differ only in their seed form one row
  zoo experiment NAME DIR     run a declared grid of runs with several seeds, and judge it against a paper's table; --list
  zoo sweep RECIPE DIR ...    search for options of a training run with Optuna, pruned by validation and resumed after a kill
  zoo judge FILE... [...]     judge claims about tables of seeds that others published, by the rules of experiments
  zoo audit RUN [...]         replay parts of a run, check its digests from data to score, and print a certificate
  zoo generate RUN|DIR [...]  continue prompts, or compare the likelihoods of continuations
  zoo chat RUN|DIR [...]      talk to a model with a chat template, on a terminal
  zoo serve RUN|DIR [...]     answer HTTP requests in OpenAI's form on this machine, with a page to try the model
  zoo predict RUN|DIR ...     predict classes, numbers, tags, answers or choices with a fine-tuned model
  zoo fill-mask RUN|DIR ...   show an encoder's most likely words for masks in texts, or the probabilities of chosen words
  zoo embed RUN|DIR ...       compute an encoder's vectors of texts, or the similarities of the texts
  zoo search INDEX TEXT ...   show the documents of an index (zoo embed --index) that are nearest to a text
  zoo mine RUN|DIR ...        find hard negatives of queries by a model, for contrastive training
  zoo data inspect [...]      show decoded training rows with loss weights, segments and positions
  zoo data arithmetic [DIR]   write the sums that the recipe arithmetic-nano learns from
  zoo import DIR|HUB_ID       check published weights and store them under models/
  zoo export RUN DIR          write a run's weights as a folder that transformers loads
  zoo bench attention [...]   check and time every attention implementation; --quick takes about a minute
  zoo bench step MODEL...     time training, inference and decoding steps, also of transformers and KerasHub
  zoo bench growth [MODEL]    measure how the cost of a small model grows with length, layers, width and devices
  zoo bench feedback [MODEL]  time an iteration of learning by sampling (GRPO) and its parts, also those of TRL
  zoo bench embed DIR         time the vectors of texts of mixed lengths, also of sentence-transformers
  zoo bench compare A B       compare two results of a benchmark: slower, faster, wrong or missing cells
  zoo plan MODEL|RECIPE ...   compile a job for devices that this machine lacks: memory, FLOPs, communication, a bound on MFU
  zoo doctor                  show versions, devices and attention implementations, and check that this machine computes correctly
  zoo test-install            check an installation: its files, modules and machine, and a tiny model, trained and exported
  zoo completion SHELL        print the script that completes commands and options in bash, zsh or fish

--config FILE, with every command, reads options from a TOML, YAML or JSON file; those on the command line replace them.
--trust RUN, with every command that reads runs or models, permits the code of others that this folder names (needed once).
Every command has --help; `zoo --version` prints versions. `zoo train --help` lists the recipes.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0, 2 for wrong input (one line on stderr), 130 or 143 after a signal.

    Raises:
        SystemExit: with code 0, after the help of a command.
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
        fault_points.read_environment()
        early_checks.check_packages()
        trust.begin_command(args)
        words, places = take_config(args[0], take_trust(args[0], args[1:]))
        with name_places(places):
            return _find(args[0])(words)
    except BadInput as error:
        stdio.write_error(str(error))
        return 2
    except (MemoryError, OSError, RuntimeError, ImportError) as error:
        if not (line := _exhausted(error)):
            raise
        stdio.write_error(line)
        return 2
    except KeyboardInterrupt:
        from zoo.runtime import launch

        return launch.exit_if_joined(130)


def _version() -> str:
    """Return the versions that a bug report should contain."""
    versions = []
    for package in ("transformer-zoo", "jax", "flax"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions.append(f"{package} {importlib.metadata.version(package)}")
    return ", ".join([*versions, f"Python {platform.python_version()}"])


def _exhausted(error: Exception) -> str:
    """Return a message if the error means a full disk or no memory left; "" for any other error."""
    text = " ".join(without_secrets(str(error)).split())
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        name = error.filename or "standard output or a file"
        return f"{name} cannot be written ({error.strerror}); {write_remedy(error)}, and run the same command again"
    full = ("cannot allocate memory", "failed to map segment", "can't start new thread", "resource_exhausted", "out of memory")
    if isinstance(error, MemoryError) or any(words in text.lower() for words in full):
        return f"out of memory ({text[:200] or type(error).__name__}); free memory, raise the limit (ulimit -v), or ask for less"
    return ""


COMMANDS = {
    "models": "models:models",
    "recipes": "recipes:recipes",
    "train": "train:train",
    "eval": "evaluate:evaluate",
    "compare": "compare:compare",
    "experiment": "experiment:experiment",
    "sweep": "sweep:sweep",
    "judge": "judge:judge",
    "audit": "audit:audit",
    "generate": "generate:generate",
    "chat": "chat:chat",
    "serve": "serve:serve",
    "predict": "predict:predict",
    "fill-mask": "fill_mask:fill_mask",
    "embed": "embed:embed",
    "search": "search:search",
    "mine": "mine:mine",
    "data": "data:data",
    "import": "import_export:import_weights",
    "export": "import_export:export",
    "bench": "bench:bench",
    "plan": "plan:plan",
    "doctor": "doctor:doctor",
    "test-install": "test_install:test_install",
    "completion": "completion:completion",
}
"""Maps a command to `module:function` in `zoo.cli.commands`. The function takes the arguments and returns the exit code."""


def _find(command: str) -> Callable[[list[str]], int]:
    module, _, function = COMMANDS[command].partition(":")
    return getattr(importlib.import_module(f"zoo.cli.commands.{module}"), function)


def run() -> None:
    """Run the console script `zoo`."""
    from zoo.runtime import launch

    if not stdio.prepare_streams():
        stdio.write_error("standard output is closed; redirect it to a file or to /dev/null")
        sys.exit(2)
    if not launch.is_child() or os.environ["ZOO_PROCESS"] == "0":
        # The launcher prints the end of what the other processes write to stderr, with the messages of native code.
        native_log.separate()
    sys.excepthook = stdio.write_traceback
    launch.handle_interrupts()
    try:
        try:
            code = main()
        except SystemExit as end:
            if isinstance(end.__context__, BrokenPipeError):
                raise BrokenPipeError from None  # rich turns it into an exit with 1
            code = end.code if isinstance(end.code, int) else 0
        launch.end_interrupts()
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader has closed the pipe (`| head`), so flushing at exit must not write to it.
        stdio.discard_output(sys.stdout)
        code = launch.exit_if_joined(launch.CLOSED_PIPE)
    except OSError as error:
        if not (line := _exhausted(error)):
            raise
        stdio.discard_output(sys.stdout)
        stdio.write_error(line)
        code = 2
    sys.exit(launch.exit_if_failed(code))
