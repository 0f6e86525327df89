"""Each optimizer against the formulas of its paper in float64, and the options of weight decay and rates."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from train.config.optim_options import USES, Decayed, Optim, check_used
from train.engine import averages, optim
from train.engine.optimizers import DIRECTIONS
from train.engine.schedules import make_schedule
from train.engine.state import State
from zoo.errors import BadInput

STEPS = 50
Tensor = np.ndarray
SHAPES = {
    "embed": {"tokens": {"embedding": (6, 4)}},
    "layers": {"mlp": {"up": {"kernel": (2, 4, 8), "bias": (2, 8)}, "down": {"kernel": (2, 8, 4)}}},
}
SQUARE = {**SHAPES, "layers": {"mlp": {"up": {"kernel": (2, 6, 6), "bias": (2, 6)}, "down": {"kernel": (2, 6, 6)}}}}
"""The same with square matrices: the eigenvectors of a singular factor are not unique."""
B1, B2, EPS, DECAY, MOMENTUM, REFRESH = 0.9, 0.95, 1e-8, 0.1, 0.95, 4


def random_tree(rng: np.random.Generator, shapes: Any, scale: float = 1.0) -> Any:
    if isinstance(shapes, tuple):
        return scale * rng.standard_normal(shapes)
    return {name: random_tree(rng, value, scale) for name, value in shapes.items()}


def tensors(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Return the tensors by path: layers are separate."""
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from tensors(value, f"{path}{name}/")
        elif path.startswith("layers/"):
            yield from ((f"{path}{name}/{layer}", value[layer]) for layer in range(len(value)))
        else:
            yield path + name, value


def decays(path: str) -> bool:
    return "bias" not in path


class Adam:
    """The moments of Adam (Kingma and Ba 2015, algorithm 1), and what others compute of them."""

    def __init__(self, path: str) -> None:
        self.path, self.first, self.second, self.step = path, 0.0, 0.0, 0

    def direction(self, grad: Tensor) -> Tensor:
        self.step += 1
        self.first, self.second = B1 * self.first + (1 - B1) * grad, B2 * self.second + (1 - B2) * grad**2
        self.corrected = self.second / (1 - B2**self.step)
        return self.first / (1 - B1**self.step) / (np.sqrt(self.corrected) + EPS)

    def decayed(self, param: Tensor, grad: Tensor) -> Tensor:
        return self.direction(grad) + DECAY * decays(self.path) * param


class AdamW(Adam):
    def move(self, param: Tensor, grad: Tensor, lr: float) -> Tensor:
        return param - lr * self.decayed(param, grad)


class StableAdamW(Adam):
    """Wortsman et al. 2023, algorithm 2."""

    def move(self, param: Tensor, grad: Tensor, lr: float) -> Tensor:
        update = self.decayed(param, grad)
        lr /= max(1.0, np.sqrt(np.mean(grad**2 / np.maximum(self.corrected, EPS**2))))
        return param - lr * update


class Lamb(Adam):
    """You et al. 2020, algorithm 2, with the identity as the function of the norm."""

    def move(self, param: Tensor, grad: Tensor, lr: float) -> Tensor:
        update = self.decayed(param, grad)
        return param - lr * update * (np.linalg.norm(param) / np.linalg.norm(update) if decays(self.path) else 1.0)


class ScheduleFreeAdamW(Adam):
    """Defazio et al. 2024, algorithm 1; `move` returns y, at which the gradient is computed."""

    def move(self, param: Tensor, grad: Tensor, lr: float) -> Tensor:
        if not self.step:
            self.base = self.average = param
            self.total = 0.0
        self.direction(grad)
        self.total += lr**2
        self.base = self.base - lr * (grad / (np.sqrt(self.corrected) + EPS) + DECAY * decays(self.path) * param)
        share = lr**2 / self.total
        self.average = (1 - share) * self.average + share * self.base
        return (1 - B1) * self.base + B1 * self.average


class Lion(Adam):
    """Chen et al. 2023, algorithm 2."""

    def move(self, param: Tensor, grad: Tensor, lr: float) -> Tensor:
        update = np.sign(B1 * self.first + (1 - B1) * grad)
        self.first = B2 * self.first + (1 - B2) * grad
        return param - lr * (update + DECAY * decays(self.path) * param)


class Sgd(Adam):
    def move(self, param: Tensor, grad: Tensor, lr: float) -> Tensor:
        self.first = MOMENTUM * self.first + grad
        return param - lr * (self.first + DECAY * decays(self.path) * param)


class Adafactor(Adam):
    """Shazeer and Stern 2018, algorithms 4 and 5, for tensors that are too small to be factored."""

    def move(self, param: Tensor, grad: Tensor, lr: float) -> Tensor:
        self.step += 1
        keep = 1 - self.step**-0.8
        self.second = keep * self.second + (1 - keep) * (grad**2 + 1e-30)
        update = grad / np.sqrt(self.second)
        update /= max(1.0, np.sqrt(np.mean(update**2)))
        size = max(1e-3, np.sqrt(np.mean(param**2)))
        return param - lr * (size * update + DECAY * decays(self.path) * param)


class Muon(Adam):
    """The loop of the released code (Jordan et al. 2024) for matrices, which it stores as [outputs, inputs]; Adam for others."""

    def move(self, param: Tensor, grad: Tensor, lr: float) -> Tensor:
        if not self.path.startswith("layers/") or "bias" in self.path:
            return param - lr * self.decayed(param, grad)
        self.first = MOMENTUM * self.first + (1 - MOMENTUM) * grad
        x = (1 - MOMENTUM) * grad.T + MOMENTUM * self.first.T
        x = x / (np.linalg.norm(x) + 1e-7)
        flip = x.shape[0] > x.shape[1]
        x = x.T if flip else x
        for _ in range(5):
            gram = x @ x.T
            x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
        x = x.T if flip else x
        return param * (1 - lr * DECAY) - lr * max(1, x.shape[0] / x.shape[1]) ** 0.5 * x.T


class Soap(Adam):
    """Vyas et al. 2024, algorithms 3 and 4, in the order of the released code, with Adam's correction of the bias."""

    def move(self, param: Tensor, grad: Tensor, lr: float) -> Tensor:
        if not self.path.startswith("layers/") or "bias" in self.path:
            return param - lr * self.decayed(param, grad)
        left, right = (1 - B2) * grad @ grad.T, (1 - B2) * grad.T @ grad
        if not self.step:
            self.left, self.right, direction = left, right, 0.0
            self.left_basis, self.right_basis = np.linalg.eigh(left)[1], np.linalg.eigh(right)[1]
        else:
            self.first = B1 * self.first + (1 - B1) * grad
            self.second = B2 * self.second + (1 - B2) * (self.left_basis.T @ grad @ self.right_basis) ** 2
            rotated = self.left_basis.T @ self.first @ self.right_basis / (1 - B1**self.step)
            rotated = rotated / (np.sqrt(self.second / (1 - B2**self.step)) + EPS)
            direction = self.left_basis @ rotated @ self.right_basis.T
            self.left, self.right = B2 * self.left + left, B2 * self.right + right
            if self.step % REFRESH == 0:
                self.left_basis = np.linalg.qr(self.left @ self.left_basis)[0]
                self.right_basis = np.linalg.qr(self.right @ self.right_basis)[0]
        self.step += 1
        return param - lr * (direction + DECAY * param)


REFERENCES: dict[str, type[Any]] = {
    "adamw": AdamW,
    "stable_adamw": StableAdamW,
    "lamb": Lamb,
    "lion": Lion,
    "adafactor": Adafactor,
    "muon": Muon,
    "sgd": Sgd,
    "soap": Soap,
    "schedule_free_adamw": ScheduleFreeAdamW,
}


def options_of(name: str, **changes: Any) -> Optim:
    values = {"b1": B1, "b2": B2, "eps": EPS, "momentum": MOMENTUM, "muon_scale": "released", "refresh": REFRESH}
    schedule: Any = {"schedule": "constant"} if name == "schedule_free_adamw" else {}
    return Optim(name=name, weight_decay=DECAY, clip=0.0, **{key: values[key] for key in USES[name]} | schedule | changes)


def follow(cfg: Optim, params: Any, grads: list[Any], rates: list[float], scored: bool = False) -> Any:
    """Return the parameters after the updates of the step, or those that are scored."""
    tx = optim.make_optimizer(cfg)

    @jax.jit
    def move(params: Any, state: Any, grad: Any, lr: Any) -> tuple[Any, Any]:
        updates, state = tx.update(grad, state, params, lr=lr)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    for grad, lr in zip(grads, rates, strict=True):
        params, state = move(params, state, grad, lr)
    return averages.scored_parameters(State(step=0, params=params, opt_state=state, carry={}, key=0)) if scored else params


def problem(shapes: Any = SHAPES) -> tuple[Any, list[Any], list[float]]:
    """Return parameters, gradients whose size changes a hundredfold, and rates."""
    rng = np.random.default_rng(0)
    scales = 10.0 ** rng.uniform(-1.0, 1.0, STEPS)
    grads = [random_tree(rng, shapes, scale) for scale in scales]
    return random_tree(rng, shapes), grads, [0.01 * (1 + step % 3) for step in range(STEPS)]


@pytest.mark.parametrize("name", DIRECTIONS)
def test_fifty_steps_are_those_of_the_paper_s_formulas(name: str) -> None:
    params, grads, rates = problem(SQUARE if name == "soap" else SHAPES)
    own = {path: (tensor, REFERENCES[name](path)) for path, tensor in tensors(params)}
    for grad, lr in zip(grads, rates, strict=True):
        by_path = dict(tensors(grad))
        own = {path: (state.move(tensor, by_path[path], lr), state) for path, (tensor, state) in own.items()}
    with jax.enable_x64(True):
        moved = follow(options_of(name), jax.tree.map(jnp.asarray, params), grads, rates)
        for path, tensor in tensors(moved):
            assert tensor.dtype == jnp.float64
            np.testing.assert_allclose(tensor, own[path][0], rtol=1e-5, err_msg=f"{name}, {path}")


@pytest.mark.planted
def test_the_scored_parameters_of_a_schedule_free_optimizer_are_its_average() -> None:
    params, grads, rates = problem()
    own = {path: (tensor, ScheduleFreeAdamW(path)) for path, tensor in tensors(params)}
    for grad, lr in zip(grads, rates, strict=True):
        by_path = dict(tensors(grad))
        own = {path: (state.move(tensor, by_path[path], lr), state) for path, (tensor, state) in own.items()}
    cfg = options_of("schedule_free_adamw")
    with jax.enable_x64(True):
        scored, trained = (
            dict(tensors(follow(cfg, jax.tree.map(jnp.asarray, params), grads, rates, scored))) for scored in (True, False)
        )
    for path, (_, state) in own.items():
        np.testing.assert_allclose(scored[path], state.average, rtol=1e-5)
        with pytest.raises(AssertionError):
            np.testing.assert_allclose(trained[path], state.average, rtol=1e-5)


@pytest.mark.planted
@pytest.mark.parametrize(
    ("name", "changes"), [("lamb", {"decayed": "all"}), ("muon", {"muon_scale": "adam"}), ("lion", {"b2": 0.9})]
)
def test_another_option_gives_other_parameters(name: str, changes: dict[str, Any]) -> None:
    params, grads, rates = problem()
    first, second = (follow(cfg, params, grads, rates) for cfg in (options_of(name), options_of(name, **changes)))
    assert any(not np.allclose(a, b, rtol=1e-3) for a, b in zip(*map(jax.tree.leaves, (first, second)), strict=True))


def test_adafactor_factors_the_moments_of_large_matrices() -> None:
    """The mean of each row, times that of each column, over that of all (Shazeer and Stern 2018, algorithm 4).

    Queries, keys and values of a layer are three matrices, and the stacks of layers may have different depths, as in ByT5.
    """
    rng = np.random.default_rng(0)
    params = {
        "encoder": {"layers": {"attention": {"qkv": {"kernel": rng.standard_normal((2, 128, 3, 2, 65))}}}},
        "decoder": {"layers": {"mlp": {"up": {"kernel": rng.standard_normal((1, 128, 130))}}}},
        "classifier": {"kernel": rng.standard_normal((128, 130))},
    }
    grads = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape), params)
    cfg = Optim(name="adafactor", weight_decay=0.0, clip=0.0)

    def matrices(leaf: Any) -> np.ndarray:
        leaf = np.asarray(leaf)
        return (leaf.transpose(0, 2, 1, 3, 4) if leaf.ndim == 5 else leaf).reshape(-1, 128, 130)

    with jax.enable_x64(True):
        moved = follow(cfg, jax.tree.map(jnp.asarray, params), [grads], [1.0])
    for leaves in zip(*map(jax.tree.leaves, (params, grads, moved)), strict=True):
        for before, slope, after in zip(*map(matrices, leaves), strict=True):
            squares = slope**2 + 1e-30
            update = slope / np.sqrt(np.outer(squares.mean(1), squares.mean(0)) / squares.mean())
            update /= max(1.0, np.sqrt(np.mean(update**2)))
            np.testing.assert_allclose(after, before - np.sqrt(np.mean(before**2)) * update, rtol=1e-9)
    state = jax.eval_shape(optim.make_optimizer(cfg).init, params)
    assert sum(leaf.size for leaf in jax.tree.leaves(state)) < 9 * (128 + 130)


@pytest.mark.parametrize("decayed", ["matrices", "kernels", "all"])
def test_weight_decay_is_for_the_chosen_parameters(decayed: Decayed) -> None:
    """With gradients of zero only the decay moves, by the rate times it, or by its share of the peak."""
    params, grads, _ = problem()
    zero = jax.tree.map(np.zeros_like, grads[0])
    for independent, factor in ((False, 0.02 * DECAY), (True, 0.5 * DECAY)):
        cfg = options_of("adamw", decayed=decayed, independent_decay=independent, lr=0.04)
        after = dict(tensors(follow(cfg, params, [zero], [0.02])))
        for path, tensor in tensors(params):
            moves = decayed == "all" or ("kernel" in path or ("embedding" in path and decayed == "matrices"))
            np.testing.assert_allclose(after[path], tensor * (1 - factor * moves), rtol=1e-6)


def test_rates_are_those_of_the_first_pattern_that_matches() -> None:
    params, grads, rates = problem()
    cfgs = options_of("sgd"), options_of("sgd", rates=("embed/=0", r"up/kernel$=0.5", "layers/=1"))
    first, second = (dict(tensors(follow(cfg, params, grads[:1], rates[:1]))) for cfg in cfgs)
    for path, tensor in tensors(params):
        factor = 0.0 if "embed" in path else 0.5 if "up/kernel" in path else 1.0
        np.testing.assert_allclose(second[path] - tensor, factor * (first[path] - tensor), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(("shape", "expected"), [("linear", 0.55), ("sqrt", 1 - 0.9 * 0.5**0.5), ("cosine", 0.55)])
def test_wsd_is_constant_and_decays_in_the_last_steps(shape: Any, expected: float) -> None:
    cfg = Optim(schedule="wsd", lr=1.0, warmup=10, decay_steps=20, decay_shape=shape)
    rate = make_schedule(cfg, 100)
    at = {step: float(rate(jnp.int32(step))) for step in (0, 9, 10, 79, 80, 90, 100, 120)}
    assert at == pytest.approx({0: 0.1, 9: 1.0, 10: 1.0, 79: 1.0, 80: 1.0, 90: expected, 100: 0.1, 120: 0.1}, rel=1e-5)
    assert Optim(schedule="wsd", decay_steps=0.001).length_of_decay(200) == 1
    assert Optim(schedule="wsd").length_of_decay(1000) == Optim(schedule="wsd", decay_steps=0.2).length_of_decay(1000) == 200


@pytest.mark.parametrize("name", ["cosine", "linear"])
def test_a_decay_of_some_steps_is_followed_by_a_constant_rate(name: Any) -> None:
    rate = make_schedule(Optim(schedule=name, lr=1.0, warmup=10, decay_steps=40), 100)
    assert [float(rate(jnp.int32(step))) for step in (10, 30, 50, 99)] == pytest.approx([1.0, 0.55, 0.1, 0.1], rel=1e-5)


@pytest.mark.parametrize(
    ("options", "names", "message"),
    [
        (
            {"name": "lion"},
            {"optim.eps"},
            r"--optim\.eps \S+: the optimizer lion does not use it; leave it out, or choose one of adamw,",
        ),
        (
            {},
            {"optim.momentum"},
            r"--optim\.momentum \S+: the optimizer adamw does not use it; leave it out, or choose one of muon, sgd",
        ),
        (
            {},
            {"optim.decay_shape"},
            r"--optim\.decay-shape \S+: the schedule cosine does not use it; leave it out, or choose one of wsd",
        ),
        ({"weight_decay": 0.0}, {"optim.decayed"}, r"--optim\.decayed \S+: there is no weight decay; leave it out, or set"),
        (
            {"schedule": "constant"},
            {"optim.final"},
            r"--optim\.final \S+: the schedule constant does not use it; .* cosine, linear, wsd",
        ),
    ],
)
def test_options_without_effect_are_named(options: dict[str, Any], names: set[str], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        check_used(Optim(**options), names)
    check_used(Optim(name="muon", schedule="wsd"), {"optim.momentum", "optim.b1", "optim.decay_shape", "optim.lr"})


def test_moments_that_an_optimizer_cannot_store_are_refused() -> None:
    for options, message in (
        ({"name": "soap", "moments": "bfloat16"}, r"--optim\.moments bfloat16: the bases of soap need float32"),
        ({"name": "soap", "offload": True}, r"--optim\.offload: an update of soap needs the bases of all layers; choose another"),
        ({"average": 0.9, "offload": True}, r"--optim\.offload: only moments can be on the host, and not the average of"),
    ):
        with pytest.raises(BadInput, match=message):
            Optim(**options)


def test_a_decay_of_lamb_cannot_be_independent_of_the_rate() -> None:
    """Its trust ratio scales the decay with the update, so that a decay that is divided by the rate would be all that is left."""
    with pytest.raises(BadInput, match=r"--optim\.independent-decay True: lamb scales updates and decay together"):
        Optim(name="lamb", independent_decay=True)


def test_rates_that_match_nothing_or_are_no_numbers_are_refused() -> None:
    for wrong in ("embed", "=2", "(=2", "embed=-1", "embed=inf"):
        with pytest.raises(BadInput, match=r"--optim\.rates .*choose PATTERN=FACTOR"):
            Optim(rates=(wrong,))
    trained = {"layers": {"mlp": {"up": {"lora": {"a": jnp.zeros(2)}}}}}
    optim.check_rates(Optim(rates=("lora/a=2",)), trained)
    with pytest.raises(BadInput, match=r"--optim\.rates embed/: matches no parameter that is trained; .* layers/mlp/up/lora/a"):
        optim.check_rates(Optim(rates=("embed/=2",)), trained)


def test_the_average_follows_the_parameters() -> None:
    """The parameters of a run are not changed by it, and a decay near 1 begins with a smaller one."""
    params, grads, rates = problem()
    cfg = options_of("adamw", average=0.9)
    tx, plain = optim.make_optimizer(cfg), optim.make_optimizer(options_of("adamw"))
    expected, own, other = params, params, params
    state, plain_state = tx.init(params), plain.init(params)
    for step, (grad, lr) in enumerate(zip(grads[:12], rates, strict=False), 1):
        updates, state = tx.update(grad, state, own, lr=lr)
        own = optax.apply_updates(own, updates)
        updates, plain_state = plain.update(grad, plain_state, other, lr=lr)
        other = optax.apply_updates(other, updates)
        share = 1 - min(0.9, (1 + step) / (10 + step))
        expected = jax.tree.map(lambda a, p, share=share: (1 - share) * a + share * p, expected, own)
    jax.tree.map(np.testing.assert_array_equal, own, other)
    (average,) = [link.average for link in state if isinstance(link, averages.AverageState)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), average, expected)


def test_a_schedule_free_optimizer_has_no_decay_and_no_other_average() -> None:
    with pytest.raises(
        BadInput, match=r"--optim.schedule cosine: schedule_free_adamw averages the parameters in place of a decay"
    ):
        Optim(name="schedule_free_adamw")
    with pytest.raises(BadInput, match=r"--optim.average 0.9: schedule_free_adamw has an average of its own; choose 0"):
        options_of("schedule_free_adamw", average=0.9)
    with pytest.raises(BadInput, match=r"--optim.offload: only moments can be on the host"):
        options_of("schedule_free_adamw", offload=True)
