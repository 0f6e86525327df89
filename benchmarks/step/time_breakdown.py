"""Time of a step by parts of the model: each instruction of its program is assigned to a part, and to forward or backward."""

import dataclasses
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence

from benchmarks.core.source_paths import own_path
from benchmarks.hlo.hlo_parser import Instruction, Module
from benchmarks.step.instruction_times import Profile

PRODUCTS, ATTENTION, HEAD, NORMS, ACTIVATIONS = "matrix products", "attention", "loss head", "norms", "activations"
ELEMENTWISE, EMBEDDING, DROPOUT, OPTIMIZER = "biases and residuals", "embedding", "dropout", "optimizer"
MOVEMENT, CASTS, OTHER, IDLE = "data movement", "casts", "other", "idle"
PARTS = (
    *(PRODUCTS, ATTENTION, HEAD, NORMS, ACTIVATIONS, ELEMENTWISE, EMBEDDING, DROPOUT),
    *(MOVEMENT, CASTS, OPTIMIZER, OTHER, IDLE),
)
"""matrix products: those of the layers' projections. data movement: copies, transposes, slices of stacked layers and filling with
zeros, for any purpose. idle: no thread worked."""
DIRECTIONS = ("forward", "backward", "update")
"""An instruction that is neither forward nor backward belongs to the update of the parameters."""

RULES: Sequence[tuple[str, str, str]] = (
    (r"zoo/(attention/.+|ops/positions)\.py", ".*", ATTENTION),
    (r"zoo/ops/xla_cpu_workarounds\.py", r"_?distance_products\w*", ATTENTION),
    (r"zoo/nn/layers\.py", r"(layer_norm|rms_norm|LayerNorm|RMSNorm)\b.*", NORMS),
    (r"zoo/nn/layers\.py", r"dropout\b.*", DROPOUT),
    (r"zoo/ops/counter_rng\.py", ".*", DROPOUT),
    (r"zoo/nn/layers\.py", r"gelu(_tanh)?", ACTIVATIONS),
    (r"zoo/nn/layers\.py", r"tied_logits\b.*", HEAD),
    (r"zoo/nn/layers\.py", r"lookup\b.*", EMBEDDING),
    (r"zoo/nn/task_heads\.py|train/engine/losses\.py", ".*", HEAD),
    (r"optax/.*|train/engine/optim\.py", ".*", OPTIMIZER),
    (r"zoo/nn/layer_stack\.py", ".*", MOVEMENT),
    (r"zoo/(nn/layers|nn/unequal_head_sizes|nn/encoder|nn/xlnet_layer|models/\w+)\.py", ".*", ELEMENTWISE),
    (r"train/engine/step\.py", r"\w+\.<locals>\.step", OPTIMIZER),
)
"""File, function, part: the first row that matches the innermost frame of ours decides, else the frame that called it."""
PLUMBING = ("product", "_product", "_product_fwd", "_product_bwd", "_summed_over_rows", "_contracted")
"""Functions of `zoo.ops.xla_cpu_workarounds` that compute for their callers. The step calls their gradients, so that only a
`jax.named_scope` shows the purpose there: one called unembed belongs to the loss head."""
MOVES = {
    *("parameter", "constant", "bitcast", "copy", "copy-start", "copy-done", "transpose", "reshape", "slice", "dynamic-slice"),
    *("dynamic-update-slice", "broadcast", "concatenate", "pad", "reverse", "iota", "get-tuple-element", "tuple"),
}
"""Instructions that compute nothing."""
LOOPS = ("while", "conditional", "call")


@dataclasses.dataclass(frozen=True)
class InstructionRow:
    """An instruction and its share of a step."""

    name: str
    opcode: str
    shape: str
    op_name: str
    part: str
    direction: str
    where: str
    """Function and line of our source that it comes from."""
    seconds: float
    busy: float
    times: float


@dataclasses.dataclass(frozen=True)
class Parts:
    """A step by parts; they add up to its time."""

    rows: Sequence[InstructionRow]
    """The instructions, the longest first."""
    seconds: float
    """Time of a step under the profiler."""
    idle: float
    clock: str
    """See `benchmarks.step.instruction_times.Profile`."""

    @property
    def table(self) -> Mapping[str, Mapping[str, float]]:
        """Part -> direction -> seconds."""
        seconds: dict[str, dict[str, float]] = {part: defaultdict(float) for part in PARTS}
        for row in self.rows:
            seconds[row.part][row.direction] += row.seconds
        seconds[IDLE]["update"] = self.idle
        return {part: dict(by) for part, by in seconds.items() if sum(by.values()) > 0}

    def busy(self, part: str) -> float:
        """Return the average number of threads that worked on a part."""
        rows = [row for row in self.rows if row.part == part]
        seconds = sum(row.seconds for row in rows)
        return sum(row.busy for row in rows) / seconds if seconds else 0.0


def break_down(program: Module, profile: Profile, *, training: bool = True) -> Parts:
    """Return the parts of a profiled program. A step that does not train is entirely forward and has no update."""
    rows = []
    for name, spent in profile.spent.items():
        instruction = program.instructions.get(name)
        if instruction is None:
            rows.append(InstructionRow(name, "?", "", "", OTHER, "update", "", **vars(spent)))
            continue
        source = instruction.located()
        where = next((f"{frame.function}:{frame.line}" for frame in source.frames), "")
        part, direction = part_of(program, instruction), direction_of(program, source) if training else "forward"
        opcode = _opcode_text(program, instruction)
        rows.append(InstructionRow(name, opcode, instruction.shape, source.op_name, part, direction, where, **vars(spent)))
    return Parts(sorted(rows, key=lambda row: -row.seconds), profile.seconds, profile.idle, profile.clock)


def part_of(program: Module, instruction: Instruction) -> str:
    """Return the part that an instruction belongs to; a fusion belongs to the part of its root, unless that only moves data."""
    opcodes = {inner.opcode for inner in instruction.parts}
    if instruction.opcode in LOOPS:
        return OTHER
    if opcodes <= MOVES:
        return MOVEMENT
    if opcodes <= MOVES | {"convert"}:
        return CASTS
    computing = [inner for inner in reversed(instruction.parts) if inner.opcode not in MOVES]
    parts = [part for candidate in (instruction.located(), *computing) if (part := _part_by_rules(candidate))]
    # Computation in the code that stacks layers belongs to the layer.
    part = next((part for part in parts if part != MOVEMENT), next(iter(parts), OTHER))
    return PRODUCTS if part == ELEMENTWISE and opcodes & {"dot", "convolution"} else part


def direction_of(program: Module, instruction: Instruction) -> str:
    """Return forward, backward (recomputation included) or update. An instruction without an op name takes that of its loop."""
    within: Instruction | None = instruction
    while within is not None:
        if "transpose(" in within.op_name or "rematted" in within.op_name:
            return "backward"
        if "jvp(" in within.op_name:
            return "forward"
        within = program.callers.get(within)
    return "update"


def _part_by_rules(instruction: Instruction) -> str:
    """Return the part of `PARTS` to which an instruction's op name and source frames assign it; "" if no rule matches."""
    if re.search(r"jit\((gelu|relu|tanh)\)", instruction.op_name):
        return ACTIVATIONS
    if re.search(r"\bunembed\b", instruction.op_name):
        return HEAD
    plumbing = [frame for frame in instruction.frames if frame.function in PLUMBING]
    for frame in instruction.frames[len(plumbing) :]:
        source = own_path(frame.file)
        if plumbing and not re.match(r"zoo/|train/engine/losses", source):
            return ELEMENTWISE
        for file, function, part in RULES:
            if re.search(f"(^|/)({file})$", source) and re.fullmatch(function, frame.function):
                return part
    return ""


def _opcode_text(program: Module, instruction: Instruction) -> str:
    """Return the opcode of an instruction; for a fusion, the opcodes that it computes."""
    if instruction.opcode != "fusion":
        return instruction.opcode
    inside = [inner.opcode for inner in instruction.parts if inner.opcode not in MOVES]
    return "+".join(dict.fromkeys(inside)) or "+".join(
        dict.fromkeys(inner.opcode for inner in instruction.parts if inner.opcode not in ("parameter", "constant", "bitcast"))
    )
