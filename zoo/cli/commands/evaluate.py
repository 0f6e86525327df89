"""`zoo eval`."""

import dataclasses
from typing import Annotated

from zoo.cli import early_checks
from zoo.cli.machine import on_machine
from zoo.cli.options import parse
from zoo.errors import require
from zoo.generation.settings import Beams

PASSED = ("batch", "stride", "length", "words", "field", "orders", "limit", "tokens", "prefix")
"""Options that are `eval.tasks.Settings`' own."""


def evaluate(args: list[str]) -> int:
    """`zoo eval RUN [options]`, `zoo eval RUN|DIR|hub:ID --task T --files ... [options]`."""
    import tyro

    from train.config.objective_options import Labelled
    from train.config.run_config import Machine, Mesh, Precision
    from train.run.run_dir import read_config

    @dataclasses.dataclass(frozen=True)
    class Evaluate:
        """Exact held-out loss, perplexity and bits per byte of a run, every token once. With --task, a task on local files."""

        run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
        """Folder of a run; with --task also a folder of published weights, or hub:ID."""
        task: str = ""
        """blimp, lambada, perplexity, or harness:NAME (a YAML task of lm-evaluation-harness); of an encoder masked,
        pseudo_perplexity or blimp, of an XLNet permutation_likelihood; of a fine-tuned one labelled, or labelled:NAME for the
        measures of a task of GLUE; of an encoder-decoder text_to_text, or text_to_text:bleu. A run keeps the result."""
        files: tuple[str, ...] = ()
        """Files of the task, or their folders."""
        step: int | None = None
        """Checkpoint to score; None = the best one of a run that keeps it, else the newest; -1 = the newest."""
        batch: int = 16
        """Rows scored at a time; the score does not depend on it."""
        stride: int = 0
        """New tokens per row: smaller gives every token more context, at more rows; 0 = half a row."""
        length: int = 0
        """perplexity, masked, pseudo_perplexity, permutation_likelihood: tokens in a row; 0 = the model's positions. labelled:
        0 = as the run's."""
        words: bool = False
        """perplexity: also that of a word."""
        field: str = "text"
        """lambada, perplexity, masked, pseudo_perplexity, permutation_likelihood: field of a .jsonl line that holds the text."""
        precision: Precision = "auto"
        """Dtype of a task's arithmetic. auto: the run's own; of published weights float32 on CPU, else bfloat16."""
        json: bool = False
        """Print a task's result as JSON."""
        orders: int = 0
        """permutation_likelihood: random orders of each document; 0 = 8."""
        limit: int = 0
        """Score at most so many of the first examples or documents of the task (blimp: pairs of each paradigm); 0 = all. The
        result is kept apart from that of all."""
        tokens: int = 0
        """text_to_text: tokens of a text at most; 0 = 128."""
        prefix: str = ""
        """text_to_text: stands before every source; none: the run's own."""
        search: Annotated[Beams, tyro.conf.arg(name="", prefix_name=False)] = Beams()
        labelled: Labelled = Labelled()
        """labelled, text_to_text: how files are read; without any of these a run reads them as its own."""
        mesh: Mesh = dataclasses.field(default_factory=Mesh)
        machine: Annotated[Machine, tyro.conf.arg(name="", prefix_name=False)] = dataclasses.field(default_factory=Machine)

    asked = parse(Evaluate, args=args, prog="zoo eval")
    if asked.task:
        from eval import tasks

        # Imports no JAX: a wrong name is refused at once.
        tasks.check(asked.task)
    else:
        for name in ("files", "length", "words", "field", "precision", "json", "orders", "limit", "tokens", "prefix"):
            value, default = getattr(asked, name), Evaluate.__dataclass_fields__[name].default
            require(value == default, name, " ".join(value) if isinstance(value, tuple) else value, "it needs a --task")
        require(asked.labelled == Labelled(), "labelled", "options", "they need --task labelled")
        require(asked.search == Beams(), "beams", "and its options", "they need --task text_to_text")
    if asked.task:
        early_checks.check_source(asked.run, asked.step)
        early_checks.check_files("--files", asked.files)
    else:
        read_config(asked.run)
        early_checks.check_source(asked.run, asked.step)
    if (code := on_machine(asked.machine, ["eval", *args])) is not None:
        return code
    if not asked.task:
        from eval.scoring import scorers

        return scorers.main(asked.run, step=asked.step, batch=asked.batch, stride=asked.stride, mesh=asked.mesh)
    from eval import tasks
    from eval.commands import run_task

    given = {name: getattr(asked, name) for name in (*PASSED, "labelled", "search")}
    return run_task.main(
        asked.run,
        task=asked.task,
        files=asked.files,
        step=asked.step,
        settings=tasks.Settings(**given),
        precision=asked.precision,
        mesh=asked.mesh,
        as_json=asked.json,
    )
