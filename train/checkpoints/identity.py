"""Whether a checkpoint was saved by a run of this configuration."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from train.config.run_config import Run
from train.run.run_dir import identity
from zoo.errors import BadInput


def check_identity(checkpoint: Path, meta: Mapping[str, Any], run: Run) -> None:
    """Refuse a checkpoint that was saved by a run of another configuration.

    Args:
        checkpoint: its folder, for the message.
        meta: what was saved beside its arrays.
        run: the configuration that is asked for. Fields newer than the checkpoint are not compared.

    Raises:
        BadInput: names every field that differs.
    """
    from train.checkpoints.manifest import (
        compare,  # which imports JAX, and the command line reads configurations without it
    )

    saved, asked = meta.get("config", {}), identity(run)
    if changed := compare(saved, {key: value for key, value in asked.items() if key in saved}):
        fix = "put back the checkpoint and the config.json that belong together"
        raise BadInput(f"{checkpoint}: saved by a run of another configuration: {'; '.join(changed)}; {fix}")
