"""Where the time of a step goes: the instructions of its program by what they are for, forward and backward told apart."""

import dataclasses
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence

from benchmarks.core.source_files import own_path
from benchmarks.hlo.source_map import Instruction, Program
from benchmarks.step.profile import Profile

PRODUCTS, ATTENTION, HEAD, NORMS, ACTIVATIONS = "matrix products", "attention", "loss head", "norms", "activations"
ELEMENTWISE, EMBEDDING, DROPOUT, OPTIMIZER = "biases and residuals", "embedding", "dropout", "optimizer"
MOVEMENT, CASTS, OTHER, IDLE = "data movement", "casts", "other", "idle"
PARTS = (
    *(PRODUCTS, ATTENTION, HEAD, NORMS, ACTIVATIONS, ELEMENTWISE, EMBEDDING, DROPOUT),
    *(MOVEMENT, CASTS, OPTIMIZER, OTHER, IDLE),
)
"""matrix products: those of the layers' projections. data movement: copies, transposes, slices of stacked layers and filling with
zeros, whatever they are for. idle: nothing was worked on."""
DIRECTIONS = ("forward", "backward", "update")
"""What is neither forward nor backward belongs to the update of the parameters."""

RULES: Sequence[tuple[str, str, str]] = (
    (r"zoo/(attention/.+|ops/positions)\.py", ".*", ATTENTION),
    (r"zoo/nn/layers\.py", r"(layer_norm|rms_norm|LayerNorm|RMSNorm)\b.*", NORMS),
    (r"zoo/nn/layers\.py", r"dropout\b.*", DROPOUT),
    (r"zoo/ops/counter_rng\.py", ".*", DROPOUT),
    (r"zoo/nn/layers\.py", r"gelu(_tanh)?", ACTIVATIONS),
    (r"zoo/nn/layers\.py", r"tied_logits\b.*", HEAD),
    (r"zoo/nn/layers\.py", r"lookup\b.*", EMBEDDING),
    (r"zoo/nn/heads\.py|train/engine/losses\.py", ".*", HEAD),
    (r"optax/.*|train/engine/optim\.py", ".*", OPTIMIZER),
    (r"zoo/nn/layer_stack\.py", ".*", MOVEMENT),
    (r"zoo/(nn/layers|nn/encoder|nn/xlnet_layer|models/\w+)\.py", ".*", ELEMENTWISE),
    (r"train/engine/step\.py", r"\w+\.<locals>\.step", OPTIMIZER),
)
"""File, function, part: the first row that fits the innermost place of ours decides, else the place it was called from."""
PLUMBING = ("product", "_product", "_product_kept", "_product_gradients", "_summed_over_rows", "_contracted")
"""Functions of `zoo.nn.layers` that compute for whoever calls them. Their gradients are called by the step, so that there only a
`jax.named_scope` tells for whom: one called unembed is the loss head's."""
MOVES = {
    *("parameter", "constant", "bitcast", "copy", "copy-start", "copy-done", "transpose", "reshape", "slice", "dynamic-slice"),
    *("dynamic-update-slice", "broadcast", "concatenate", "pad", "reverse", "iota", "get-tuple-element", "tuple"),
}
"""Instructions that compute nothing."""
LOOPS = ("while", "conditional", "call")


@dataclasses.dataclass(frozen=True)
class Row:
    """An instruction and what it took of a step."""

    name: str
    opcode: str
    shape: str
    op_name: str
    part: str
    direction: str
    where: str
    """Function and line of ours it comes from."""
    seconds: float
    busy: float
    times: float


@dataclasses.dataclass(frozen=True)
class Parts:
    """A step by parts; they sum up to its time."""

    rows: Sequence[Row]
    """The instructions, the longest first."""
    seconds: float
    """A step while the profiler listened."""
    idle: float
    clock: str
    """See `benchmarks.step.profile.Profile`."""

    @property
    def table(self) -> Mapping[str, Mapping[str, float]]:
        """Part -> direction -> seconds."""
        seconds: dict[str, dict[str, float]] = {part: defaultdict(float) for part in PARTS}
        for row in self.rows:
            seconds[row.part][row.direction] += row.seconds
        seconds[IDLE]["update"] = self.idle
        return {part: dict(by) for part, by in seconds.items() if sum(by.values()) > 0}

    def busy(self, part: str) -> float:
        """Threads that worked on a part, on average over its time."""
        rows = [row for row in self.rows if row.part == part]
        seconds = sum(row.seconds for row in rows)
        return sum(row.busy for row in rows) / seconds if seconds else 0.0


def of(program: Program, profile: Profile, *, training: bool = True) -> Parts:
    """The parts of a profiled program; one that does not train has no update, all is forward."""
    rows = []
    for name, spent in profile.spent.items():
        instruction = program.instructions.get(name)
        if instruction is None:
            rows.append(Row(name, "?", "", "", OTHER, "update", "", spent.seconds, spent.busy, spent.times))
            continue
        source = program.traced(instruction)
        where = next((f"{frame.function}:{frame.line}" for frame in source.frames), "")
        rows.append(
            Row(
                name=name,
                opcode=_said(program, instruction),
                shape=instruction.shape,
                op_name=source.op_name,
                part=part_of(program, instruction),
                direction=direction_of(program, source) if training else "forward",
                where=where,
                seconds=spent.seconds,
                busy=spent.busy,
                times=spent.times,
            )
        )
    return Parts(sorted(rows, key=lambda row: -row.seconds), profile.seconds, profile.idle, profile.clock)


def part_of(program: Program, instruction: Instruction) -> str:
    """What an instruction is for. A fusion of several is what its root is for, unless it only moves data."""
    opcodes = {inner.opcode for inner in program.inside(instruction)}
    if instruction.opcode in LOOPS:
        return OTHER
    if opcodes <= MOVES:
        return MOVEMENT
    if opcodes <= MOVES | {"convert"}:
        return CASTS
    computing = [inner for inner in reversed(program.inside(instruction)) if inner.opcode not in MOVES]
    parts = [part for candidate in (program.traced(instruction), *computing) if (part := _ruled(candidate))]
    # What is computed where layers are stacked is of the layer.
    part = next((part for part in parts if part != MOVEMENT), next(iter(parts), OTHER))
    return PRODUCTS if part == ELEMENTWISE and opcodes & {"dot", "convolution"} else part


def direction_of(program: Program, instruction: Instruction) -> str:
    """Forward, backward (what the backward pass computes again is its) or update; that of the loop it is in, where it says
    nothing itself."""
    within: Instruction | None = instruction
    while within is not None:
        if "transpose(" in within.op_name or "rematted" in within.op_name:
            return "backward"
        if "jvp(" in within.op_name:
            return "forward"
        within = program.callers.get(within.name)
    return "update"


def _ruled(instruction: Instruction) -> str:
    """The part that an instruction's source belongs to; "" where no rule knows."""
    if re.search(r"jit\((gelu|relu|tanh)\)", instruction.op_name):
        return ACTIVATIONS
    if re.search(r"\bunembed\b", instruction.op_name):
        return HEAD
    plumbing = [frame for frame in instruction.frames if frame.function in PLUMBING]
    for frame in instruction.frames[len(plumbing) :]:
        source = own_path(frame.file)
        if plumbing and not re.match(r"zoo/|train/losses", source):
            return ELEMENTWISE
        for file, function, part in RULES:
            if re.search(f"(^|/)({file})$", source) and re.fullmatch(function, frame.function):
                return part
    return ""


def _said(program: Program, instruction: Instruction) -> str:
    """What an instruction does, in words of XLA: of a fusion what it computes."""
    if instruction.opcode != "fusion":
        return instruction.opcode
    inside = [inner.opcode for inner in program.inside(instruction) if inner.opcode not in MOVES]
    return "+".join(dict.fromkeys(inside)) or "+".join(
        dict.fromkeys(
            inner.opcode for inner in program.inside(instruction) if inner.opcode not in ("parameter", "constant", "bitcast")
        )
    )
