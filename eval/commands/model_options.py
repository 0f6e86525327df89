"""The options that `zoo embed`, `fill-mask`, `generate` and `predict` share; importing this module does not import JAX."""

import dataclasses
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from train.config.run_config import Machine, Mesh, Precision

if TYPE_CHECKING:
    from train.weights.load import Loaded


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """A model, and how it is computed."""

    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN|DIR")]
    """Folder of a run or of published weights, or hub:ID."""
    step: int | None = None
    """Step of the checkpoint to use. None = the best checkpoint if the run keeps one, else the newest; -1 = the newest."""
    adapter: str = ""
    """Folder of a LoRA adapter in peft's format for this model, which is merged into its parameters; empty = none."""
    batch: int = 16
    """Number of rows, each of the model's full length, that are computed at once; it changes results only by rounding."""
    precision: Precision = "auto"
    """Dtype of the arithmetic. auto: float32 on CPU, else bfloat16; predict: that of the run, if the model is a run."""
    mesh: Mesh = dataclasses.field(default_factory=Mesh)
    machine: Annotated[Machine, tyro.conf.arg(name="", prefix_name=False)] = dataclasses.field(default_factory=Machine)

    def load(self) -> "Loaded":
        """Load the model onto the devices of the mesh; see `train.weights.load.load_model`."""
        from train.engine import device_mesh
        from train.weights import load

        return load.load_model(self.source, device_mesh.make_mesh(self.mesh), self.step, self.adapter)

    def dtype(self, own: Precision = "auto") -> Any:
        """Return the dtype of the arithmetic; `own` is the model's precision, which "auto" selects."""
        from zoo.precision import resolve_dtype

        return resolve_dtype(self.precision, default=own)
