"""Trip counts of the loops of a compiled program, from the start, the step and the limit of their counters.

XLA notes the count of a loop only for some devices. The programs for a TPU have no such note, and the counters of their loops go
up by more than one: the loops that gather or scatter an operand of a product piece by piece do two pieces at a time.
"""

import dataclasses
import math
import operator
import re
from collections.abc import Mapping

from benchmarks.hlo.instructions import Computation, Instruction

_SAME = ("copy", "bitcast", "convert", "reshape", "copy-done", "copy-start", "opt-barrier")
"""Instructions that pass on the number in their first operand."""
_ARITHMETIC = {"add": operator.add, "subtract": operator.sub, "multiply": operator.mul}
_MIRRORED = {"LT": "GT", "GT": "LT", "LE": "GE", "GE": "LE", "NE": "NE"}
_MEAN = re.compile(r"\bmean_trips_([\d.]+)_of_\d+/while$")


def trip_count(
    loop: Instruction, computations: Mapping[str, Computation], callers: Mapping[Instruction, Instruction]
) -> float | int | None:
    """Return how often a loop runs; None if that depends on data, or is not understood.

    It is the count that XLA noted, or that of the loop's counter. If that depends on data, it is the mean in the loop's name: see
    `zoo.attention.kernels.blocked`.

    Args:
        callers: see `Module.callers`.
    """
    if noted := re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.attributes):
        return int(noted[1])
    count = _counter_trips(loop, computations[loop.attribute("condition")], callers)
    if count is None and (mean := _MEAN.search(loop.op_name)):
        return float(mean[1])
    return count


def _counter_trips(loop: Instruction, condition: Computation, callers: Mapping[Instruction, Instruction]) -> int | None:
    body = loop.called[0]
    state, before = body.parameters[0], condition.parameters[0]
    outside = _Scalars(callers, {}, {}, {before: loop})
    test = condition.root
    bound: dict[Instruction, Instruction] = {}
    while test.opcode == "fusion" or test.opcode in _SAME:
        if test.opcode == "fusion":
            bound |= zip(test.called[0].parameters, test.operands, strict=True)
        test = test.called[0].root if test.opcode == "fusion" else test.operands[0]
    if test.opcode != "compare" or (direction := test.attribute("direction")) not in _MIRRORED:
        return None
    inside = dataclasses.replace(outside, bound=bound)
    left, right = map(inside.source, test.operands)
    if not _is_element(left, before) or outside.evaluate(left) is not None:
        left, right, direction = right, left, _MIRRORED[direction]
    if not _is_element(left, before):
        return None
    index, last = int(left.attribute("index")), inside.evaluate(right)
    first = outside.element(loop.operands[0], index)
    if first is None or last is None:
        return None

    def after(count: int) -> int | None:
        return dataclasses.replace(outside, carried={(state, index): count}).element(body.root, index)

    second = after(first)
    if second is None or second == first or (third := after(second)) is None or third - second != second - first:
        return None
    return _steps(first, second - first, last, direction)


def _steps(first: int, step: int, last: int, direction: str) -> int | None:
    """Return how many of first, first + step, ... come before the one that fails the comparison with `last`; None = all."""
    ahead = (last - first) * (1 if step > 0 else -1)
    if direction == "NE":
        return ahead // abs(step) if ahead >= 0 and ahead % abs(step) == 0 else None
    if (step > 0) != direction.startswith("L"):
        return None
    return max(0, math.ceil((ahead + direction.endswith("E")) / abs(step)))


def _is_element(line: Instruction, of: Instruction) -> bool:
    return line.opcode == "get-tuple-element" and line.operands[0] is of


@dataclasses.dataclass(frozen=True)
class _Scalars:
    """Evaluates integers of a program that do not depend on its data."""

    callers: Mapping[Instruction, Instruction]
    carried: Mapping[tuple[Instruction, int], int]
    """(parameter of a loop's body, index of an element) -> its value."""
    bound: Mapping[Instruction, Instruction]
    """Parameter of a fusion -> the operand."""
    conditions: Mapping[Instruction, Instruction]
    """Parameter of a loop's condition -> the loop."""

    def source(self, line: Instruction) -> Instruction:
        """Return the instruction that an instruction passes on."""
        while line in self.bound or line.opcode in _SAME:
            line = self.bound[line] if line in self.bound else line.operands[0]
        return line

    def evaluate(self, line: Instruction) -> int | None:
        """Return the value of a scalar; None if it is not constant."""
        line = self.source(line)
        if line.opcode == "constant":
            return int(line.literal) if re.fullmatch(r"-?\d+", line.literal) else None
        if line.opcode == "get-tuple-element":
            return self.element(line.operands[0], int(line.attribute("index")))
        if line.opcode == "fusion":
            return self._within(line).evaluate(line.called[0].root)
        if line.opcode not in _ARITHMETIC:
            return None
        one, other = map(self.evaluate, line.operands)
        return None if one is None or other is None else _ARITHMETIC[line.opcode](one, other)

    def element(self, values: Instruction, index: int) -> int | None:
        """Return the value of an element of a tuple; None if it is not constant."""
        values = self.source(values)
        if (values, index) in self.carried:
            return self.carried[values, index]
        if values.opcode == "tuple":
            return self.evaluate(values.operands[index])
        if values.opcode == "fusion":
            return self._within(values).element(values.called[0].root, index)
        loop = self.conditions.get(values) or (self.callers.get(values) if values.opcode == "parameter" else values)
        if loop is None or loop.opcode != "while":
            return None
        # An element that the body of a loop passes on is what it was before the loop.
        body = loop.called[0]
        root = self.source(body.root)
        if root.opcode != "tuple":
            return None
        unchanged = self.source(root.operands[index])
        same = _is_element(unchanged, body.parameters[0]) and int(unchanged.attribute("index")) == index
        return self.element(loop.operands[0], index) if same else None

    def _within(self, fusion: Instruction) -> "_Scalars":
        operands = zip(fusion.called[0].parameters, fusion.operands, strict=True)
        return dataclasses.replace(self, bound={**self.bound, **dict(operands)})
