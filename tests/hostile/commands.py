"""The commands that take a hostile argument, by kind of argument. Nothing here imports `tests.support.environment`."""

import dataclasses
import functools
import shlex
import sys
from collections.abc import Callable

TINY = "--model.vocab 300 --model.context 32 --model.layers 2 --model.width 32 --model.heads 4 --model.head 8 --model.ffn 64"
SMALL = "--tokenizer.vocab 300 --data.length 32 --data.batch 8 --optim.warmup 5 --log.every 2 --log.validate-every 10"
SMALL += " --log.validate-rows 8 --log.samples 0"
SHORT = "--steps 1 --data.length 16 --data.batch 8 --log.validate-rows 8 --log.samples 0"
OUT = "out"
"""Folder that commands may write."""


@dataclasses.dataclass(frozen=True)
class Command:
    """A command on an argument of a kind."""

    kind: str
    name: str
    line: str = ""
    """Arguments after `zoo`, as a shell reads them."""
    needs: tuple[str, ...] = ()
    """Kinds of intact arguments that it also reads."""
    writes: tuple[str, ...] = ()
    """Paths, in the folder where it runs, that it may change beside `OUT`."""
    code: int = 0
    """Exit code for an intact argument: 2 for a command that no argument of this kind is fit for."""
    has_verdict: bool = False
    """True if exit code 1 is a verdict on the argument: a hostile one may be read, and called wrong."""
    act: Callable[[], None] | None = None
    """Function that is called instead of the entry point of `zoo`."""

    @property
    def argv(self) -> list[str]:
        """Return the arguments after `zoo`."""
        return shlex.split(self.line)

    @property
    def title(self) -> str:
        """Return the name with the kind of argument."""
        return f"{self.name} {self.kind.upper()}"


def load_and_generate(path: str) -> None:
    """Load a model by `zoo.load` and continue a text, as a program does that reports wrong input as the command line does."""
    import zoo
    from zoo.errors import BadInput
    from zoo.runtime import stdio

    try:
        print(zoo.load(path).generate("The", limit=2))
    except BadInput as error:
        stdio.write_error(str(error))
        sys.exit(2)


def _loads(path: str) -> Callable[[], None]:
    return functools.partial(load_and_generate, path)


def _of_run(kind: str, run: str, resumes: str) -> tuple[Command, ...]:
    """Return the commands that take a run."""
    return (
        Command(kind, "eval", f"eval {run}"),
        Command(kind, "eval --task", f"eval {run} {TASK}", ("text",), (run,)),
        Command(kind, "compare", f"compare {run}"),
        *([Command(kind, "audit", f"audit {run}", has_verdict=True)] if kind == "run" else []),
        Command(kind, "generate", f"generate {run} {PROMPT}"),
        Command(kind, "predict", f"predict {run} 'a text'", code=2),
        Command(kind, "fill-mask", f"fill-mask {run} --text 'a [MASK]'", code=2),
        Command(kind, "embed", f"embed {run} --text 'a text'", code=2),
        Command(kind, "export", f"export {run} {OUT}/model"),
        Command(kind, "import", f"import {run} --out {OUT}", code=2),
        Command(kind, "train --init", f"{TRAIN} --init {run}", ("text",)),
        Command(kind, "train (resume)", f"train {resumes}", writes=(run,)),
        Command(kind, "data inspect", f"data inspect {run} --rows 1"),
        Command(kind, "plan --init", f"plan sft --init {run} --target cpu:1"),
        Command(kind, "zoo.load", act=_loads(run)),
    )


def _of_model(kind: str, code_of_text: int = 0, code_of_encoder: int = 2, code_of_masks: int = 2) -> tuple[Command, ...]:
    """Return the commands that take any folder of published weights."""
    return (
        Command(kind, "import", f"import {kind} --out {OUT}"),
        Command(kind, "import --explain", f"import {kind} --out {OUT} --explain"),
        Command(kind, "generate", f"generate {kind} {PROMPT}", code=code_of_text),
        Command(kind, "fill-mask", f"fill-mask {kind} --text 'a [MASK]'", code=code_of_masks),
        Command(kind, "embed", f"embed {kind} --text 'a text' 'a ship'", code=code_of_encoder),
        Command(kind, "zoo.load", act=_loads(kind), code=code_of_text),
    )


RUN, POLICY, STORED = "runs/done", "runs/policy", "dir://runs/out/done"
PROMPT = "--prompt The --limit 2"
BOOK, CHATS = "--data.paths text/book.txt", "--data.paths prompts/chats.jsonl"
FINETUNE = "train finetune-classification --init encoder --data.paths examples/rows.jsonl"
TASK = "--task perplexity --files text/book.txt"
LABELLED = "eval classifier --task labelled --files examples/rows.jsonl"
TRAIN = f"train gpt-nano {TINY} {SMALL} --steps 1 --out {OUT} {BOOK}"
DONE = f"gpt-nano {TINY} {SMALL} --steps 2 --data.paths book.txt --name done"
GRPO = "--data.paths prompts/prompts.jsonl --data.length 16 --rollout.tokens 4 --rollout.samples 2 --log.validate-rows 8"
GRPO += " --log.samples 0 --rollout.reward train.rollouts.reward_functions:exact_match"
LEARNED = f"grpo --init {RUN} --steps 2 --data.batch 16 {GRPO} --name policy"
PROMPTS = "--prompts-file prompts/prompts.jsonl --choices ' a' ' b'"
SHOTS = "--examples prompts/shots.jsonl --template {prompt}{completion} --query prompt=The --limit 1"
TEMPLATE = "--chat.template chat/chat_template.jinja"
SMOKE = "experiment masks experiment --tier smoke"
COMMANDS = (
    *_of_run("run", RUN, DONE),
    *(dataclasses.replace(command, needs=(*command.needs, "prompts", "run")) for command in _of_run("policy", POLICY, LEARNED)),
    *_of_model("model"),
    Command("model", "eval --task", f"eval model {TASK}", ("text",)),
    Command("model", "predict", "predict model 'a text'", code=2),
    Command("model", "export", f"export model {OUT}/model"),
    Command("model", "train --init", f"{TRAIN} --init model", ("text",)),
    Command("model", "data inspect --init", f"data inspect sft --init model {CHATS} --chat.template builtin", ("prompts",)),
    Command("model", "plan --init", "plan sft --init model --target cpu:1"),
    *_of_model("encoder", code_of_text=2, code_of_encoder=0, code_of_masks=0),
    *_of_model("classifier", code_of_text=2, code_of_encoder=0),
    Command("classifier", "predict", "predict classifier 'a text'"),
    Command("classifier", "eval --task labelled", LABELLED, ("examples",)),
    Command("adapter", "generate --adapter", f"generate model {PROMPT} --adapter adapter", ("model",)),
    Command("adapter", "eval --adapter", f"eval model {TASK} --adapter adapter", ("model", "text")),
    Command("adapter", "train --adapter", f"{TRAIN} --init model --adapter adapter", ("model", "text")),
    Command("tokenizer", "train --tokenizer.path", f"{TRAIN} --tokenizer.path tokenizer", ("text",)),
    Command("tokenizer", "data inspect --tokenizer.path", f"data inspect gpt-nano {BOOK} --tokenizer.path tokenizer", ("text",)),
    Command("chat", "generate --chat", "generate chat --prompt Who? --chat --limit 2"),
    Command("chat", "train sft", f"train sft --init chat {CHATS} {SHORT} --data.length 32 --out {OUT}", ("prompts",)),
    Command("chat", "import", f"import chat --out {OUT}"),
    Command("chat", "data inspect sft", f"data inspect sft --init chat {CHATS}", ("prompts",)),
    Command("chat", "--chat.template", f"data inspect sft --init model {CHATS} {TEMPLATE}", ("prompts", "model")),
    Command("text", "train --data.paths", f"train gpt-nano {TINY} {SMALL} --data.paths text --steps 1 --out {OUT}"),
    Command("text", "data inspect --data.paths", "data inspect gpt-nano --data.paths text --rows 1"),
    Command("text", "eval --files", "eval model --task perplexity --files text", ("model",)),
    Command("prompts", "generate --prompts-file", f"generate model {PROMPTS}", ("model",)),
    Command("prompts", "generate --examples", f"generate model {SHOTS}", ("model",)),
    Command("prompts", "embed --files", "embed encoder --files prompts/lines.txt", ("encoder",)),
    Command("prompts", "fill-mask --files", "fill-mask encoder --files prompts/lines.txt", ("encoder",), code=2),
    Command("prompts", "data inspect grpo", f"data inspect grpo --init model {GRPO}", ("model",)),
    Command("examples", "predict --files", "predict classifier --files examples/rows.jsonl", ("classifier",)),
    Command("examples", "eval --task labelled", LABELLED, ("classifier",)),
    Command("examples", "train finetune-classification", f"{FINETUNE} {SHORT} --out {OUT}", ("encoder",)),
    Command("experiment", "experiment --render", f"{SMOKE} --render", writes=("experiment",)),
    Command("experiment", "experiment --commands", f"{SMOKE} --commands", writes=("experiment",)),
    Command("experiment", "compare", "compare experiment/runs/dynamic-pretrain-0 experiment/runs/static_1-pretrain-0"),
    Command("store", "compare", f"compare {STORED}"),
    Command("store", "eval", f"eval {STORED}"),
    Command("store", "audit", f"audit {STORED}", has_verdict=True),
    Command("store", "generate", f"generate {STORED} {PROMPT}"),
    Command("store", "train (resume)", f"train {DONE} --out dir://runs/out", writes=("store",)),
    Command("cache", "eval", f"eval {RUN}", ("run",)),
    Command("cache", "data inspect", f"data inspect {RUN} --rows 1", ("run",)),
    Command("cache", "plan", f"plan gpt-nano {TINY} --data.length 32 --target cpu:1"),
    Command("hub", "generate", f"generate hub:evil/model {PROMPT}"),
    Command("hub", "import", f"import hub:evil/model --out {OUT}"),
    Command("task", "eval --task harness", "eval model --task harness:local --files task", ("model",)),
    Command("bench", "bench compare", "bench compare bench bench"),
    Command("bench", "bench compare FILE", "bench compare bench/cells.jsonl bench/cells.jsonl"),
)
"""Every command that reads files of others, by the kind of the argument."""
