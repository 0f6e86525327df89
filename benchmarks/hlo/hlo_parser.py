"""XLA's optimized programs parsed from their text: computations, their instructions, and how often each of them runs.

The text is parsed because no API reports what a program sends: XLA's cost analysis counts the body of a loop once and does not
look into kernels. The profiler reports times under the names of these instructions.
"""

import dataclasses
import functools
import re
from collections.abc import Iterator, Mapping

from benchmarks.hlo import trip_counts
from benchmarks.hlo.call_stacks import Frame, call_stacks
from benchmarks.hlo.instructions import Computation, Instruction, attribute_of


@dataclasses.dataclass(frozen=True)
class ExecutedInstruction:
    """An instruction as it is executed."""

    instruction: Instruction
    computation: str
    """Name of the computation that contains it."""
    times: float
    """How often it runs in a step."""
    loop: str
    """Name of the body of the innermost loop that contains it; "" outside of loops."""
    unresolved: str = ""
    """JAX's name of a loop around it whose count is not known and counts as one; "" if there is none."""


@dataclasses.dataclass(frozen=True)
class Module:
    """A compiled program, parsed from the text of its HLO."""

    computations: Mapping[str, Computation]
    entry: Computation

    @functools.cached_property
    def instructions(self) -> Mapping[str, Instruction]:
        """Return all instructions by name."""
        return {name: line for computation in self.computations.values() for name, line in computation.instructions.items()}

    @functools.cached_property
    def callers(self) -> Mapping[Instruction, Instruction]:
        """Return instruction -> the fusion, loop or conditional that runs the computation it is in."""
        callers = {computation: caller for caller in self.instructions.values() for computation in caller.called}
        return {line: caller for computation, caller in callers.items() for line in computation.instructions.values()}

    def runs(self) -> Iterator[ExecutedInstruction]:
        """Yield every instruction that is executed by itself, with its count; a fusion counts as one instruction."""
        yield from self._runs(self.entry, 1.0, "", "")

    def _runs(self, computation: Computation, times: float, loop: str, unresolved: str) -> Iterator[ExecutedInstruction]:
        for instruction in computation.instructions.values():
            opcode, called = instruction.opcode, instruction.called
            if opcode == "while":
                trips = self.trip_count(instruction)
                around = (instruction.op_name or instruction.name) if trips is None else unresolved
                yield from self._runs(called[0], times * (1 if trips is None else trips), called[0].name, around)
            elif opcode == "conditional":
                # One branch runs: count the one with the most instructions, which likely has the most work.
                yield from max((list(self._runs(branch, times, loop, unresolved)) for branch in called), key=len)
            elif opcode == "call" or (opcode.endswith("-start") and called and opcode not in COLLECTIVES):
                for inner in called:
                    yield from self._runs(inner, times, loop, unresolved)
            else:
                yield ExecutedInstruction(instruction, computation.name, times, loop, unresolved)

    def unknown_loops(self) -> list[str]:
        """Return the loops whose count is not known, by their names in JAX."""
        return sorted({run.unresolved for run in self.runs()} - {""})

    def trip_count(self, loop: Instruction) -> float | int | None:
        """Return how often a loop runs; None if it is not known."""
        return trip_counts.trip_count(loop, self.computations, self.callers)


_KINDS = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)
COLLECTIVES = {f"{kind}{suffix}" for kind in _KINDS for suffix in ("", "-start")}
"""Operations that exchange data between devices. Those that only wait for one (`-done`) send nothing."""

_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+)(?: \(.*\))? ?(?:-> .*)?\{\s*$")
_LINE = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$", re.DOTALL)
_END = re.compile(r"^\}(, execution_thread=\"[^\"]*\")?\s*$")
_CALLED = re.compile(r"\b(?:calls|body|true_computation|false_computation|branch_computations)=(\{[^}]*\}|%?[\w.\-]+)")


def parse_program(text: str) -> Module:
    """Parse a program as `jax.stages.Compiled.as_text` returns it: a name is defined in a line above those that use it.

    Raises:
        ValueError: the text is not a program, or a name in it is not defined.
    """
    computations: dict[str, Computation] = {}
    instructions: dict[str, Instruction] = {}
    head: list[str] = []
    stacks: Mapping[int, tuple[Frame, ...]] = {}
    entry = current = root = ""
    for line in _join_lines(text):
        if not current:
            if (header := _HEADER.match(line)) and not line.startswith("HloModule"):
                if not computations:
                    stacks = call_stacks(head)
                current, instructions, root = header[2], {}, ""
                entry = current if header[1] else entry
            head.append(line)
        elif _END.match(line):
            computations[current] = Computation(current, instructions, instructions[root or list(instructions)[-1]])
            current = ""
        elif match := _LINE.match(line):
            instruction = _instruction(match[2], match[3], instructions, computations, stacks)
            instructions[instruction.name] = instruction
            root = instruction.name if match[1] else root
    if entry not in computations:
        raise ValueError("not a program: it has no entry")
    return Module(computations, computations[entry])


def _join_lines(text: str) -> Iterator[str]:
    """Yield the lines of a program, an instruction whose attributes go on in further lines as one.

    The metadata of a Pallas kernel has line breaks, after which a line may begin with a brace.
    """
    instruction = ""
    for line in text.splitlines():
        if instruction and not (_LINE.match(line) or _END.match(line)):
            instruction += f"\n{line}"
            continue
        if instruction:
            yield instruction
        instruction = line if _LINE.match(line) else ""
        if not instruction:
            yield line


def _instruction(
    name: str,
    text: str,
    above: Mapping[str, Instruction],
    computations: Mapping[str, Computation],
    stacks: Mapping[int, tuple[Frame, ...]],
) -> Instruction:
    """Return the instruction of a line, whose operands are among those `above` it."""
    end = _closing(text, 0) + 1 if text.startswith("(") else text.index(" ")
    kind, text = text[:end], text[end:].lstrip()
    opening = text.index("(")
    closing = _closing(text, opening)
    inside, attributes = text[opening + 1 : closing], text[closing + 1 :]
    # The computations of reductions, which combine two numbers, are left out.
    names = [called for listed in _CALLED.findall(attributes) for called in re.findall(r"[\w.\-]+", listed)]
    if text[:opening] in ("call", "call-start"):
        names.append(attribute_of(attributes, "to_apply"))
    try:
        operands = tuple(above[operand] for operand in re.findall(r"%([\w.\-]+)", inside))
        called = tuple(computations[called] for called in names)
    except KeyError as missing:
        raise ValueError(f"not a program: {name} has {missing.args[0]}, which no line above it defines") from None
    frame = re.search(r"\bstack_frame_id=(\d+)", attributes)
    frames = stacks.get(int(frame[1]), ()) if frame else ()
    return Instruction(name, text[:opening], kind, operands, inside.strip(), attributes, called, frames)


def _closing(text: str, opening: int) -> int:
    """Return the index of the parenthesis that closes the one at `opening`."""
    depth = 0
    for parenthesis in re.finditer(r"[()]", text[opening:]):
        depth += 1 if parenthesis[0] == "(" else -1
        if not depth:
            return opening + parenthesis.start()
    raise ValueError(f"not a program: unbalanced parentheses in {text[:80]}")
