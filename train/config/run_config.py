"""Configuration of a run: frozen dataclasses that validate their values on creation. Nothing here imports JAX."""

import dataclasses
import re
from typing import Annotated, Any, Generic, Literal, TypeVar

import tyro

from train.config.batch_sizes import micro_batches
from train.config.data_options import Data
from train.config.declaration import AUTO_CHUNK, ObjectiveOptions, TokenOptions
from train.config.distillation_options import ResponseDistillation
from train.config.lora_options import Lora
from train.config.objectives import (
    MaskedOptions,
    PermutationOptions,
    RolloutOptions,
    StudentOptions,
)
from train.config.optim_options import Optim
from train.config.option_groups import Selection, Spikes
from train.config.width_base import check_width_transfer
from zoo.configs import InitPositions, Objective, Precision, longest_row
from zoo.errors import require

Engine = Literal["jit", "pmap"]
Sink = Literal["tensorboard", "wandb", "trackio", "mlflow"]
FEWER = ":fewer"
RESTART = re.compile(rf"\d{{1,4}}({FEWER})?")
"""Pattern of the values of --restart: N or N:fewer."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tokenizer:
    """Tokenizer, trained on the training text or loaded."""

    kind: Literal["gpt", "wordpiece", "roberta", "modernbert", "sentencepiece", "xlnet"] = "gpt"
    """Kind of a trained tokenizer. gpt: byte-level BPE with an end-of-text token. roberta: the same with other special tokens.
    modernbert: the same with BERT's special tokens, of text in Unicode's NFC. wordpiece: BERT's.
    sentencepiece: T5's unigram model with 100 sentinels. xlnet: XLNet's unigram model."""
    lowercase: bool = True
    """Remove case and accents in a trained WordPiece tokenizer, as in the "uncased" models."""
    path: str = ""
    """Folder of a tokenizer to load (tokenizer.json or another published form); empty = train one on the training text."""
    vocab: int = 2048
    """Vocabulary size of a trained tokenizer, including special tokens and the 256 bytes (WordPiece, unigram: the characters)."""

    def __post_init__(self) -> None:
        require(
            257 <= self.vocab <= 1 << 20, "tokenizer.vocab", self.vocab, "choose 257 (all bytes and end-of-text) to 1,048,576"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mesh:
    """Devices along each axis; their product is the number of devices. `slices` divides `data` and `fsdp`, and is not an axis."""

    data: int = -1
    """Number of devices for data parallelism; -1 = all devices that the other axes leave."""
    fsdp: int = 1
    """Number of devices for data parallelism with sharded parameters and optimizer state."""
    tensor: int = 1
    """Number of devices for tensor parallelism: heads, feed-forward width and vocabulary are sharded."""
    expert: int = 1
    """Number of devices that the experts of a layer are divided over; rows of the batch are divided over them too."""
    sequence: int = 1
    """Number of devices that the positions of a row are divided over; in attention, each has a part of the heads instead, or keys
    and values pass in a ring (--model.compute.sequence)."""
    slices: int = 0
    """Number of slices, groups of equally many devices that a slower network joins; data, then fsdp, is divided over them. 0 = as
    many as TPUs report, and 1 of other devices."""

    def __post_init__(self) -> None:
        for axis in ("data", "fsdp", "tensor", "expert", "sequence"):
            value = getattr(self, axis)
            require(value >= 1 or (axis == "data" and value == -1), f"mesh.{axis}", value, "choose 1 or more devices")
        require(self.slices >= 0, "mesh.slices", self.slices, "choose 0 (as the devices report) or a number of slices")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Checkpoints of the training state."""

    every: int = 200
    """Number of steps between checkpoints; the last step and a signal also save one."""
    keep: int = 2
    """Number of newest checkpoints to keep."""

    def __post_init__(self) -> None:
        require(self.every >= 1, "checkpoint.every", self.every, "choose 1 or more steps")
        require(self.keep >= 1, "checkpoint.keep", self.keep, "keep at least 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Log:
    """Metrics, validations and samples of a run."""

    every: int = 10
    """Number of steps between rows of metrics.jsonl."""
    validate_every: int = 200
    """Number of steps between validations; 0 = only at the end."""
    validate_rows: int = 64
    """Number of held-out rows in a validation during training; the final score uses all held-out rows."""
    ledger: bool = False
    """Also write ledger.jsonl: the row numbers each step consumed."""
    samples: int = 4
    """Number of continuations of held-out text generated at the end for the report; validations show one. 0 = none."""
    sinks: tuple[Sink, ...] = ()
    """Trackers that also receive the rows of metrics.jsonl; the first two need the extra `track`, and the others one of their
    name."""
    hooks: tuple[str, ...] = ()
    """Plug-ins in the group zoo.hooks that are called after every step."""

    def __post_init__(self) -> None:
        require(self.every >= 1, "log.every", self.every, "choose 1 or more steps")
        require(self.validate_every >= 0, "log.validate_every", self.validate_every, "choose 0 (only at the end) or more")
        require(self.validate_rows >= 1, "log.validate_rows", self.validate_rows, "choose 1 or more rows")
        require(0 <= self.samples <= 1000, "log.samples", self.samples, "choose 0 (none) to 1,000")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Machine:
    """Devices and processes. They are not part of a run's identity, so a run may resume on another machine."""

    devices: int = 0
    """Simulate this many CPU devices in each process; 0 = use the real devices."""
    processes: int = 1
    """Start this many local processes, joined by jax.distributed."""
    coordinator: str = ""
    """HOST:PORT of process 0, to join processes on several machines; each process must then be started separately."""
    process: int = 0
    """Number of this process, from 0; needs --coordinator."""
    profile: int = 0
    """Trace this many steps with the JAX profiler into RUN/profile."""
    attention_check: Literal["on", "off"] = "on"
    """On an accelerator, compare every attention kernel with the definition in a small call before its first use. It takes
    seconds, in which the kernel is compiled, and a kernel with wrong numbers is refused."""

    def __post_init__(self) -> None:
        """Check the values; a subclass extends this."""
        require(0 <= self.devices <= 4096, "devices", self.devices, "choose 0 (the real devices) or up to 4,096 to simulate")
        require(1 <= self.processes <= 4096, "processes", self.processes, "choose 1 to 4,096")
        require(0 <= self.process < self.processes, "process", self.process, f"choose one below --processes {self.processes}")
        require(self.profile >= 0, "profile", self.profile, "choose 0 or more steps")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingMachine(Machine):
    """Devices and processes of a run, and what happens when they fail."""

    hang_after: float = 30.0
    """Seconds, besides ten medians of the step time, without a step after which the run counts as stuck and ends with code
    75. Compiling, sampling, validating, saving, scoring and writing results may take any time. 0 = never."""
    restart: int | str = 0
    """N: after a local process died or was stuck, start all of them again from the newest checkpoint, up to N times. N:fewer:
    after N restarts, continue in the next smaller number of processes over whose devices the batch and the mesh divide, with N
    restarts again, down to one process. 0:fewer: do so after the first failure."""
    extend: bool = False
    """Continue a finished run with more --steps, from its last checkpoint; the results of the shorter run are replaced."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.hang_after <= 1e6, "hang_after", self.hang_after, "choose 0 (never) or up to 1,000,000 seconds")
        fix = "write N or N:fewer, with N from 0 (never) to 1,000 times"
        require(bool(RESTART.fullmatch(str(self.restart))) and self.restarts <= 1000, "restart", self.restart, fix)
        supervised = self.restart == 0 or (self.processes > 1 and not self.coordinator)
        fix = "only local processes are started again; add --processes, or let the scheduler repeat the command"
        require(supervised, "restart", self.restart, fix)

    @property
    def restarts(self) -> int:
        """Number of times that local processes are started again before there are fewer of them."""
        return int(str(self.restart).removesuffix(FEWER))

    @property
    def may_shrink(self) -> bool:
        """True if the run continues in fewer processes after `restarts`."""
        return str(self.restart).endswith(FEWER)


Model = TypeVar("Model")
Options = TypeVar("Options", bound=ObjectiveOptions)
DataOptions = TypeVar("DataOptions", bound=Data)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run(Generic[Model, Options, DataOptions]):
    """Complete configuration of a run. A recipe returns one; the command line changes its values.

    The command line lists the options that its model, its objective and its data can use (`train.config.usable_options`).
    """

    recipe: Annotated[str, tyro.conf.Suppress]
    """Name of the recipe that created it."""
    model: Model
    """Config of the model family; its vocabulary may not be smaller than the tokenizer's."""
    options: Annotated[Options, tyro.conf.arg(name="", prefix_name=False)]
    """Options of the objective; their class determines the objective."""
    name: str = ""
    """Name of the run's folder below --out; empty = the recipe's name."""
    out: str = "runs"
    """Folder that holds the runs, also in an object store (s3://BUCKET/FOLDER, gs://BUCKET/FOLDER)."""
    init: str = ""
    """Run (a folder, s3://... or gs://...), folder of published weights, or hub:ID with the initial parameters and the tokenizer;
    empty = random parameters."""
    fork: int = 0
    """Step of the run --init whose whole state is continued: also its moments and its position in the data. --steps counts the
    steps before it too. 0 = none: only parameters are taken from --init."""
    init_positions: InitPositions = "same"
    """Positions in a model of longer rows than that of --init. same: its own, so that no other --model.context is accepted;
    interpolate: the learned ones, interpolated linearly to --model.context; recompute: rotations by --model.context, --model.base
    and --model.scaling."""
    adapter: str = ""
    """Folder of an adapter in peft's format for the model of --init; training continues from it. Options of --lora that are not
    set take the adapter's values."""
    width_transfer: str = ""
    """Base of width transfer, whose learning rate, warm-up and weight decay then suit this model too: a size of its family, or a
    width in which the model has heads of the same size (muP: Yang and Hu 2021; depth: Dey et al. 2025). Empty = none."""
    steps: int = 1000
    """Number of training steps."""
    extended_from: Annotated[tuple[int, ...], tyro.conf.Suppress] = ()
    """Numbers of steps that the run had before each --extend."""
    seed: int = 0
    """Seed of the initial parameters, the order of the data, masks and dropout."""
    accumulate: int = 1
    """Micro-batches per step; their accumulated gradient is that of the full batch."""
    precision: Precision = "auto"
    """Dtype of the arithmetic; parameters, softmax, norms and loss stay float32. auto: float32 on CPU, else bfloat16."""
    engine: Engine = "jit"
    """jit: any mesh. pmap: data parallelism only."""
    label_smoothing: float = 0.0
    """Weight of the uniform distribution in label smoothing; 0 = none."""
    z_loss: float = 0.0
    """Weight of the squared log-normalizer of the predicted tokens in the gradient (PaLM: 1e-4); 0 = none. Reported losses are
    without it."""
    max_skipped: int = 10
    """Consecutive skipped steps after which the run fails: steps with a non-finite loss or gradient, and those of --spikes."""
    data: DataOptions
    tokenizer: Tokenizer = dataclasses.field(default_factory=Tokenizer)
    optim: Optim = dataclasses.field(default_factory=Optim)
    lora: Lora = dataclasses.field(default_factory=Lora)
    spikes: Spikes = dataclasses.field(default_factory=Spikes)
    selection: Selection = dataclasses.field(default_factory=Selection)
    mesh: Mesh = dataclasses.field(default_factory=Mesh)
    checkpoint: Checkpoint = dataclasses.field(default_factory=Checkpoint)
    log: Log = dataclasses.field(default_factory=Log)
    machine: Annotated[TrainingMachine, tyro.conf.arg(name="", prefix_name=False)] = dataclasses.field(
        default_factory=TrainingMachine
    )

    @property
    def objective(self) -> Objective | str:
        """Training objective, also one of a plug-in."""
        return self.options.objective

    @property
    def loss_chunk(self) -> int:
        """Number of positions whose logits are computed at a time in the loss; 0 = all, `AUTO_CHUNK` = chosen by memory."""
        chunk = self.options.loss_chunk if isinstance(self.options, TokenOptions) else 0
        return AUTO_CHUNK if chunk == "auto" else int(chunk)

    @property
    def teacher(self) -> str:
        """Run or weights of the teacher; empty = there is none."""
        return self.options.distillation.teacher if isinstance(self.options, StudentOptions) else ""

    @property
    def sampled_tokens(self) -> int:
        """Most tokens of a response that the model in training samples to a prompt; 0 = it samples none."""
        if isinstance(self.options, RolloutOptions):
            return self.options.rollout.tokens
        options = getattr(self.options, "distillation", None)
        return options.response_tokens if isinstance(options, ResponseDistillation) and options.on_policy else 0

    @property
    def rewards(self) -> tuple[str, ...]:
        """Names of what judges the responses of the model; empty = the objective samples none."""
        return self.options.rollout.reward if isinstance(self.options, RolloutOptions) else ()

    @property
    def mask_period(self) -> int:
        """Number of fixed masks per row, used in turn; 0 = a new mask each time."""
        return self.options.masking.static if isinstance(self.options, MaskedOptions | PermutationOptions) else 0

    @property
    def repeat(self) -> int:
        """Number of consecutive examples that use the same row: the responses to a prompt; 1 = each example uses another row."""
        return self.options.rollout.samples if isinstance(self.options, RolloutOptions) else 1

    @property
    def has_frozen(self) -> bool:
        """True if some parameters of the model are not trained: they are in RUN/base, and not in the checkpoints."""
        return self.lora.rank > 0 or self.optim.freezes

    @property
    def batches(self) -> int:
        """Number of different batches in the run. Each is used in one step, or in each epoch of its rollout."""
        return self.options.rollout.batches_of(self.steps) if isinstance(self.options, RolloutOptions) else self.steps

    @property
    def examples(self) -> int:
        """Number of examples of all `batches`."""
        return self.data.sizes.examples(self.batches)

    def micro_batches(self, rows: int) -> int:
        """Return the number of micro-batches of a batch: with `data.ramp`, the least with at most as many rows as others have.

        Args:
            rows: number of rows of the batch; without `data.ramp` it is ignored.
        """
        return micro_batches(rows, self.data.batch, self.accumulate) if self.data.ramp else self.accumulate

    def batch_of(self, step: int) -> int:
        """Return the number of the batch of a step, which of `batches` it is trained on."""
        return self.options.rollout.batch_of(step) if isinstance(self.options, RolloutOptions) else step

    def __post_init__(self) -> None:
        fix = "it is a step of the run --init, before --steps; name a run, and a step of it, or leave it out"
        require(self.fork == 0 or (bool(self.init) and 0 < self.fork < self.steps), "fork", self.fork, fix)
        fix = "responses are sampled and rewarded for several steps; leave it out"
        require(not self.fork or not self.rewards, "fork", self.fork, fix)
        if type(self.data) is not self.options.data:
            raise TypeError(f"{self.objective} needs {self.options.data.__name__}, not {type(self.data).__name__}")
        require(1 <= self.steps < 1 << 31, "steps", self.steps, "choose 1 to 2,147,483,647")
        require(0 <= self.seed < 1 << 32, "seed", self.seed, "choose 0 to 4,294,967,295")
        layers = getattr(self.model, "layers", 0)
        fix = f"the model has {layers}; choose at most as many"
        require(self.optim.freeze_layers <= layers, "optim.freeze_layers", self.optim.freeze_layers, fix)
        self._check_adapters()
        if self.width_transfer:
            check_width_transfer(self)
        has_experts = getattr(self.model, "experts", 0) > 0
        require(has_experts or self.mesh.expert == 1, "mesh.expert", self.mesh.expert, "the model has no experts; choose 1")
        require(self.accumulate >= 1, "accumulate", self.accumulate, "choose 1 or more micro-batches")
        require(0 <= self.label_smoothing < 1, "label_smoothing", self.label_smoothing, "choose 0 <= s < 1")
        require(0 <= self.z_loss <= 1, "z_loss", self.z_loss, "choose 0 (none) to 1, such as 1e-4")
        require(self.max_skipped >= 1, "max_skipped", self.max_skipped, "choose 1 or more steps")
        fix = f"it must divide --data.batch {self.data.batch}"
        require(self.data.batch % self.accumulate == 0, "accumulate", self.accumulate, fix)
        self._check_ramp()
        divides = self.loss_chunk <= 0 or self.data.length % self.loss_chunk == 0
        require(divides, "loss_chunk", self.loss_chunk, f"it must divide --data.length {self.data.length}")
        if (longest := longest_row(self.model)) is not None:
            option = "max-positions" if hasattr(self.model, "max_positions") else "context"
            fix = f"the model has {longest} positions; choose at most {longest}, or a larger --model.{option}"
            require(self.data.length <= longest, "data.length", self.data.length, fix)
            target = getattr(self.data, "target_length", 0)
            require(target <= longest, "data.target_length", target, fix)

    def _check_ramp(self) -> None:
        """Refuse smaller first batches that do not divide into micro-batches, or do not fit the objective or the engine."""
        if not (ramp := " ".join(self.data.ramp)):
            return
        for rows in (stage.rows for stage in self.data.sizes.stages):
            parts = self.micro_batches(rows)
            micro = self.data.batch // self.accumulate
            fix = f"{rows} rows do not divide into {parts} micro-batches, of at most {micro} rows; choose a multiple of {micro}"
            require(rows % parts == 0, "data.ramp", ramp, fix)
        fix = f"the rows of a {self.objective} run depend on the size of its batches, which must be the same; leave it out"
        require(not isinstance(self.options, PermutationOptions | RolloutOptions), "data.ramp", ramp, fix)
        require(self.engine == "jit", "data.ramp", ramp, "pmap has batches of one size; leave it out, or choose --engine jit")

    def check_base(self) -> None:
        """Refuse adapters without frozen parameters. A plan does not call this, because it needs only their shapes.

        Raises:
            BadInput: the run trains adapters, or has positions that depend on those of another model, and has no `init`.
        """
        fix = "it has an effect only with --init; name a run or weights, or leave it out"
        require(self.init_positions == "same" or bool(self.init), "init_positions", self.init_positions, fix)
        fix = "adapters are trained beside the frozen matrices of --init; name a run or weights, or choose rank 0"
        require(not self.lora.rank or bool(self.init), "lora.rank", self.lora.rank, fix)

    def _check_adapters(self) -> None:
        """Refuse options that do not fit the training of adapters alone."""
        rank, optim = self.lora.rank, self.optim
        fix = "the run trains no adapters; set --lora.rank and the other --lora options to the adapter's values"
        require(not self.adapter or rank > 0, "adapter", self.adapter, fix)
        if not rank:
            return
        fix = "only adapters are trained, at one rate and in all layers; leave it out, or choose --lora.rank 0"
        require(optim.layer_decay == 1, "optim.layer_decay", optim.layer_decay, fix)
        require(not optim.freeze_layers, "optim.freeze_layers", optim.freeze_layers, fix)
        require(not optim.freeze_embeddings, "optim.freeze_embeddings", optim.freeze_embeddings, fix)


def kind_of(run: Run) -> Any:
    """Return the type of a run with the types of its model, of its objective's options and of its data's options."""
    return Run[type(run.model), type(run.options), type(run.data)]
