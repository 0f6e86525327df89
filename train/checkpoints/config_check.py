"""The check that a checkpoint was saved by a run with the same configuration."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from train.config.run_config import Run
from train.run.run_identity import run_identity
from zoo.errors import BadInput


def check_identity(checkpoint: Path, meta: Mapping[str, Any], run: Run) -> None:
    """Refuse a checkpoint that was saved by a run of another configuration.

    Args:
        checkpoint: its folder, for the message.
        meta: the JSON that was saved beside its arrays.
        run: the configuration now. Fields newer than the checkpoint are not compared, and a checkpoint may be from before the
            run was extended.

    Raises:
        BadInput: names every field that differs.
    """
    # Imported here: it imports JAX, and the command line reads configurations without it.
    from train.checkpoints.manifest import manifest_differences

    saved, current = meta.get("config", {}), run_identity(run)
    if saved.get("steps") in run.extended_from:
        current["steps"] = saved["steps"]
    if changed := manifest_differences(saved, {key: value for key, value in current.items() if key in saved}):
        fix = "put back the checkpoint and the config.json that belong together"
        raise BadInput(f"{checkpoint}: saved by a run of another configuration: {'; '.join(changed)}; {fix}")
