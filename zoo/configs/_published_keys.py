"""The keys of a family's config.json as a table that is read and written: fields under other names, and values that are fixed."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from zoo.configs import Exported
from zoo.errors import BadInput
from zoo.hf.config_json import ACTIVATIONS, BOOKKEEPING, PublishedConfig, first_name


def check_exportable(expressible: bool, config: Any, field: str, why: str) -> None:
    """Refuse to export a configuration with a value of a field that a config.json cannot express."""
    if not expressible:
        raise BadInput(f"model.{field} {getattr(config, field)}: {why}; this model cannot be exported")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PublishedKeys:
    """The keys of a config.json that a table can say; a family reads and writes the others itself."""

    fields: Mapping[str, tuple[str, int | float | bool]]
    """Maps a field to its key and to the value of an absent key, whose type is that of the field."""
    activation: tuple[str, str] | None = None
    """The key that names the activation, and the name that an absent key means; None: it has none."""
    activation_fields: tuple[str, ...] = ("activation",)
    """The fields that the name of the activation sets."""
    activations: Mapping[str, Any] = dataclasses.field(default_factory=lambda: ACTIVATIONS)
    """Maps each published name to the value of the field, or to those of all; an export writes the first name that fits."""
    initializer: str = "initializer_range"
    """The key of the standard deviation of fresh weights."""
    aliases: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Maps other names of keys, which take precedence in `transformers`, to the keys."""
    computed: Mapping[str, Any]
    """Keys that change the results, with the only value that is implemented here."""
    without_effect: tuple[str, ...] = ()
    """Further keys than `BOOKKEEPING` that do not change the results."""
    padding: int | None = None
    """The `pad_token_id` that an absent key means, which must be in the vocabulary; None: it is not checked here."""
    is_causal: bool = False
    """True if a token sees none after it, which the key of this name may not deny."""
    reads_quantized: bool = False
    """True if the family reads quantized weights, and checks their format."""

    def read(self, published: PublishedConfig, absent: Mapping[str, Any] | None = None, **exported: Any) -> dict[str, Any]:
        """Return fields of a configuration, with `exported`.

        Args:
            absent: values of absent keys, of a type of files that has others than `fields` and `activation`.
            exported: further values of `Exported`.

        Raises:
            BadInput: a value that the family does not compute, or of another type; an integer below 1.
        """
        defaults = dict(absent or {})
        published.use_aliases(self.aliases)
        for key, value in self.computed.items():
            published.only(key, value)
        if self.is_causal:
            published.check_causal()
        if not self.reads_quantized:
            published.not_quantized()
        published.without_effect(*BOOKKEEPING, *self.without_effect)

        def value(field: str, key: str, usual: int | float | bool) -> int | float | bool:
            default = defaults.get(key, usual)
            if isinstance(usual, bool):
                return published.flag(key, default)
            if isinstance(usual, int):
                return published.integer(key, default)
            return published.number(key, default, decimal=field in ("eps", "limit"))

        fields: dict[str, Any] = {field: value(field, *row) for field, row in self.fields.items()}
        if self.padding is not None:
            published.check_padding(fields["vocab"], defaults.get("pad_token_id", self.padding))
        exported = {"initializer": published.initializer(self.initializer), **exported}
        if self.activation is not None:
            key, usual = self.activation
            meaning = published.choice(key, self.activations, defaults.get(key, usual))
            fields |= zip(self.activation_fields, meaning if isinstance(meaning, tuple) else (meaning,), strict=True)
            exported["activation"] = published.spelling(key, self.activations)
        return {**fields, "exported": Exported(**exported)}

    def write(self, config: Any) -> dict[str, Any]:
        """Return the entries of a config.json of these keys.

        Raises:
            StopIteration: no name of `activations` has the meaning of the configuration.
        """
        entries = {key: getattr(config, field) for field, (key, _) in self.fields.items()}
        if config.exported.initializer is not None:
            entries[self.initializer] = config.exported.initializer
        if self.activation is not None:
            values = tuple(getattr(config, field) for field in self.activation_fields)
            meaning = values[0] if len(values) == 1 else values
            spelling = config.exported.activation
            fits = self.activations.get(spelling) == meaning
            entries[self.activation[0]] = spelling if fits else first_name(self.activations, meaning)
        return {**entries, **self.computed}
