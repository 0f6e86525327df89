"""Time of a step by parts of the model: each instruction of its program is assigned to a part, and to forward or backward."""

import re
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from benchmarks.core.source_paths import own_path
from benchmarks.hlo.hlo_parser import Module
from benchmarks.hlo.instructions import Instruction
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
    (r"zoo/(attention/.+|ops/positions|ops/rotary_frequencies)\.py", ".*", ATTENTION),
    (r"zoo/ops/products\.py", r"_?distance_products\w*", ATTENTION),
    (r"zoo/nn/layers\.py", r"(layer_norm|rms_norm|LayerNorm|RMSNorm)\b.*", NORMS),
    (r"zoo/nn/layers\.py", r"dropout\b.*", DROPOUT),
    (r"zoo/ops/counter_rng\.py", ".*", DROPOUT),
    (r"zoo/nn/layers\.py", r"gelu(_tanh)?|silu", ACTIVATIONS),
    (r"zoo/nn/layers\.py", r"tied_logits\b.*", HEAD),
    (r"zoo/nn/layers\.py", r"lookup\b.*", EMBEDDING),
    (r"zoo/nn/task_heads\.py|train/engine/losses\.py", ".*", HEAD),
    (r"optax/.*|train/engine/optim\.py", ".*", OPTIMIZER),
    (r"zoo/nn/layer_stack\.py", ".*", MOVEMENT),
    (r"zoo/nn/(layers|grouped_attention|unequal_head_sizes|encoder|modernbert_layer|xlnet_layer)\.py", ".*", ELEMENTWISE),
    (r"zoo/models/\w+\.py", ".*", ELEMENTWISE),
    (r"train/step/training_step\.py", r"\w+\.<locals>\.step", OPTIMIZER),
)
"""File, function, part: the first row that matches the innermost frame of ours decides, else the frame that called it."""
PLUMBING = (
    *("product", "_product", "_product_fwd", "_product_bwd", "_output_major_product", "_kernel_first", "_contracted"),
    *("_gradients", "_gradients_of_matrices", "_summed_over_rows", "_summed_in_float32", "_summed_after_transposition"),
)
"""Functions of `zoo.ops.products` that compute for their callers. The step calls their gradients, so that only a
`jax.named_scope` shows the purpose there: one called unembed belongs to the loss head."""
CHOICE = "zoo/ops/cpu_forms.py"
"""The file that chooses the form of a function, and computes nothing."""
MOVES = {
    *("parameter", "constant", "bitcast", "copy", "copy-start", "copy-done", "transpose", "reshape", "slice", "dynamic-slice"),
    *("dynamic-update-slice", "broadcast", "concatenate", "pad", "reverse", "iota", "get-tuple-element", "tuple"),
}
"""Instructions that compute nothing."""
LOOPS = ("while", "conditional", "call")
SHOWN, SHOWN_OTHER = 25, 10
"""Instructions that a result contains, of all and of those that count as other."""


def break_down(program: Module, profile: Profile, *, training: bool = True) -> dict[str, Any]:
    """Return the parts of a profiled step as JSON values. A step that does not train is entirely forward and has no update.

    Returns:
        "seconds" and "clock", as in `Profile`; "parts", part -> direction -> seconds, which add up to the time of a step; "busy",
        part -> average number of threads that worked on it; and instructions, the longest first: "top", and "other", those that
        count as other. Their "where" is a function and line of our source.
    """
    rows = []
    for name, spent in profile.spent.items():
        row = {"name": name, "opcode": "?", "shape": "", "op_name": "", "part": OTHER, "direction": "update", "where": ""}
        if instruction := program.instructions.get(name):
            source = instruction.located()
            row |= {"opcode": _opcode_text(instruction), "shape": instruction.shape, "op_name": source.op_name}
            row["part"] = part_of(instruction)
            row["direction"] = direction_of(program, source) if training else "forward"
            row["where"] = next((f"{frame.function}:{frame.line}" for frame in source.frames), "")
        rows.append({**row, **vars(spent)})
    rows.sort(key=lambda row: -row["seconds"])
    parts: dict[str, dict[str, float]] = {part: defaultdict(float) for part in PARTS}
    busy = defaultdict[str, float](float)
    for row in rows:
        parts[row["part"]][row["direction"]] += row["seconds"]
        busy[row["part"]] += row["busy"]
    parts[IDLE]["update"] = profile.idle
    parts = {part: dict(by) for part, by in parts.items() if sum(by.values()) > 0}
    return {
        "seconds": profile.seconds,
        "clock": profile.clock,
        "parts": parts,
        "busy": {part: busy[part] / sum(by.values()) for part, by in parts.items()},
        "top": rows[:SHOWN],
        "other": [row for row in rows if row["part"] == OTHER][:SHOWN_OTHER],
    }


def part_of(instruction: Instruction) -> str:
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
    frames = [frame for frame in instruction.frames if own_path(frame.file) != CHOICE]
    plumbing = [frame for frame in frames if frame.function in PLUMBING]
    for frame in frames[len(plumbing) :]:
        source = own_path(frame.file)
        if plumbing and not re.match(r"zoo/|train/engine/losses", source):
            return ELEMENTWISE
        for file, function, part in RULES:
            if re.search(f"(^|/)({file})$", source) and re.fullmatch(function, frame.function):
                return part
    return ""


def _opcode_text(instruction: Instruction) -> str:
    """Return the opcode of an instruction; for a fusion, the opcodes that it computes."""
    if instruction.opcode != "fusion":
        return instruction.opcode
    opcodes = list(dict.fromkeys(inner.opcode for inner in instruction.parts))
    computing = [opcode for opcode in opcodes if opcode not in MOVES]
    return "+".join(computing or [opcode for opcode in opcodes if opcode not in ("parameter", "constant", "bitcast")])
