"""Estimated costs of a grid before it runs: FLOPs by the formulas of the objectives, and minutes at this machine's rate.

Nothing is computed on a device: shapes alone determine the FLOPs of a step.
"""

import dataclasses
import functools
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path

from eval.experiments.grid import Grid, Node
from train.config.run_config import Run
from train.run.run_dir import RunDir, as_json

EFFICIENCY = 0.75
"""Share of the rate of matrix products that the nano recipes reach in a step on a CPU; 0.6 to 0.9 was measured."""
START = 15.0
"""Seconds of a training run in addition to its steps: the start of its process, compilation and the report."""
START_EVALUATION = 12.0
"""Seconds of an evaluation in addition to its batches."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cost:
    """The estimated cost of a node."""

    steps: int
    input_tokens: int
    """Number of positions of the inputs of all steps: of an encoder-decoder, of its encoder."""
    flops: float
    overhead: float
    """Seconds in addition to the steps."""

    def minutes(self, rate: float) -> float:
        """Return the estimated minutes at `rate` FLOP/s of matrix products."""
        return (self.flops / (rate * EFFICIENCY) + self.overhead) / 60


def node_cost(node: Node, flops: float) -> Cost:
    """Return the cost of a node whose training steps take `flops` each; evaluations have no steps."""
    if node.task:
        return Cost(steps=0, input_tokens=0, flops=0.0, overhead=START_EVALUATION + node.seconds)
    run = node.config
    examples = run.data.sizes.examples(run.steps)
    # The FLOPs are those of a step of `data.batch` rows.
    used = flops * (examples / run.data.batch)
    return Cost(steps=run.steps, input_tokens=examples * run.data.length, flops=used, overhead=START + node.seconds)


def node_costs(grid: Grid) -> dict[str, Cost]:
    """Return the cost of every node by its name. Runs that differ in their seed alone are computed once."""
    configs = {node.run: node.config for node in grid.nodes if not node.task}
    return {node.name: node_cost(node, 0.0 if node.task else step_flops(node.config, configs)) for node in grid.nodes}


def step_flops(run: Run, parents: Mapping[str, Run] | None = None) -> float:
    """Return the matrix-product FLOPs of a training step, as the run itself records them.

    Args:
        parents: runs by folder, among them the teacher of `run`; without it, the teacher is read from its folder.
    """
    teacher = (parents or {}).get(run.teacher)
    plain = dataclasses.replace(run, seed=0, name="", init="")
    values = as_json(plain)
    if run.teacher:
        values["distillation"] = values["distillation"] | {"teacher": ""}
    key = json.dumps([values, teacher and as_json(dataclasses.replace(teacher, seed=0, name=""))])
    return _step_flops(key, _Hashed(plain), _Hashed(teacher))


@dataclasses.dataclass(frozen=True)
class _Hashed:
    """An argument that a cache ignores, because another argument is its key."""

    value: Run | None = dataclasses.field(compare=False)


@functools.lru_cache(maxsize=256)
def _step_flops(key: str, run_argument: _Hashed, teacher_argument: _Hashed) -> float:
    # Imported here, since JAX is not needed to declare and to check an experiment.
    from train import objectives
    from train.engine import device_mesh
    from train.inputs import synthetic_batch
    from zoo import models

    run, teacher = run_argument.value, teacher_argument.value
    assert run is not None
    with tempfile.TemporaryDirectory() as folder:
        if teacher is not None:
            RunDir(folder).write_config(teacher)
            distillation = dataclasses.replace(run.options.distillation, teacher=str(Path(folder)))
            run = dataclasses.replace(run, options=dataclasses.replace(run.options, distillation=distillation))
        # FLOPs do not depend on the dtype, but "auto" is not a dtype.
        run = synthetic_batch.resolve_config(dataclasses.replace(run, precision="float32"))
        mesh = device_mesh.make_mesh(run.mesh)
        objective_class = objectives.objective(run.objective)
        bind = getattr(objective_class, "bind_abstract", objective_class.bind)
        return float(bind(run, mesh).flops(models.model(run.model), synthetic_batch.batch(run)))


def total_minutes(grid: Grid, by_node: Mapping[str, Cost], rate: float) -> float:
    """Return the estimated minutes of a grid whose nodes run one after another."""
    return sum(by_node[node.name].minutes(rate) for node in grid.nodes)


def plan_lines(grid: Grid, by_node: Mapping[str, Cost], rate: float) -> list[str]:
    """Return a table of rows and stages: the runs, their FLOPs and minutes; and the sums."""
    lines = [f"{'row':20} {'stage':12} {'runs':>4} {'steps':>7} {'tokens':>8} {'FLOPs':>9} {'minutes':>8}"]
    groups: dict[tuple[str, str], list[Node]] = {}
    for node in grid.nodes:
        groups.setdefault((node.row or "all", node.stage), []).append(node)
    for (row, stage), nodes in groups.items():
        cost = by_node[nodes[0].name]
        flops, minutes = (
            sum(values(by_node[n.name]) for n in nodes) for values in (lambda c: c.flops, lambda c: c.minutes(rate))
        )
        head = f"{row:20} {stage:12} {len(nodes):4}"
        lines.append(f"{head} {cost.steps:7,} {cost.input_tokens / 1e6:7.2f}M {flops:9.2e} {minutes:8.1f}")
    flops, minutes = sum(cost.flops for cost in by_node.values()), total_minutes(grid, by_node, rate)
    runs = sum(not node.task for node in grid.nodes)
    lines.append(
        f"{runs} runs and {len(grid.nodes) - runs} evaluations, {flops:.2e} FLOPs, about {minutes:.0f} minutes one after another "
        f"at {rate / 1e9:.0f} GFLOP/s of matrix products, of which steps reach about {EFFICIENCY:.0%}"
    )
    return lines
