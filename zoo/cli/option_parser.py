"""Parsing of command-line options with tyro. A wrong option gets a message of one line that names the nearest option."""

import contextlib
import dataclasses
import decimal
import difflib
import io
import itertools
import re
import sys
from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, Any

from zoo.errors import BadInput

LARGEST = 30
"""Largest number of digits of a whole number: no option takes a larger one, and 1e999999999 would fill the memory."""

SYNONYMS = {
    "optim.lr": "learning-rate lr base-lr peak-lr",
    "optim.weight-decay": "weight-decay wd",
    "optim.warmup": "warmup warmup-steps warmup-iters num-warmup-steps warmup-ratio",
    "optim.clip": "max-grad-norm grad-clip gradient-clipping clip-grad-norm clip",
    "optim.schedule": "lr-scheduler lr-scheduler-type scheduler lr-schedule",
    "optim.name": "optimizer optim",
    "optim.b1": "beta1 adam-beta1",
    "optim.b2": "beta2 adam-beta2",
    "optim.eps": "adam-epsilon epsilon",
    "optim.momentum": "momentum",
    "optim.decay-steps": "num-decay-steps decay-iters lr-decay-iters lr-decay-steps",
    "data.batch batch": "batch-size bs train-batch-size global-batch-size micro-batch-size per-device-train-batch-size",
    "data.length length": "max-length max-seq-length max-seq-len seq-length seq-len sequence-length block-size context-length",
    "data.paths files": "data data-path dataset dataset-name dataset-path train-file train-data train-path input input-file",
    "data.valid-paths": "valid valid-file validation-file eval-file eval-data val-data test-file",
    "steps": "max-steps num-steps train-steps total-steps iterations iters max-iters epochs num-epochs num-train-epochs",
    "accumulate": "gradient-accumulation-steps grad-accum grad-accumulation accumulate-grad-batches",
    "checkpoint.every": "save-steps save-every save-interval checkpoint-every",
    "checkpoint.keep": "save-total-limit keep max-to-keep keep-last",
    "log.every": "logging-steps log-interval log-every",
    "log.validate-every": "eval-steps eval-interval eval-every validate-every val-interval",
    "log.sinks": "report-to wandb tensorboard trackio mlflow logger",
    "out": "output-dir output-path output save-dir out-dir log-dir checkpoint-dir",
    "name": "run-name experiment-name exp-name resume resume-from-checkpoint",
    "init": "model-name-or-path pretrained pretrained-model from-pretrained finetune-from load",
    "seed": "random-seed manual-seed",
    "precision": "dtype fp16 bf16 mixed-precision amp",
    "devices": "gpus num-gpus n-gpu num-devices",
    "processes": "num-processes nproc nproc-per-node workers",
    "restart": "max-restarts",
    "model.layers": "num-layers n-layer n-layers num-hidden-layers depth",
    "model.width": "hidden-size d-model n-embd dim embed-dim hidden-dim",
    "model.heads": "num-heads n-head n-heads num-attention-heads",
    "model.ffn": "intermediate-size ffn-dim mlp-dim d-ff",
    "model.dropout": "dropout dropout-rate hidden-dropout-prob",
    "model.compute.remat": "gradient-checkpointing activation-checkpointing remat",
    "model.compute.attention": "attn-implementation attention flash-attention",
    "model.vocab": "vocab-size",
    "tokenizer.path": "tokenizer tokenizer-name tokenizer-path",
    "limit": "max-new-tokens max-tokens num-samples",
    "prompt": "text input-text prompts",
    "samples": "num-return-sequences",
    "beams": "num-beams beam-size",
    "min-tokens": "min-new-tokens",
    "no-repeat-ngram": "no-repeat-ngram-size",
    "source-no-repeat-ngram": "encoder-no-repeat-ngram-size",
    "step": "checkpoint checkpoint-step ckpt",
    "top": "top-k k",
}
"""Maps options of this project (of several, the first that a command has) to the names of the same option in other libraries."""

UNNAMED = {
    "train": ("recipe model", "zoo train RECIPE"),
    "eval": ("run model", "zoo eval RUN"),
    "generate": ("run model", "zoo generate RUN|DIR --prompt TEXT"),
    "chat": ("run model", "zoo chat RUN|DIR"),
    "serve": ("run model", "zoo serve RUN|DIR"),
    "predict": ("run model text texts", "zoo predict RUN|DIR TEXT"),
    "fill-mask": ("run model", "zoo fill-mask RUN|DIR --text TEXT"),
    "embed": ("run model", "zoo embed RUN|DIR --text TEXT"),
    "mine": ("run model", "zoo mine RUN|DIR --queries FILE --out FILE"),
    "search": ("text query index", "zoo search INDEX TEXT --model RUN|DIR"),
    "export": ("run model", "zoo export RUN DIR"),
    "import": ("model", "zoo import DIR|HUB_ID"),
}
"""Maps a command to names of options that it lacks because it takes their values as bare words, and to the usage with them."""
NOT_BUILT = {
    "mesh.stage": "the layers are not divided into the stages of a pipeline, and benchmarks/results/pipelines_2026-12-01.md says "
    "why; choose --mesh.fsdp, --mesh.tensor or --mesh.sequence",
}
"""Options that other libraries have and this project decided against -> the reason and the fix."""


Unlisted = Mapping[type, Collection[str]]
"""Dataclass -> its fields that are not options of a command and keep their defaults."""


def parse(
    kind: Any, *, args: Sequence[str], prog: str, objective: str = "", unlisted: Unlisted | None = None, **options: Any
) -> Any:
    """Parse the arguments of a command into `kind`, as `tyro.cli` does; whole numbers may be written as 1e9.

    Args:
        objective: the objective of the run that the options describe, for messages about options of other objectives.
        unlisted: fields that are no options of this command, although they are of others.

    Raises:
        BadInput: one line that names the option, the problem and the fix.
        SystemExit: with code 0, after --help.
    """
    import tyro

    stderr, registry = io.StringIO(), _registry(unlisted or {})
    try:
        with contextlib.redirect_stderr(stderr):
            parsed = tyro.cli(kind, args=args, prog=prog, registry=registry, **options)
    except SystemExit as end:
        if end.code != 2:
            raise
    else:
        sys.stderr.write(stderr.getvalue())
        return parsed
    message = _message(stderr.getvalue())
    names = _options(kind, prog, registry, options)
    if token := _unknown_token(message, args, names):
        problem = _of_another(token, objective) or _unnamed(token, prog) or _unknown(token, args, names)
        raise BadInput(f"{problem}; {prog} --help lists the options")
    raise BadInput(_rephrased(message, prog))


def explicit_names(args: Sequence[str]) -> set[str]:
    """Return the names of the options among the words of a command line, as Python writes them: top_p for --top-p=0.9."""
    names = (arg.partition("=")[0].removeprefix("--").replace("-", "_") for arg in args if arg.startswith("--"))
    return {name for option in names for name in (option, option.removeprefix("no_"))}


def whole_number(text: str) -> int:
    """Return the integer that a text denotes. An exponent or a fraction of 0 is allowed: 1e9, 2.0.

    Raises:
        ValueError: the text is not a whole number.
    """
    with contextlib.suppress(ValueError):
        return int(text)
    with contextlib.suppress(decimal.InvalidOperation):
        number = decimal.Decimal(text)
        if number.is_finite() and number.adjusted() < LARGEST and number == (integer := int(number)):
            return integer
    raise ValueError(f"{text} is not a whole number; write one, as 1000 or 1e3")


def decimal_number(text: str) -> float:
    """Return the float that a text denotes.

    Raises:
        ValueError: the text is not a number.
    """
    with contextlib.suppress(ValueError):
        return float(text)
    raise ValueError(f"{text} is not a number; write one, as 0.001 or 1e-3")


def nearest_option(option: str, names: Sequence[str]) -> str:
    """Return the option in `names` (without --) that a mistyped or foreign option most likely means; "" if none is close."""
    option = option.partition("=")[0].lstrip("-").replace("_", "-").lower()
    for own_names, synonyms in SYNONYMS.items():
        if option in synonyms.split() and (match := next((name for name in own_names.split() if name in names), "")):
            return match

    def likeness(name: str) -> float:
        ends = (name, name.rpartition(".")[2]) if "." not in option else (name,)
        return max(difflib.SequenceMatcher(None, option, end).ratio() for end in ends)

    best = max(names, key=likeness, default="")
    return best if best and likeness(best) >= 0.6 else ""


def _registry(unlisted: Unlisted) -> Any:
    """Return tyro's registry in which whole numbers are parsed by `whole_number`, and some fields are no options."""
    import tyro
    from tyro import constructors

    from zoo.configs import Exported

    registry = constructors.ConstructorRegistry()

    @registry.struct_rule
    def exported(info: constructors.StructTypeInfo) -> constructors.StructConstructorSpec | None:
        # These values come from an import and have no effect here, so they are not options.
        if info.type is not Exported:
            return None
        return constructors.StructConstructorSpec(instantiate=lambda: info.default, fields=())

    # The classes whose fields tyro lists by its own rule at the moment.
    delegated: list[type] = []

    @registry.struct_rule
    def listed(info: constructors.StructTypeInfo) -> constructors.StructConstructorSpec | None:
        if info.type not in unlisted or info.type in delegated:
            return None
        delegated.append(info.type)
        spec = constructors.ConstructorRegistry.get_struct_spec(info)
        delegated.remove(info.type)
        assert isinstance(spec, constructors.StructConstructorSpec), f"{info.type} is a dataclass"
        fields = [
            dataclasses.replace(field, type=Annotated[field.type, tyro.conf.Suppress])
            if field.name in unlisted[info.type]
            else field
            for field in spec.fields
        ]
        return dataclasses.replace(spec, fields=tuple(fields))

    @registry.primitive_rule
    def decimal_fraction(info: constructors.PrimitiveTypeInfo) -> constructors.PrimitiveConstructorSpec | None:
        if info.type is not float:
            return None
        return constructors.PrimitiveConstructorSpec(
            nargs=1,
            metavar="FLOAT",
            instance_from_str=lambda texts: decimal_number(texts[0]),
            is_instance=lambda value: isinstance(value, float | int) and not isinstance(value, bool),
            str_from_instance=lambda value: [str(value)],
        )

    @registry.primitive_rule
    def integer(info: constructors.PrimitiveTypeInfo) -> constructors.PrimitiveConstructorSpec | None:
        if info.type is not int:
            return None
        return constructors.PrimitiveConstructorSpec(
            nargs=1,
            metavar="INT",
            instance_from_str=lambda texts: whole_number(texts[0]),
            is_instance=lambda value: isinstance(value, int) and not isinstance(value, bool),
            str_from_instance=lambda value: [str(value)],
        )

    return registry


def _options(kind: Any, prog: str, registry: Any, options: dict[str, Any]) -> list[str]:
    """Return the options that the help of a command lists, without --."""
    import tyro

    stdout = io.StringIO()
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(stdout):
        tyro.cli(kind, args=["--help"], prog=prog, registry=registry, **options)
    lines = re.findall(r"^[│|\s]*(--[\w.-]+(?:, --[\w.-]+)*)", stdout.getvalue(), re.MULTILINE)
    return [name.removeprefix("--") for line in lines for name in line.split(", ")]


def _of_another(token: str, objective: str) -> str:
    """Return which objectives have an option that this one lacks; "" if none has it."""
    if not objective:
        return ""
    from train.config.find_objective import objectives_with_option

    option = token.partition("=")[0]
    others = ", ".join(objectives_with_option(option.lstrip("-").replace("-", "_").replace(".no_", ".")))
    return f"there is no option {option} for the objective {objective}; it belongs to {others}" if others else ""


def _unknown_token(message: str, args: Sequence[str], names: Sequence[str]) -> str:
    """Return the word of a command line that belongs to no option, if that is the error; else "".

    Where an unknown option stands in the place of a value without an option, tyro reports that the value is missing.
    """
    if unknown := re.match(r"Unrecognized (?:or misplaced )?options: (\S+?)(?:,|$| )", message):
        return unknown[1]
    if not re.match(r"Missing (?:from|value for argument '[^-])", message):
        return ""
    listed = {*names, "h", "help"}
    options = (arg.partition("=")[0] for arg in args if arg.startswith("--"))
    return next((option for option in options if option.lstrip("-").replace("_", "-") not in listed), "")


def _unnamed(token: str, prog: str) -> str:
    """Return how a value is written that has no option in this command, if the token names one; else ""."""
    option = token.partition("=")[0]
    options, usage = UNNAMED.get(prog.split()[1], ("", ""))
    if option.removeprefix("--") not in options.split():
        return ""
    return f"there is no option {option}; write its value without one: {usage}"


def _unknown(token: str, args: Sequence[str], names: Sequence[str]) -> str:
    if not token.startswith("-"):
        words = [part for arg in args for part in (arg.split("=", 1) if arg.startswith("--") else [arg])]
        pairs = (word for word, value in itertools.pairwise(words) if value == token and _is_switch(word, names))
        switch = next(pairs, "")
        return f"{switch} {token}: it takes no value; write {switch} alone" if switch else f"{token} belongs to no option"
    option = token.partition("=")[0]
    reason = NOT_BUILT.get(option.removeprefix("--"), "")
    if reason and any(name.startswith("mesh.") for name in names):
        return f"there is no option {option}: {reason}"
    near = nearest_option(token, names)
    return f"there is no option {option}" + (f"; the nearest is --{near}" if near else "")


def _is_switch(word: str, names: Sequence[str]) -> bool:
    """Return whether a word is an option without a value: the help lists it with its opposite, --log.ledger, --log.no-ledger."""
    group, dot, name = word.removeprefix("--").replace("_", "-").rpartition(".")
    opposite = name.removeprefix("no-") if name.startswith("no-") else f"no-{name}"
    return word.startswith("--") and f"{group}{dot}{opposite}" in names


def _message(box: str) -> str:
    """Return the text of tyro's error box between its title and its next rule, on one line."""
    blocks: list[list[str]] = [[]]
    for line in box.splitlines():
        text = line.strip("│| \t")
        if text and not text.strip("─-"):
            blocks.append([])
        elif not text.startswith(("╭", "╰")):
            blocks[-1].append(text)
    # In a terminal without UTF-8 the title of the box is its first block, and not part of its border.
    return " ".join(" ".join(blocks[0 if "╭" in box else 1]).split())


def _rephrased(message: str, prog: str) -> str:
    """Return tyro's message in the form of this project: the option, the problem, the fix."""
    if match := re.match(r"Error parsing (\S+): (.*)", message):
        # For an option that may be None, tyro gives the reasons of both types.
        reason = match[2].rpartition("- <class 'int'>: ")[2].rpartition("- <class 'float'>: ")[2]
        if unread := re.match(r"Could not find valid parse for arguments: \[(.*)\]", reason):
            reason = f"{unread[1]} cannot be parsed; {prog} --help lists the possible values"
        return f"{match[1]}: {reason}"
    if match := re.match(r"invalid choice '(.*)' for argument '(.*?)'\. Expected one of \((.*?),?\)", message):
        return f"{match[2]} {match[1]}: choose {match[3].replace(chr(39), '')}"
    if match := re.match(r"Missing value for argument '(.*?)'", message):
        return f"{match[1]}: its value is missing; write one after it"
    if match := re.match(rf"Missing from {re.escape(prog)}: (\S+) ?(.*?)(?: \(required\).*)?$", message):
        return f"{match[1]} is missing: {match[2]} {prog} --help lists the options"
    return f"{message}; {prog} --help lists the options"
