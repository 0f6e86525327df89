"""What a compiled program is made of: its instructions, and the lines of ours that each one comes from.

Read from `jax.stages.Compiled.as_text()`. The names of the instructions are those by which the profiler calls what it measures.
"""

import dataclasses
import functools
import re
from collections.abc import Iterator, Mapping, Sequence


@dataclasses.dataclass(frozen=True)
class Frame:
    """A place in the source: a file, as Python was given it, and the qualified name of a function in it."""

    file: str
    function: str
    line: int


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One instruction of a program."""

    name: str
    shape: str
    """As XLA writes it, without its layout."""
    opcode: str
    operands: tuple[str, ...]
    calls: str
    """The computation that a fusion or a loop runs; "" where there is none."""
    op_name: str
    """The path of JAX's operations that it was lowered from; of a fusion, its root's."""
    frames: tuple[Frame, ...]
    """Where that operation was called, the innermost first; JAX's and other libraries' own frames are not among them."""


@dataclasses.dataclass(frozen=True)
class Program:
    """The instructions of a program by name, and those of each computation in it."""

    instructions: Mapping[str, Instruction]
    computations: Mapping[str, Sequence[Instruction]]

    @functools.cached_property
    def callers(self) -> Mapping[str, Instruction]:
        """Instruction -> the one that runs the computation it is in: a fusion, or a loop."""
        called = {instruction.calls: instruction for instruction in self.instructions.values() if instruction.calls}
        return {inner.name: called[name] for name, instructions in self.computations.items() if name in called for inner in instructions}

    def inside(self, instruction: Instruction) -> Sequence[Instruction]:
        """What a fusion computes, or the instruction alone."""
        return self.computations.get(instruction.calls, (instruction,)) if instruction.opcode == "fusion" else (instruction,)

    def traced(self, instruction: Instruction) -> Instruction:
        """Itself, or where XLA made it and says of nothing of ours that it comes from, the nearest that does: of what it
        computes, or of what it reads."""
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
    """The program of a compiled module's text."""
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
    """The stacks of calls by their numbers, from the four tables at the head of a module."""
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
    """The rows of a table of a module's head, the first column a number."""
    begins = re.search(rf"^{title}\n", text, re.MULTILINE)
    if begins is None:
        return
    for line in text[begins.end() :].splitlines():
        if (match := re.match(row, line)) is None:
            return
        number, *others = (missing if column is None else column for column in match.groups())
        yield (int(number), *others)
