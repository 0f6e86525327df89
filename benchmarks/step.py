"""Time a whole training step of the gpt2 shape, and its parts alone: `python -m benchmarks.step`.

The step is the trainer's own, AdamW and clipping included, in float32 without dropout. Its parts are the same work on the same
shapes, forward and backward, timed in the same rounds; what they do not sum up to is shown too. With the group `parity`
installed, the step of `transformers` on torch (eager, AdamW) is timed in the same rounds, on the same weights and tokens. The
first losses of all must agree. Prints Markdown.
"""

import argparse
import dataclasses
import importlib.util
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import timing
from train import config, optim
from train.losses import token_losses
from train.objectives import causal
from train.state import State
from train.step import make_step
from zoo import configs, models, pretrained
from zoo.attention import attention
from zoo.batch import Batch
from zoo.configs import Compute
from zoo.layers import ACTIVATIONS, layer_norm
from zoo.masks import Mask

VARIANTS = {
    "blocked, layers scanned": Compute(attention="blocked"),
    "blocked, layers unrolled": Compute(attention="blocked", unroll=12),
    "xla, layers unrolled": Compute(attention="xla", unroll=12),
}


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.step", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=2)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=7)
    asked = parser.parse_args()
    rate = timing.begin()
    size = configs.find("gpt2")[1].config
    cfg = dataclasses.replace(size, dropout=0.0, embedding_dropout=0.0, attention_dropout=0.0)
    net = models.model(cfg)
    params = jax.jit(net.init)(jax.random.key(0))
    rng = np.random.default_rng(0)
    tokens = jnp.asarray(rng.integers(0, cfg.vocab, (asked.rows, asked.length + 1)), jnp.int32)
    ones = jnp.ones((asked.rows, asked.length), jnp.float32)
    batch = Batch(tokens=tokens[:, :-1], targets=tokens[:, 1:], weights=ones, index=jnp.arange(asked.rows, dtype=jnp.uint32))

    made = {name: _step(dataclasses.replace(cfg, compute=compute), params, batch) for name, compute in VARIANTS.items()}
    if importlib.util.find_spec("torch"):
        made["transformers, eager"] = _transformers(cfg, params, batch)
    losses = {name: loss for name, (_, loss) in made.items()}
    for name, loss in losses.items():
        print(f"loss of {name}: {loss:.6f}")
    if not max(losses.values()) - min(losses.values()) < 1e-4:
        raise RuntimeError(f"the steps do not compute the same: their first losses are {losses}")
    programs = {name: program for name, (program, _) in made.items()}
    parts = _parts(cfg, params, batch)
    seconds = timing.interleaved({**programs, **parts}, asked.rounds)
    middle = {name: float(np.median(each)) for name, each in seconds.items()}
    unit = middle[next(iter(VARIANTS))]

    def row(name: str, value: float, spread: str = "") -> str:
        return f"| {name} | {value / unit:.2f} {spread}|"

    print(
        f"\n| {asked.rows} x {asked.length} tokens | time over the first's median, of {asked.rounds} (least .. most) |\n|---|---|"
    )
    for name in programs:
        least, most = seconds[name].min() / unit, seconds[name].max() / unit
        print(row(name, middle[name], f"({least:.2f} .. {most:.2f}) "))
    print("| *its parts alone:* | |")
    for name in parts:
        print(row(name, middle[name]))
    print(row("the step less its parts", unit - sum(middle[name] for name in parts)))
    flops = 3 * net.flops(batch)
    print(f"\nMatrix-product FLOPs of a step: {flops / 1e9:.0f} G, {flops / unit / rate:.0%} of the measured rate.")
    return 0


def _step(cfg: Any, params: Any, batch: Batch) -> tuple[Callable[[], object], float]:
    """The trainer's step on a state that it moves on, and the loss of the first."""
    net = models.model(cfg)
    rows, length = batch.tokens.shape
    run = config.Run(recipe="gpt2", model=cfg, steps=1000, data=config.Data(length=length, batch=rows))
    tx = optim.optimizer(run.optim)
    own = jax.tree.map(jnp.copy, params)
    state = State(step=jnp.int32(0), params=own, opt_state=tx.init(own), carry={}, key=jnp.zeros(2, jnp.uint32))
    step = jax.jit(make_step(run, net, causal, tx, jnp.float32), donate_argnums=0)
    held = [state]

    def once() -> Any:
        held[0], metrics = step(held[0], batch)
        return jax.block_until_ready(metrics)

    return once, float(once()["loss"])


def _parts(cfg: Any, params: Any, batch: Batch) -> dict[str, Callable[[], object]]:
    """What a step does, each kind of work for all layers, forward and backward."""
    net, rows, length = models.model(cfg), *batch.tokens.shape
    rng = np.random.default_rng(1)

    def normal(*shape: int) -> jax.Array:
        return jnp.asarray(rng.standard_normal(shape), jnp.float32)

    def pulled(function: Callable[..., jax.Array], times: int, *arrays: Any) -> Callable[[], object]:
        """`function` and its gradient by all arrays, `times` over."""

        @jax.jit
        def run(*arrays: Any) -> Any:
            out, backward = jax.vjp(function, *arrays)
            return backward(jnp.ones_like(out))

        def repeated() -> object:
            return [jax.block_until_ready(run(*arrays)) for _ in range(times)]

        return repeated

    x, wide = normal(rows, length, cfg.width), normal(rows, length, cfg.ffn)
    q, k, v = (normal(rows, length, cfg.heads, cfg.head) for _ in range(3))
    layer = jax.tree.map(lambda leaf: leaf[0], params["layers"])

    def products(x: jax.Array, wide: jax.Array, layer: Any) -> jax.Array:
        qkv = jnp.einsum("btd,dcnh->btcnh", x, layer["attention"]["qkv"]["kernel"])
        out = jnp.einsum("btnh,nhd->btd", qkv[:, :, 0], layer["attention"]["out"]["kernel"])
        up = jnp.einsum("btd,df->btf", x, layer["mlp"]["up"]["kernel"])
        down = jnp.einsum("btf,fd->btd", wide, layer["mlp"]["down"]["kernel"])
        return jnp.concatenate([qkv.reshape(rows, length, -1), out, up, down], -1)

    def head(params: Any, hidden: jax.Array) -> jax.Array:
        assert batch.targets is not None
        return token_losses(lambda h: net.unembed(params, h), hidden, batch.targets, vocabulary=cfg.vocab).sum()

    tx = optim.optimizer(config.Optim())
    update = jax.jit(lambda grads, state, params: tx.update(grads, state, params))
    state = tx.init(params)
    return {
        "attention": pulled(lambda q, k, v: attention(q, k, v, mask=Mask(causal=True), impl="blocked"), cfg.layers, q, k, v),
        "matrix products of the layers": pulled(products, cfg.layers, x, wide, layer),
        "loss head": pulled(head, 1, params, x),
        "optimizer": lambda: jax.block_until_ready(update(params, state, params)),
        "norms": pulled(
            lambda x, s, b: layer_norm(x, s, b, cfg.eps), 2 * cfg.layers + 1, x, jnp.ones(cfg.width), jnp.zeros(cfg.width)
        ),
        "activations": pulled(ACTIVATIONS[cfg.activation], cfg.layers, wide),
    }


def _transformers(cfg: Any, params: Any, batch: Batch) -> tuple[Callable[[], object], float]:
    import torch  # pyright: ignore[reportMissingImports]
    import transformers

    with tempfile.TemporaryDirectory() as folder:
        pretrained.save(Path(folder), cfg, params)
        model = transformers.GPT2LMHeadModel.from_pretrained(folder, attn_implementation="eager")
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    rates = config.Optim()
    optimizer = torch.optim.AdamW(model.parameters(), lr=rates.lr, weight_decay=rates.weight_decay)
    tokens, targets = (torch.tensor(np.asarray(each), dtype=torch.long) for each in (batch.tokens, batch.targets))

    def once() -> float:
        optimizer.zero_grad(set_to_none=True)
        logits = model(tokens).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), rates.clip)
        optimizer.step()
        return loss.item()

    return once, once()


if __name__ == "__main__":
    sys.exit(main())
