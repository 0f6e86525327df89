"""All logits of a loss at once or by parts: what `auto` chooses, what users read about it, and the numbers of both forms."""

import dataclasses
import importlib.util
import json
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType
from jax.tree_util import Partial

from tests.support import tiny
from train import run_description
from train.config.declaration import AUTO_CHUNK
from train.config.from_json import from_json
from train.config.objectives import CausalOptions
from train.config.run_config import Mesh
from train.engine import device_mesh, loss_chunks
from train.engine.losses import SoftLoss, distillation_losses, token_losses
from train.inputs import synthetic_batch
from train.objectives.causal import Causal
from train.parametrization import parametrization_of
from train.step.assembly import assemble
from zoo.errors import BadInput
from zoo.nn.layers import tied_logits
from zoo.sharding import num_shards, target_memory

VOCABULARY, ROWS, WIDTH, B, T = 300, 384, 16, 8, 64


def abstract_mesh(kind: str) -> AbstractMesh:
    device = AbstractDevice(kind, 1, "tpu" if kind.startswith("TPU") else "cuda")
    return AbstractMesh((1,), ("data",), axis_types=(AxisType.Auto,), abstract_device=device)


def logits_on(kind: str, rows: int, option: int = AUTO_CHUNK) -> loss_chunks.Logits:
    """Return the logits of a traced loss of gpt2 on rows of 1,024 tokens: 49.1 MiB of logits in each row."""
    shapes = ((rows, 1024, 64), jnp.bfloat16), ((50_304, 64), jnp.bfloat16), ((rows, 1024), jnp.int32)

    def loss(hidden: Any, table: Any, targets: Any) -> Any:
        unembed = Partial(lambda table, h: tied_logits(h, table, 50_257), table)
        return token_losses(unembed, hidden, targets, vocabulary=50_257, chunk=option)

    with jax.sharding.use_abstract_mesh(abstract_mesh(kind)), loss_chunks.record_logits() as traced:
        jax.eval_shape(loss, *(jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in shapes))
    (logits,) = traced
    return logits


CHOICES = [
    # 4 GiB of a v5e, with 4 bytes for a logit.
    ("TPU v5 lite", 20, 0, "all at once (auto: all take 3.84 GiB of a device, at most 1/4 of its 16 GiB)"),
    (
        "TPU v5 lite",
        21,
        512,
        "512 of 1,024 positions at a time (auto: all take 4.03 GiB of a device, more than 1/4 of its 16 GiB)",
    ),
    (
        "TPU v5 lite",
        64,
        256,
        "256 of 1,024 positions at a time (auto: all take 12.3 GiB of a device, more than 1/4 of its 16 GiB)",
    ),
    ("TPU v5 lite", 1 << 20, 1, "1 of 1,024 positions at a time (auto: "),
    # 20 GB of an H100, with 8.
    ("NVIDIA H100 80GB HBM3", 48, 0, "all at once (auto: all take 18.4 GiB of a device, at most 1/4 of its 74.5 GiB)"),
    ("NVIDIA H100 80GB HBM3", 49, 512, "512 of 1,024 positions at a time (auto: all take 18.8 GiB of a device, more than 1/4"),
    ("NVIDIA X1", 1 << 20, 0, "all at once (auto: the memory of the device is not known)"),
]


def check_choices() -> None:
    for kind, rows, chunk, text in CHOICES:
        logits = logits_on(kind, rows)
        assert logits.chunk == chunk and str(logits).startswith(text), (kind, rows, str(logits))


def test_auto_takes_all_logits_that_fit_into_their_share() -> None:
    check_choices()
    texts = {option: f"{chunk} of 1,024 positions at a time" for option, chunk in {128: 128, 400: 342, 1000: 512}.items()}
    for option, text in (texts | {0: "all at once", 1024: "all at once"}).items():
        assert str(logits_on("TPU v5 lite", 1 << 20, option)) == text


@pytest.mark.planted
def test_a_choice_by_another_number_of_bytes_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(loss_chunks.BYTES, "gpu", 4)
    with pytest.raises(AssertionError):
        check_choices()


def test_a_distillation_has_the_logits_of_both_models() -> None:
    table = jnp.ones((ROWS, WIDTH))
    heads = [Partial(lambda table, h: tied_logits(h, table, VOCABULARY), table[:, :width]) for width in (16, 8)]
    hidden = [jnp.ones((B, T, width)) for width in (16, 8)]
    with loss_chunks.record_logits() as traced:
        distillation_losses(heads[0], heads[1], *hidden, soft=SoftLoss("forward_kl", 0.5, 2.0), chunk=AUTO_CHUNK)
    assert [logits.bytes for logits in traced] == [2 * B * T * ROWS * loss_chunks.BYTES["cpu"]]


@pytest.mark.full
@pytest.mark.planted
def test_the_header_describes_the_logits_of_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """It traces the batch of all devices, and the step a micro-batch on a mesh."""
    run = tiny.run(mesh=Mesh(data=2, fsdp=2, tensor=2), accumulate=2)
    run = synthetic_batch.resolve_config(dataclasses.replace(run, precision="float32"))
    mesh = device_mesh.make_mesh(run.mesh, jax.devices())
    objective, batch = Causal().bind(run, mesh), synthetic_batch.batch(run)
    parameters = parametrization_of(run, objective, mesh)
    facts = run_description.describe_loss(run, parameters, objective, batch, mesh)
    assembled = assemble(run, objective, mesh, parameters)
    assert assembled.engine.trace is not None

    def text_of_step() -> str:
        with loss_chunks.record_logits() as traced:
            assembled.engine.trace(assembled.state, batch, {}, parameters.base)  # pyright: ignore[reportOptionalCall]
        return loss_chunks.describe_logits(traced)

    assert facts["logits"] == text_of_step() and facts["logits"].startswith("all at once (auto: all take ")
    jax.clear_caches()
    monkeypatch.setattr(loss_chunks, "num_shards", lambda: 1)
    assert facts["logits"] != text_of_step()


@pytest.mark.planted
def test_processes_of_a_group_choose_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """On hosts with different memory: what a process measures of its own host would give a program that others do not have."""
    memory = target_memory()
    assert memory is not None and memory > 0
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    assert target_memory() is None


def test_arrays_without_a_mesh_are_on_one_device() -> None:
    assert num_shards() == 1


# --- numbers --------------------------------------------------------------------------------------------------------------------


def arrays() -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(0)
    hidden = np.float32(rng.standard_normal((B, T, WIDTH)))
    return hidden, np.float32(rng.standard_normal((ROWS, WIDTH))), rng.integers(0, VOCABULARY, (B, T)).astype(np.int32)


def by_definition(hidden: Any, table: Any, targets: Any) -> tuple[float, Any, Any]:
    """Return the summed cross-entropy in float64, and its gradients to hidden states and table."""
    hidden, table = np.float64(hidden).reshape(-1, WIDTH), np.float64(table[:VOCABULARY])
    logits = hidden @ table.T
    log_z = np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1)) + logits.max(-1)
    at = np.arange(len(logits)), targets.ravel()
    gradient = np.exp(logits - log_z[:, None])
    gradient[at] -= 1
    return float((log_z - logits[at]).sum()), gradient @ table, gradient.T @ hidden


def summed(chunk: int) -> Any:
    def loss(hidden: Any, table: Any, targets: Any) -> Any:
        unembed = Partial(lambda table, h: tied_logits(h, table, VOCABULARY), table)
        return token_losses(unembed, hidden, targets, vocabulary=VOCABULARY, chunk=chunk).sum()

    return loss


def tokamax_loss(hidden: Any, table: Any, targets: Any) -> Any:
    """Compute the loss with tokamax, where it is installed, by its implementation for every platform."""
    tokamax: Any = importlib.import_module("tokamax")
    kernel = table[:VOCABULARY].T
    return tokamax.linear_softmax_cross_entropy_loss(
        hidden.reshape(-1, WIDTH), targets.ravel(), kernel, reduction="sum", implementation="xla"
    )


FORMS = {"all at once": summed(0), "by parts": summed(24), "auto": summed(AUTO_CHUNK)}
FORMS |= {"tokamax": tokamax_loss} if importlib.util.find_spec("tokamax") else {}


@pytest.mark.planted
@pytest.mark.parametrize("form", FORMS)
def test_each_form_agrees_with_float64(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Value and gradients, with a share of the memory with which `auto` computes 16 of 64 positions at a time."""
    memory = B * T * ROWS * loss_chunks.BYTES["cpu"]
    monkeypatch.setattr(loss_chunks, "target_memory", lambda: memory)
    value, of_hidden, of_table = by_definition(*arrays())

    def largest_error(targets: Any) -> float:
        hidden, table, _ = arrays()
        result, gradients = jax.jit(jax.value_and_grad(FORMS[form], (0, 1)))(hidden, table, targets)
        errors = [abs(float(result) / value - 1)]
        for ours, exact in zip(gradients, (of_hidden.reshape(B, T, WIDTH), of_table), strict=True):
            errors.append(float(np.abs(np.asarray(ours)[: len(exact)] - exact).max() / np.abs(exact).max()))
        return max(errors)

    targets = arrays()[2]
    assert largest_error(targets) < 1e-5
    # The mistake: one of 512 targets is another one.
    targets[0, 0] = (targets[0, 0] + 1) % VOCABULARY
    assert largest_error(targets) > 1e-4


def largest_array(chunk: int) -> int:
    """Return the number of elements of the largest array of the compiled loss and its gradient."""
    text = jax.jit(jax.value_and_grad(summed(chunk), (0, 1))).lower(*arrays()).compile().as_text() or ""
    shapes = re.findall(r"\b(?:pred|[a-z]+\d+)\[([\d,]+)\]", text)
    return max(math.prod(map(int, shape.split(","))) for shape in shapes)


@pytest.mark.planted
def test_by_parts_no_array_has_the_size_of_tokens_times_vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check fails for all logits at once."""
    assert largest_array(0) >= B * T * ROWS
    assert largest_array(16) < B * T * ROWS / 2
    monkeypatch.setattr(loss_chunks, "target_memory", lambda: B * T * ROWS * loss_chunks.BYTES["cpu"])
    assert largest_array(AUTO_CHUNK) == largest_array(16)


# --- the option -----------------------------------------------------------------------------------------------------------------


def test_the_option_is_auto_or_a_number() -> None:
    for value, chunk in {"auto": AUTO_CHUNK, 0: 0, 16: 16}.items():
        run = tiny.run(loss_chunk=value)
        assert run.loss_chunk == chunk
        stored = json.loads(json.dumps(dataclasses.asdict(run.options)))
        assert from_json(CausalOptions, stored, "options").loss_chunk == value
    assert CausalOptions().loss_chunk == "auto"
    for value in ("", "16", "off", -1, -2):
        with pytest.raises(BadInput, match=rf"--loss-chunk {value}.*choose auto, 0 \(all at once\) or a number of positions"):
            CausalOptions(loss_chunk=value)
