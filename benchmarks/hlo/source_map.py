"""The instructions of a compiled program, and the lines of source that each one comes from.

Parsed from `jax.stages.Compiled.as_text()`. The profiler reports times under the same instruction names.
"""

import dataclasses
import functools
import re
from collections.abc import Iterator, Mapping, Sequence


@dataclasses.dataclass(frozen=True)
class Frame:
    """A place in the source: a file as Python names it, the qualified name of a function in it, and a line."""

    file: str
    function: str
    line: int


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One instruction of a program."""

    name: str
    shape: str
    """Shape as XLA writes it, without its layout."""
    opcode: str
    operands: tuple[str, ...]
    calls: str
    """The computation that a fusion or a loop runs; "" if there is none."""
    op_name: str
    """The path of JAX's operations that it was lowered from; for a fusion, its root's."""
    frames: tuple[Frame, ...]
    """Where that operation was called, innermost first, without frames of JAX and other libraries."""


@dataclasses.dataclass(frozen=True)
class Program:
    """The instructions of a program by name, and those of each of its computations."""

    instructions: Mapping[str, Instruction]
    computations: Mapping[str, Sequence[Instruction]]

    @functools.cached_property
    def callers(self) -> Mapping[str, Instruction]:
        """Return instruction -> the fusion or loop that runs the computation it is in."""
        called = {instruction.calls: instruction for instruction in self.instructions.values() if instruction.calls}
        return {
            inner.name: called[name]
            for name, instructions in self.computations.items()
            if name in called
            for inner in instructions
        }

    def inside(self, instruction: Instruction) -> Sequence[Instruction]:
        """Return the instructions of a fusion, or the instruction alone."""
        return self.computations.get(instruction.calls, (instruction,)) if instruction.opcode == "fusion" else (instruction,)

    def traced(self, instruction: Instruction) -> Instruction:
        """Return the instruction, or the nearest one with a source location if XLA made it without one.

        The search goes through the instructions that it computes and those that it reads.
        """
        seen, waiting = set(), [instruction]
        while waiting:
            current = waiting.pop(0)
            if current.name in seen:
                continue
            seen.add(current.name)
            if current.frames:
                return current
            # The root of a fusion is its last instruction.
            waiting += reversed([inner for inner in self.inside(current) if inner.name != current.name])
            waiting += [self.instructions[name] for name in current.operands if name in self.instructions]
        return instruction


def parse(text: str) -> Program:
    """Parse the text of a compiled module."""
    frames, instructions, computations = _frames(text), {}, {}
    computation: list[Instruction] = []
    for line in text.splitlines():
        if head := COMPUTATION.match(line):
            computation = computations[head[1]] = []
        elif match := INSTRUCTION.match(line):
            instruction = _instruction(match, line, frames)
            instructions[instruction.name] = instruction
            computation.append(instruction)
    return Program(instructions, computations)


COMPUTATION = re.compile(r"(?:ENTRY )?%([\w.-]+) \(.*\) -> .* \{$")
INSTRUCTION = re.compile(r"\s+(?:ROOT )?%([\w.-]+) = (\(.*?\)|\S+) ([\w-]+)\((.*)")
LAYOUT = re.compile(r"\{[\d,:A-Z()]*\}|/\*index=\d+\*/")


def _instruction(match: re.Match[str], line: str, frames: Mapping[int, tuple[Frame, ...]]) -> Instruction:
    name, shape, opcode, rest = match.groups()
    calls = re.search(r"(?:calls|body|to_apply)=%([\w.-]+)", rest)
    op_name = re.search(r'op_name="([^"]*)"', line)
    frame = re.search(r"stack_frame_id=(\d+)", line)
    operand_text = rest.split(")", 1)[0]
    return Instruction(
        name=name,
        shape=LAYOUT.sub("", shape),
        opcode=opcode,
        operands=tuple(re.findall(r"%([\w.-]+)", operand_text)),
        calls=calls[1] if calls else "",
        op_name=op_name[1] if op_name else "",
        frames=frames.get(int(frame[1]), ()) if frame else (),
    )


def _frames(text: str) -> Mapping[int, tuple[Frame, ...]]:
    """Return the call stacks by their numbers, from the four tables at the head of a module."""
    files = {number: name for number, name in _table(text, "FileNames", r'(\d+) "(.*)"')}
    functions = {number: name for number, name in _table(text, "FunctionNames", r'(\d+) "(.*)"')}
    places = {
        number: Frame(files.get(int(file), ""), functions.get(int(function), ""), int(line))
        for number, file, function, line in _table(
            text, "FileLocations", r"(\d+) \{file_name_id=(\d+) function_name_id=(\d+) line=(\d+)"
        )
    }
    links = {
        number: (int(place), int(parent))
        for number, place, parent in _table(
            text, "StackFrames", r"(\d+) \{file_location_id=(\d+)(?: parent_frame_id=(\d+))?", "0"
        )
    }
    # The outermost frame has no parent, which XLA writes as 0, or as 1 where it counts every parent one too high.
    shift = links[1][1] if 1 in links else 0

    @functools.cache
    def stack(number: int) -> tuple[Frame, ...]:
        if number not in links:
            return ()
        place, parent = links[number]
        return (places[place], *stack(parent - shift))

    return {number: stack(number) for number in links}


def _table(text: str, title: str, row: str, missing: str = "") -> Iterator[tuple]:
    """Yield the rows of a table in a module's head; the first column is a number."""
    begins = re.search(rf"^{title}\n", text, re.MULTILINE)
    if begins is None:
        return
    for line in text[begins.end() :].splitlines():
        if (match := re.match(row, line)) is None:
            return
        number, *others = (missing if column is None else column for column in match.groups())
        yield (int(number), *others)
