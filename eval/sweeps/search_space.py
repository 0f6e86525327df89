"""The options that a sweep varies: a range of numbers, or a list of values."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from zoo.errors import BadInput

if TYPE_CHECKING:
    from optuna import Trial

FORMS = "choose OPTION=LOW:HIGH, OPTION=LOW:HIGH:log or OPTION=VALUE,VALUE"


@dataclasses.dataclass(frozen=True)
class Varied:
    """An option and its values."""

    name: str
    """Name after the dashes, as "optim.lr"."""
    values: tuple[Any, ...] = ()
    """All values; of a range the two ends, which belong to it."""
    is_range: bool = False
    is_logarithmic: bool = False
    """Draw the logarithm evenly."""

    def suggest(self, trial: "Trial") -> Any:
        """Return the value of this option in a trial, which is drawn at the first call."""
        if not self.is_range:
            return trial.suggest_categorical(self.name, self.values)
        draw = trial.suggest_int if isinstance(self.values[0], int) else trial.suggest_float
        return draw(self.name, *self.values, log=self.is_logarithmic)


def parse_varied(text: str) -> Varied:
    """Return the option that a value of --vary describes.

    A range whose ends are whole numbers has whole numbers.

    Raises:
        BadInput: it has another form, or a range or list without a choice.
    """
    name, equals, choices = text.removeprefix("--").partition("=")
    if not (name and equals and choices):
        raise BadInput(f"--vary {text}: no option with values; {FORMS}")
    ends = choices.split(":")
    if len(ends) == 1:
        values = tuple(map(_parse_value, choices.split(",")))
        if len({*map(str, values)}) < max(2, len(values)):
            raise BadInput(f"--vary {text}: expected two or more different values; {FORMS}")
        return Varied(name, values)
    numbers = [value for value in map(_parse_value, ends[:2]) if type(value) in (int, float)]
    if len(numbers) != 2 or ends[2:] not in ([], ["log"]):
        raise BadInput(f"--vary {text}: not a range of numbers; {FORMS}")
    low, high = numbers if all(isinstance(number, int) for number in numbers) else map(float, numbers)
    # A comparison with NaN is false.
    if not float("-inf") < low < high < float("inf"):
        raise BadInput(f"--vary {text}: the range is empty or infinite; choose a LOW below HIGH")
    if ends[2:] and low <= 0:
        raise BadInput(f"--vary {text}: {low} has no logarithm; choose a LOW above 0, or leave :log out")
    return Varied(name, (low, high), is_range=True, is_logarithmic=bool(ends[2:]))


def parse_all(texts: Sequence[str]) -> tuple[Varied, ...]:
    """Return the varied options.

    Raises:
        BadInput: there is none, or an option occurs twice; see also `parse_varied`.
    """
    if not texts:
        raise BadInput(f"--vary: is not given; {FORMS}")
    space = tuple(map(parse_varied, texts))
    names = [varied.name for varied in space]
    for name in names:
        if names.count(name) > 1:
            raise BadInput(f"--vary {name}: given twice; put all its values into one")
    return space


def _parse_value(text: str) -> Any:
    """Return the flag or the number that a text is, or else the text."""
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
