"""A run in numbers: frozen dataclasses, validated where they are made. Nothing here imports jax."""

import dataclasses
import math
import re
from typing import Annotated, Generic, Literal, TypeVar

import tyro

from train.config.objective_options import Denoising, Distillation, Labelled, Masking, Pairs, Permutation, Selection
from zoo.configs import Objective
from zoo.errors import require

Precision = Literal["auto", "float32", "bfloat16"]
Schedule = Literal["cosine", "linear", "inverse_sqrt", "inverse_sqrt_flat", "constant"]
Optimizer = Literal["adamw", "adafactor"]
RowPlan = Literal["windows", "packed", "full_sentences", "doc_sentences", "segment_pairs", "sentence_pairs"]
Engine = Literal["jit", "pmap"]
Sink = Literal["tensorboard", "wandb"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
    """What is read and how it is cut into rows."""

    paths: tuple[str, ...] = ()
    """What to train on: .txt (a document each), .jsonl (a document a line), both also as .gz, .xz or .bz2, .parquet (a document a
    row), folders of these, folders of Hugging Face `datasets`, hub:ORGANISATION/NAME. None: the embedded corpus, Moby-Dick."""
    weights: tuple[float, ...] = ()
    """A weight for each of `paths`: each is then a source of its own, split and shuffled on its own, and gives this share of the
    rows trained on. None: all paths are one source."""
    valid_paths: tuple[str, ...] = ()
    """What to hold out, given like `paths`. None: the end of `paths` is held out."""
    valid_fraction: float = 0.1
    """Share of the text of `paths` held out, cut from its end; used when there are no `valid_paths`."""
    field: str = "text"
    """The field of a .jsonl line, or the column, that holds the text."""
    split: str = ""
    """The split to read of a folder of `datasets` or of a data set of the hub; none: train."""
    subset: str = ""
    """The subset (configuration) to read of a data set of the hub; none: its only or default one."""
    rows: RowPlan = "windows"
    """windows: consecutive windows of one long stream. packed: whole documents packed first-fit, isolated from each other. Of an
    encoder: full_sentences, on past a document's end; doc_sentences, to its end; segment_pairs, BERT's pairs of several sentences
    with next sentence; sentence_pairs, of one each (Liu et al. 2019, section 4.2)."""
    pack: bool = False
    """Whether several sequences of an encoder share a row, first-fit, isolated from each other."""
    short: float = 0.1
    """Share of the documents whose segment pairs are made for a shorter length, drawn at random."""
    length: int = 256
    """Tokens in a row, T; of an encoder-decoder those of its source."""
    target_length: int = 0
    """Tokens of a row's target in text to text; 0 = as many as `length`."""
    batch: int = 16
    """Rows in a global batch, over all devices and micro-batches, B."""

    def __post_init__(self) -> None:
        weights, paths = " ".join(f"{weight:g}" for weight in self.weights), len(self.paths)
        require(all(0 < weight < math.inf for weight in self.weights), "data.weights", weights, "choose finite weights above 0")
        require(
            len(self.weights) in (0, paths), "data.weights", weights, f"give a weight for each --data.paths: there are {paths}"
        )
        for key, name in (("split", self.split), ("subset", self.subset)):
            require(re.fullmatch(r"[\w.+-]*", name) is not None, f"data.{key}", name, "give its name alone")
        require(0 < self.valid_fraction < 0.9, "data.valid_fraction", self.valid_fraction, "choose a share between 0 and 0.9")
        require(0 <= self.short <= 1, "data.short", self.short, "choose a share of 0 to 1")
        require(1 <= self.length <= 1 << 20, "data.length", self.length, "choose 1 to 1,048,576 tokens")
        require(
            0 <= self.target_length <= 1 << 20,
            "data.target_length",
            self.target_length,
            "choose 0 (as --data.length) to 1,048,576",
        )
        require(1 <= self.batch <= 1 << 24, "data.batch", self.batch, "choose 1 to 16,777,216 rows")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tokenizer:
    """Trained on the training text, or loaded."""

    kind: Literal["gpt", "wordpiece", "roberta", "sentencepiece", "xlnet"] = "gpt"
    """Of a trained one: byte-level BPE with an end-of-text mark (gpt) or RoBERTa's marks, BERT's WordPiece, T5's unigram model
    with its 100 sentinels (sentencepiece), or XLNet's."""
    lowercase: bool = True
    """A trained WordPiece drops case and accents, as the "uncased" models."""
    path: str = ""
    """Folder with a tokenizer to load, a tokenizer.json or what else is published. None: train one on the training text."""
    vocab: int = 2048
    """Entries of a trained tokenizer, its marks and the 256 bytes (WordPiece, unigram: the characters) included."""

    def __post_init__(self) -> None:
        require(
            257 <= self.vocab <= 1 << 20, "tokenizer.vocab", self.vocab, "choose 257 (all bytes and end-of-text) to 1,048,576"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optim:
    """Optimizer and schedule. AdamW: Loshchilov and Hutter 2019; Adafactor: Shazeer and Stern 2018."""

    name: Optimizer = "adamw"
    lr: float = 1e-3
    """Peak learning rate."""
    schedule: Schedule = "cosine"
    """Shape of the decay after the warm-up."""
    warmup: int = 100
    """Steps of linear warm-up from 0; of inverse_sqrt_flat, at the peak."""
    final: float = 0.1
    """Learning rate at the last step, as a share of the peak (cosine, linear)."""
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    """Decoupled decay of kernels and embeddings; never of norms and biases."""
    clip: float = 1.0
    """Largest global gradient norm; 0 = no clipping."""
    layer_decay: float = 1.0
    """Learning rate of each layer, as a share of that of the layer above; the embeddings are below the first."""
    freeze_layers: int = 0
    """Layers, from the first on, that stay as they are."""
    freeze_embeddings: bool = False
    """Whether the embeddings stay as they are."""

    def __post_init__(self) -> None:
        require(0 < self.lr <= 100, "optim.lr", self.lr, "choose a learning rate between 0 and 100")
        require(self.warmup >= 0, "optim.warmup", self.warmup, "choose 0 or more steps")
        require(0 <= self.final <= 1, "optim.final", self.final, "choose a share between 0 and 1")
        require(0 <= self.b1 < 1, "optim.b1", self.b1, "choose 0 <= b1 < 1")
        require(0 <= self.b2 < 1, "optim.b2", self.b2, "choose 0 <= b2 < 1")
        require(0 < self.eps <= 1, "optim.eps", self.eps, "choose 0 < eps <= 1")
        require(0 <= self.weight_decay <= 10, "optim.weight_decay", self.weight_decay, "choose 0 to 10")
        require(0 < self.layer_decay <= 1, "optim.layer_decay", self.layer_decay, "choose a share above 0, 1 = all alike")
        require(self.freeze_layers >= 0, "optim.freeze_layers", self.freeze_layers, "choose 0 (none) or a number of layers")
        require(0 <= self.clip < math.inf, "optim.clip", self.clip, "choose 0 (off) or a norm")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mesh:
    """Devices along each axis; their product is the number of devices. A strategy is a mesh shape."""

    data: int = -1
    """Data parallel; -1 = all devices the other axes leave."""
    fsdp: int = 1
    """Data parallel with parameters and optimizer state sharded."""
    tensor: int = 1
    """Heads, feed-forward width and vocabulary sharded."""
    sequence: int = 1
    """Reserved; only 1 is built."""

    def __post_init__(self) -> None:
        for axis in ("data", "fsdp", "tensor", "sequence"):
            value = getattr(self, axis)
            require(value >= 1 or (axis == "data" and value == -1), f"mesh.{axis}", value, "choose 1 or more devices")
        require(self.sequence == 1, "mesh.sequence", self.sequence, "sequence parallelism is not built; choose 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """When the state is saved."""

    every: int = 200
    """Steps between checkpoints; the last step and a signal always save."""
    keep: int = 2
    """Checkpoints kept."""

    def __post_init__(self) -> None:
        require(self.every >= 1, "checkpoint.every", self.every, "choose 1 or more steps")
        require(self.keep >= 1, "checkpoint.keep", self.keep, "keep at least 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Log:
    """What a run reports while it goes."""

    every: int = 10
    """Steps between rows of metrics.jsonl."""
    validate_every: int = 200
    """Steps between validations; 0 = only at the end."""
    validate_rows: int = 64
    """Held-out rows scored by a validation during training (the score at the end takes all of them)."""
    ledger: bool = False
    """Also write ledger.jsonl: the row numbers each step consumed."""
    samples: int = 4
    """Continuations of held-out text that the model writes at the end, for the report; 0 = none."""
    sinks: tuple[Sink, ...] = ()
    """Where the rows of metrics.jsonl go besides; needs the extra `track`."""

    def __post_init__(self) -> None:
        require(self.every >= 1, "log.every", self.every, "choose 1 or more steps")
        require(self.validate_every >= 0, "log.validate_every", self.validate_every, "choose 0 (only at the end) or more")
        require(self.validate_rows >= 1, "log.validate_rows", self.validate_rows, "choose 1 or more rows")
        require(0 <= self.samples <= 1000, "log.samples", self.samples, "choose 0 (none) to 1,000")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Machine:
    """Where the run happens; never part of what a run is, so a run may resume on another machine."""

    devices: int = 0
    """Simulate this many CPU devices in each process; 0 = use the real ones."""
    processes: int = 1
    """Start this many local processes joined by jax.distributed."""
    coordinator: str = ""
    """host:port of process 0, to join processes on several machines; every process is then started by hand."""
    process: int = 0
    """This process's number, with --coordinator."""
    profile: int = 0
    """Trace this many steps with the JAX profiler into RUN/profile."""

    def __post_init__(self) -> None:
        require(0 <= self.devices <= 4096, "devices", self.devices, "choose 0 (the real ones) or up to 4,096 to simulate")
        require(1 <= self.processes <= 4096, "processes", self.processes, "choose 1 to 4,096")
        require(0 <= self.process < self.processes, "process", self.process, f"choose one below --processes {self.processes}")
        require(self.profile >= 0, "profile", self.profile, "choose 0 or more steps")


Model = TypeVar("Model")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run(Generic[Model]):
    """Everything a run is. A recipe returns one; the command line sets its values."""

    recipe: Annotated[str, tyro.conf.Suppress]
    """Name of the recipe it began as."""
    model: Model
    """The family's Config; its vocabulary is the tokenizer's."""
    objective: Objective = "causal"
    name: str = ""
    """Folder of the run below --out; none: the recipe's name."""
    out: str = "runs"
    """Folder that holds the runs."""
    init: str = ""
    """Run, folder of published weights or hub id to begin from, with its tokenizer; none: fresh parameters."""
    steps: int = 1000
    seed: int = 0
    accumulate: int = 1
    """Micro-batches per step; they give the gradient of the whole batch."""
    precision: Precision = "auto"
    """Dtype of the arithmetic; parameters, softmax, norms and loss stay float32. auto: float32 on CPU, else bfloat16."""
    engine: Engine = "jit"
    """jit over the mesh, or pmap (data parallel only)."""
    label_smoothing: float = 0.0
    loss_chunk: int = 0
    """Positions whose logits exist at a time in the loss; 0 = all T."""
    max_skipped: int = 10
    """Consecutive steps with a non-finite gradient that end the run."""
    data: Data = dataclasses.field(default_factory=Data)
    tokenizer: Tokenizer = dataclasses.field(default_factory=Tokenizer)
    masking: Masking = dataclasses.field(default_factory=Masking)
    denoising: Denoising = dataclasses.field(default_factory=Denoising)
    permutation: Permutation = dataclasses.field(default_factory=Permutation)
    pairs: Pairs = dataclasses.field(default_factory=Pairs)
    distillation: Distillation = dataclasses.field(default_factory=Distillation)
    labelled: Labelled = dataclasses.field(default_factory=Labelled)
    optim: Optim = dataclasses.field(default_factory=Optim)
    selection: Selection = dataclasses.field(default_factory=Selection)
    mesh: Mesh = dataclasses.field(default_factory=Mesh)
    checkpoint: Checkpoint = dataclasses.field(default_factory=Checkpoint)
    log: Log = dataclasses.field(default_factory=Log)
    machine: Annotated[Machine, tyro.conf.arg(name="", prefix_name=False)] = dataclasses.field(default_factory=Machine)

    def __post_init__(self) -> None:
        require(1 <= self.steps < 1 << 31, "steps", self.steps, "choose 1 to 2,147,483,647")
        require(0 <= self.seed < 1 << 32, "seed", self.seed, "choose 0 to 4,294,967,295")
        layers = getattr(self.model, "layers", 0)
        fix = f"the model has {layers}; choose at most as many"
        require(self.optim.freeze_layers <= layers, "optim.freeze_layers", self.optim.freeze_layers, fix)
        require(self.accumulate >= 1, "accumulate", self.accumulate, "choose 1 or more micro-batches")
        require(0 <= self.label_smoothing < 1, "label_smoothing", self.label_smoothing, "choose 0 <= s < 1")
        require(self.loss_chunk >= 0, "loss_chunk", self.loss_chunk, "choose 0 (off) or a number of positions")
        require(self.max_skipped >= 1, "max_skipped", self.max_skipped, "choose 1 or more steps")
        require(
            self.data.batch % self.accumulate == 0,
            "accumulate",
            self.accumulate,
            f"it must divide --data.batch {self.data.batch}",
        )
        require(
            self.loss_chunk == 0 or self.data.length % self.loss_chunk == 0,
            "loss_chunk",
            self.loss_chunk,
            f"it must divide --data.length {self.data.length}",
        )
        # A family without learned positions has no `context`: it takes rows of any length.
        context = getattr(self.model, "context", self.data.length)
        require(
            self.data.length <= context,
            "data.length",
            self.data.length,
            f"the model has {context} positions; choose at most {context}, or a larger --model.context",
        )
