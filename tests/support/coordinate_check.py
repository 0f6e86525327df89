"""The coordinate check of width transfer (Yang and Hu 2021, appendix D.1): how much training changes what a model computes.

`python -m tests.support.coordinate_check [FAMILY ...]` prints, for each width, the root mean square of the change of the hidden
states and of the logits after 10 steps, by the rules and in the standard parametrization.
"""

import dataclasses
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tests.support.small import small
from train.config.optim_options import Optim
from train.config.width_base import base_config
from train.engine.optim import make_optimizer
from train.engine.state_init import TrainedParams
from train.engine.width_transfer import LeafFactors, width_factors
from train.parametrization import Parametrization, WidthTransfer
from zoo.batch import Batch
from zoo.models import Model
from zoo.nn.task_heads import predicting_states

FAMILIES = ("gpt", "bert", "t5", "xlnet", "llama", "modernbert", "gpt_oss", "transformer")
WIDTHS = (64, 128, 256, 512, 1024)
HEAD, ROWS, LENGTH, VOCAB, STEPS = 16, 4, 16, 128, 10
RATES = {"muon": 2e-2}
"""Learning rate by optimizer; others have 4e-3."""
TABLES = {"t5": 0.05, "transformer": 0.05}
"""Factor of the initial table by family, in both parametrizations: of the others it is 1, and their tables are small. Its product
with the states is a sum of random terms, which falls as 1/sqrt(width) by the rules; the paper advises 0 (appendix D.2)."""
HIDDEN_NORMS = {"gpt": "norm/scale", "llama": "norm/scale", "t5": "decoder/norm/scale"} | {
    "transformer": "decoder/layers/norm2/scale",
    "xlnet": "layers/norm2/scale",
}
"""Family -> the leaf with the multiplier of the logits, which the hidden states contain too."""

Change = Callable[[str, LeafFactors], LeafFactors]


def model_of_width(family: str, width: int) -> Model:
    """Return a small model of one layer, or one of each kind, whose heads have the same size at every width."""
    fields = {"head": HEAD, "kv_heads": width // HEAD // 2, "tied": family != "gpt_oss" and family != "llama"}
    own = {field.name for field in dataclasses.fields(small(family).config)}
    changes = {name: value for name, value in fields.items() if name in own}
    layers = {} if family in ("modernbert", "ettin_decoder") else {"layers": 1, "decoder_layers": 1}
    layers = {name: value for name, value in layers.items() if name in own}
    return small(family, width=width, heads=width // HEAD, ffn=width, vocab=VOCAB, **layers, **changes)


def make_batch(net: Model, seed: int) -> Batch:
    """Return random tokens, with a source or the order of a query stream where the model needs one."""
    rng = np.random.default_rng(seed)
    tokens = jnp.asarray(rng.integers(0, VOCAB, (ROWS, LENGTH)), jnp.int32)
    if net.is_encoder_decoder:
        return Batch(tokens=tokens, source=Batch(tokens=jnp.asarray(rng.integers(0, VOCAB, (ROWS, LENGTH)), jnp.int32)))
    if net.family == "xlnet":
        order = jnp.broadcast_to(jnp.arange(LENGTH), tokens.shape)
        return Batch(tokens=tokens, order=order, query_at=order)
    return Batch(tokens=tokens)


def targets_of(batch: Batch) -> jax.Array:
    """Return what is predicted at each position, a function of its token and of the one before it."""
    return (3 * batch.tokens + jnp.roll(batch.tokens, 1, axis=1)) % VOCAB


def parametrization(net: Model, base: int | None, optim: Optim, change: Change = lambda path, leaf: leaf) -> Parametrization:
    """Return that of width transfer from a base width, whose factors `change` may replace; None: the standard one."""
    added = TrainedParams(lambda key: {}, ())
    if base is None:
        return Parametrization(model=net, added=added)
    factors = width_factors(net, base_config(net.config, str(base)), optim)
    factors = {path: change(path, leaf) for path, leaf in factors.items()}
    return WidthTransfer(model=net, added=added, factors=factors, base_width=base)


def changes_of(
    family: str, width: int, base: int | None, optim: Optim, *, seed: int = 0, change: Change = lambda path, leaf: leaf
) -> tuple[float, float]:
    """Return the root mean squares of the changes of the hidden states and of the logits."""
    net = model_of_width(family, width)
    rules = parametrization(net, base, optim, change)
    tx = make_optimizer(optim, rules.gradient_factors)
    scale = 1.0
    if isinstance(rules, WidthTransfer) and family in HIDDEN_NORMS:
        scale = float(np.ravel(rules.factors[HIDDEN_NORMS[family]].multiplier)[-1])
    batch = make_batch(net, seed)

    def outputs(params: Any) -> tuple[jax.Array, jax.Array]:
        model_params = rules.model_params(params, {})
        out = net.apply(model_params, batch)
        hidden = predicting_states(out, batch)
        return hidden / scale, net.unembed(model_params, hidden)[..., :VOCAB]

    @jax.jit
    def step(params: Any, state: Any) -> tuple[Any, Any, Any]:
        def loss(params: Any) -> tuple[jax.Array, Any]:
            hidden, logits = outputs(params)
            return optax.softmax_cross_entropy_with_integer_labels(logits, targets_of(batch)).mean(), (hidden, logits)

        grads, values = jax.grad(loss, has_aux=True)(params)
        updates, state = tx.update(grads, state, params, lr=optim.lr)
        return optax.apply_updates(params, updates), state, values

    params = jax.jit(rules.trained.init)(jax.random.key(seed))
    params["embed"]["tokens"]["embedding"] *= TABLES.get(family, 1.0)
    state, history = tx.init(params), []
    for _ in range(STEPS + 1):
        params, state, values = step(params, state)
        history.append(values)
    hidden, logits = (float(jnp.sqrt(jnp.mean(jnp.square(new - old)))) for old, new in zip(history[0], history[-1], strict=True))
    return hidden, logits


def optimizer(family: str, name: str = "adamw") -> Optim:
    """Return the optimizer of the check of a family."""
    rates = ("embed/=10",) if family == "t5" else ()
    return Optim(
        name=name, lr=RATES.get(name, 4e-3), schedule="constant", warmup=0, weight_decay=0.0, rates=rates, muon_scale="released"
    )


def main(arguments: list[str]) -> None:
    """Print the tables of families."""
    name = next((a.removeprefix("optimizer=") for a in arguments if "=" in a), "adamw")
    for family in [a for a in arguments if "=" not in a] or FAMILIES:
        for base in (64, None):
            rows = [changes_of(family, width, base, optimizer(family, name)) for width in WIDTHS]
            print(
                family,
                "standard" if base is None else "transfer",
                *(f"{hidden:.4f}/{logits:.4f}" for hidden, logits in rows),
                flush=True,
            )


if __name__ == "__main__":
    main(sys.argv[1:])
