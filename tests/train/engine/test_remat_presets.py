"""Remat presets store what docs/scale.md says, in its order; what they compute again is counted, and no loss depends on them."""

import dataclasses
import re
from types import SimpleNamespace
from typing import Any

import jax
import pytest

from benchmarks.plan import compile_program, plan_record, target_devices
from tests.support import benchmark_steps, tiny
from tests.support.processes import ROOT
from tests.support.small import loss, random_params, row, seeds, small, with_dropout
from train.config.run_config import Run
from train.engine import device_mesh
from zoo.configs import Compute
from zoo.errors import BadInput
from zoo.nn import layer_stack


def run_of(remat: str) -> Run:
    """Return a run of a GPT of 24 small layers: what they store needs far more memory than the work on one of them."""
    run = tiny.run()
    compute = Compute(attention="xla", remat=remat)  # pyright: ignore[reportArgumentType]
    return dataclasses.replace(run, model=dataclasses.replace(run.model, layers=24, ffn=4 * run.model.width, compute=compute))


def documented_order() -> list[str]:
    """Return the policies in the order of the table of docs/scale.md: the later, the more is stored on the device."""
    section = (ROOT / "docs/scale.md").read_text().partition("## What is computed again")[2].partition("\n## ")[0]
    return re.findall(r"^\| `(\w+)` \|", section, flags=re.MULTILINE)


@pytest.mark.slow
def test_temporaries_are_ordered_as_documented_and_products_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan checks its FLOPs: those that it counts in the compiled program are those of the model and of recomputation."""
    benchmark_steps.hurry_plans(monkeypatch)
    order = documented_order()
    assert sorted([*order, "offload"]) == sorted(layer_stack.POLICIES)
    sizes = {}
    for remat in order:
        program = compile_program.compile_run(run_of(remat), "train", target_devices.parse_target("cpu:1"))
        plan = plan_record.make_plan(program, "tiny")
        assert plan.products == pytest.approx(program.traced.products, rel=0.03)
        sizes[remat] = program.temporaries
    assert list(sizes.values()) == sorted(set(sizes.values())), sizes


@pytest.mark.full
def test_losses_are_equal_bit_for_bit() -> None:
    """On one device, with dropout; those of `offload` too."""
    dropout, batch = with_dropout(small("gpt")), row(16, 4)
    params = random_params(small("gpt"))
    losses = set()
    for remat in layer_stack.POLICIES:
        net = small("gpt", **dropout, compute=Compute(remat=remat))  # pyright: ignore[reportArgumentType]
        value, _ = jax.jit(jax.value_and_grad(lambda p, net=net: loss(net, p, batch, seeds(4))))(params)
        losses.add(float(value))
    assert len(losses) == 1


def test_offload_without_memory_of_the_host_is_refused() -> None:
    """No platform that is here lacks it; the stand-in for a device has one kind of memory."""
    device: Any = SimpleNamespace(platform="other", addressable_memories=lambda: [SimpleNamespace(kind="device")])
    device_mesh.check_host_memory(run_of("save_dots"), device)
    device_mesh.check_host_memory(run_of("offload"), jax.devices()[0])
    reason = (
        "model.compute.remat offload: the platform other has no memory of the kind pinned_host, only device; choose save_dots"
    )
    with pytest.raises(BadInput, match=re.escape(reason)):
        device_mesh.check_host_memory(run_of("offload"), device)
