"""The types of the table in `auto_table`."""

import dataclasses

from zoo.attention.request import Request


@dataclasses.dataclass(frozen=True, kw_only=True)
class Line:
    """A line of `auto`: an implementation, the requests that it is for, and why."""

    implementation: str
    features: frozenset[str] = frozenset()
    """The line is for requests with any of these features; empty: with any features."""
    queries: int = 1
    """Smallest number of queries."""
    keys: int = 1
    """Smallest number of keys."""
    dtypes: frozenset[str] = frozenset()
    """Empty: all."""
    time: str = ""
    """Its measured time, relative to that of `xla`: median, smallest and largest; "": not measured on this kind of device."""
    source: str = ""
    """Where the figures are, or what the line is derived from if there are none."""

    def is_for(self, request: Request) -> bool:
        """Return whether a request has the features, the lengths and the dtype of this line."""
        _, queries, keys, _, _, _ = request.shape
        has_features = not self.features or bool(self.features & request.features)
        is_long = queries >= self.queries and keys >= self.keys
        return has_features and is_long and (not self.dtypes or request.dtype in self.dtypes)

    @property
    def lengths(self) -> str:
        """Describe the lengths of this line; "": all."""
        lengths = {"queries": self.queries, "keys": self.keys}
        if self.queries == self.keys:
            lengths = {"queries and keys": self.queries}
        words = [f"{length:,} {name}" for name, length in lengths.items() if length > 1]
        return f"from {' and '.join(words)} on" if words else ""

    @property
    def requests(self) -> str:
        """Describe the requests of this line: features, lengths and dtypes."""
        words = " or ".join(sorted(self.features)), self.lengths, " or ".join(sorted(self.dtypes))
        return ", ".join(filter(None, words)) or "all others"

    @property
    def reason(self) -> str:
        """Describe why the line is there: its time and its source."""
        if self.time:
            return f"{self.time} of xla's time ({self.source})"
        return f"not measured; {self.source}" if self.source else "supports every request"


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeviceLines:
    """The lines of `auto` for a kind of device."""

    device: str
    """Name for users, as in "TPU v5p"."""
    platform: str
    kinds: tuple[str, ...] = ()
    """The words with which JAX's `device_kind` begins."""
    lines: tuple[Line, ...] = ()
    """In the order in which they are tried; the last is for all requests."""
    like: str = ""
    """The device whose lines are used, because nothing is published for this one."""
    because: str = ""
    """Why that one is the nearest."""
    note: str = ""
    """Notice for users about `like`; "": the lines are of this device."""
