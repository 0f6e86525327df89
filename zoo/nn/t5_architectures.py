"""The architectures that Raffel et al. 2020 compare in Table 2: T5's published encoder-decoder, and two that were not published.

`shared` is an encoder-decoder whose sides share all parameters that both have; they are stored with the decoder. `decoder` has no
encoder: its row begins with the source as a prefix, whose tokens all see each other. Position biases are never shared, because
the sides' buckets are different distances.
"""

import dataclasses
from typing import Any

from zoo.nn.layer_stack import select_layer_parts
from zoo.nn.source_cache import ENCODER, SIDES

COMMON = ("norm1", "attention", "norm2", "mlp")
"""Parts that a layer of either side has."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Architecture:
    """The parts of each side of an architecture; the defaults are those of the published one."""

    two_stacks: bool = True
    """True if the encoder has layers and a last norm of its own."""
    has_encoder: bool = True

    def layers(self, params: dict[str, Any], side: int) -> Any:
        """Return the parameters of a side's layers."""
        if side == ENCODER and not self.two_stacks:
            return select_layer_parts(params["decoder"]["layers"], COMMON)
        return params[SIDES[side]]["layers"]

    def norm(self, params: dict[str, Any], side: int) -> Any:
        """Return the parameters of a side's last norm."""
        return params[SIDES[side] if self.two_stacks else "decoder"]["norm"]

    def is_bidirectional(self, side: int) -> bool:
        """Return whether a side's tokens may see later ones, as those of a prefix do, so that the buckets have a direction."""
        return side == ENCODER or not self.has_encoder


ARCHITECTURES = {
    "encoder_decoder": Architecture(),
    "shared": Architecture(two_stacks=False),
    "decoder": Architecture(two_stacks=False, has_encoder=False),
}
