"""The command `zoo eval`."""

import dataclasses
from typing import Annotated, Any, Literal

from zoo import trust
from zoo.cli import early_checks
from zoo.cli.command_setup import named_fields, prepare_process
from zoo.cli.option_parser import parse
from zoo.errors import BadInput, require
from zoo.generation.decoding_settings import Beams

PASSED = ("batch", "stride", "length", "words", "field", "orders", "likelihood", "limit", "pmi", "tokens", "prefix")
"""Options that are passed on to `eval.tasks.task.Settings`."""
SUITE_OPTIONS = ("run", "suite", "suite_data", "partial", "step", "batch", "precision", "json", "limit", "mesh", "machine")
"""Options of all suites."""


def evaluate(args: list[str]) -> int:
    """Run `zoo eval RUN [options]`, or with `--task T --files ...` or `--suite S --suite-data DIR` for a RUN|DIR|hub:ID."""
    import tyro

    from eval.inference.encoder_inputs import TaskVectors
    from eval.inference.likelihood_methods import LikelihoodMethod
    from train.config.option_groups import Labelled
    from train.config.rollout_options import JudgedResponses
    from train.config.run_config import Machine, Mesh, Precision

    @dataclasses.dataclass(frozen=True)
    class Evaluate:
        """Compute the exact held-out loss, perplexity and bits per byte of a run, each token counted once.

        With --task, score a task on local files instead, and with --suite several.
        """

        run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
        """Folder of a run; with --task also a folder of published weights or hub:ID."""
        task: str = ""
        """Task to score; the result is stored in the run.
        Language models: blimp, choices, word_ratios, reading, lambada, perplexity, or harness:NAME (a YAML task of
        lm-evaluation-harness).
        Encoders: masked, pseudo_perplexity, blimp. XLNet: permutation_likelihood. Both, on the same tokens: masked:all.
        Encoders as embedding models: sts, pair_classification, retrieval, rerank, clustering,
        classification_probe.
        Fine-tuned encoders: labelled, or labelled:NAME for the metrics of a GLUE task.
        Encoder-decoders: text_to_text, or text_to_text:bleu.
        Reward models: preferences (also language models and encoder-decoders), rewards, or rewards:normalize.
        Models that generate: responses, which are sampled and judged."""
        files: tuple[str, ...] = ()
        """Files of the task, or folders of them."""
        suite: Literal["babylm", "blimp", "glue-files"] | None = None
        """Suite of tasks to score, as one table. For glue-files RUN is a folder of runs with the names of its tasks: cola,
        sst2, mrpc, qqp, stsb, mnli, qnli, rte, wnli."""
        suite_data: str = ""
        """Folder of the suite's files; without them the command lists their names, formats and sources."""
        partial: bool = False
        """Score the files of a suite that are there although others are absent; there is no mean then."""
        step: int | None = None
        """Step of the checkpoint to use. None = the best checkpoint if the run keeps one, else the newest; -1 = the newest."""
        adapter: str = ""
        """Folder of a LoRA adapter in peft's format, which is merged into the model's parameters for a task; empty = none.
        The result is printed, and not stored in a run."""
        batch: int = 16
        """Number of rows scored at a time; the score does not depend on it."""
        stride: int = 0
        """New tokens per row; smaller values give each token more context but need more rows. 0 = half a row."""
        length: int = 0
        """Number of tokens in a row (perplexity, masked, pseudo_perplexity, permutation_likelihood, labelled).
        0 = the model's positions; for labelled, the run's length."""
        words: bool = False
        """Also report the perplexity per word (perplexity)."""
        field: str = "text"
        """Field of a .jsonl line that holds the text (lambada, perplexity, masked, pseudo_perplexity, permutation_likelihood)."""
        precision: Precision = "auto"
        """Dtype of a task's arithmetic. auto: the run's own; for published weights float32 on CPU, else bfloat16."""
        json: bool = False
        """Print a task's result as JSON."""
        orders: int = 0
        """Random orders of each document (permutation_likelihood), or of each text with --likelihood permutations; 0 = 8."""
        likelihood: LikelihoodMethod = "auto"
        """How the likelihood of a text is computed (blimp, choices, word_ratios, reading, lambada, harness).
        auto: as the model was trained. Encoder-decoders: target, or sentinel as the first removed span. Encoders: pseudo, or
        within_word, which also masks the later tokens of a token's word. XLNet: left_to_right, permutations and these two."""
        pmi: bool = False
        """Also compare choices by log p after their context minus log p after --prefix alone (choices)."""
        limit: int = 0
        """Score only the first examples or documents of the task, this many (of each group in blimp and choices); 0 = all.
        The result does not replace that of all examples."""
        tokens: int = 0
        """Largest number of tokens of a generated text (text_to_text); 0 = 128."""
        prefix: str = ""
        """Text put before every source (text_to_text); empty = the run's own prefix. With --pmi: the context of choices alone."""
        search: Annotated[Beams, tyro.conf.arg(name="", prefix_name=False)] = Beams()
        labelled: Labelled = Labelled()
        """Options for reading files (labelled, text_to_text, preferences). Those that are not named are the run's own."""
        rollout: JudgedResponses = JudgedResponses()
        """Responses that are sampled from the model and judged (responses)."""
        vectors: TaskVectors = TaskVectors()
        """Vectors of texts that are compared (sts, pair_classification, retrieval, rerank, clustering,
        classification_probe)."""
        mesh: Mesh = dataclasses.field(default_factory=Mesh)
        machine: Annotated[Machine, tyro.conf.arg(name="", prefix_name=False)] = dataclasses.field(default_factory=Machine)

    options = parse(Evaluate, args=args, prog="zoo eval")
    if options.suite:
        return _score_suite(options, args)
    require(not options.suite_data, "suite_data", options.suite_data, "it needs a --suite")
    require(not options.partial, "partial", options.partial, "it needs a --suite")
    return _score_task(options, args) if options.task else _score_run(options, args)


def _score_suite(options: Any, args: list[str]) -> int:
    """Score a suite, store the results of its tasks, and return the exit code."""
    from eval.suites import glue_files, suite_table
    from train.store import run_fetch

    own = ("tokens", "search") if options.suite == "glue-files" else ("likelihood", "orders")
    used = (*SUITE_OPTIONS, *own)
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        text = " ".join(value) if isinstance(value, tuple) else "options" if dataclasses.is_dataclass(value) else value
        unchanged = field.name in used or value == field.default
        require(unchanged, field.name, text, f"has no effect on --suite {options.suite}; remove it")
    if not options.suite_data:
        raise BadInput(f"--suite {options.suite}: name the folder of its files with --suite-data DIR")
    # Neither needs JAX, so that absent files are listed at once.
    if options.suite == "glue-files":
        run = options.run
        parts = glue_files.find_glue(run, options.suite_data)
        glue_files.check_glue(parts, run, options.suite_data, partial=options.partial)
    else:
        parts = suite_table.find_parts(options.suite, options.suite_data)
        suite_table.check_complete(options.suite, options.suite_data, parts, partial=options.partial)
        run = run_fetch.local_name(options.run, options.step)
        early_checks.check_source(run, options.step)
        early_checks.check_weights(run)
    if (code := prepare_process(options.machine, ["eval", *args])) is not None:
        return code
    from eval.commands import run_suite
    from eval.tasks.task import Settings

    names = ("batch", "limit", *own)
    return run_suite.run_suite(
        run,
        suite=options.suite,
        data=options.suite_data,
        partial=options.partial,
        step=options.step,
        settings=Settings(**{name: getattr(options, name) for name in names}),
        precision=options.precision,
        mesh=options.mesh,
        as_json=options.json,
    )


def _score_run(options: Any, args: list[str]) -> int:
    """Score the held-out data of a run, and return the exit code."""
    from train.run.run_dir import read_config
    from train.store import run_fetch

    fields = type(options).__dataclass_fields__
    for name in (
        "files",
        "length",
        "words",
        "field",
        "precision",
        "json",
        "orders",
        "likelihood",
        "limit",
        "pmi",
        "tokens",
        "prefix",
        "adapter",
    ):
        value = getattr(options, name)
        text = " ".join(value) if isinstance(value, tuple) else value
        require(value == fields[name].default, name, text, "it needs a --task")
    for name, key, text, task in (
        ("labelled", "labelled", "options", "labelled"),
        ("search", "beams", "and its options", "text_to_text"),
        ("rollout", "rollout", "options", "responses"),
        ("vectors", "vectors", "options", "retrieval"),
    ):
        require(getattr(options, name) == fields[name].default, key, text, f"they need --task {task}")
    run = run_fetch.local_name(options.run, options.step)
    # Refuses before JAX starts what scoring would refuse.
    trust.check_trusted(read_config(run).rewards)
    early_checks.check_source(run, options.step)
    require(options.batch >= 1, "batch", options.batch, "choose 1 or more rows")
    if (code := prepare_process(options.machine, ["eval", *args])) is not None:
        return code
    from eval.commands.eval_run import run_eval

    return run_eval(run, step=options.step, batch=options.batch, stride=options.stride, mesh=options.mesh)


def _score_task(options: Any, args: list[str]) -> int:
    """Score a task, store its result in the run, and return the exit code."""
    from eval.tasks import task_table
    from train.run.run_dir import RunDir
    from train.store import run_fetch, run_uploads

    # This imports no JAX, so a wrong name is refused at once.
    task_table.check_task(options.task)
    run = run_fetch.local_name(options.run, options.step)
    early_checks.check_source(run, options.step)
    early_checks.check_adapter(options.adapter)
    early_checks.check_task(options.task, run, options.files)
    early_checks.check_weights(run)
    if (code := prepare_process(options.machine, ["eval", *args])) is not None:
        return code
    from eval.commands import run_task
    from eval.tasks.task import Settings

    settings = {name: getattr(options, name) for name in (*PASSED, "search", "rollout", "vectors")}
    settings["labelled"] = dataclasses.replace(options.labelled, named=named_fields(args, "labelled"))
    code = run_task.run_task(
        run,
        task=options.task,
        files=options.files,
        step=options.step,
        adapter=options.adapter,
        settings=Settings(**settings),
        precision=options.precision,
        mesh=options.mesh,
        as_json=options.json,
    )
    import jax

    if not options.adapter and jax.process_index() == 0:
        from eval.report import report

        run_uploads.upload_results(options.run, RunDir(run), write_report=report.write_report)
    return code
