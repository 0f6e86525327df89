"""The result of a command that writes the folder of a model, for a user and as JSON."""

import dataclasses
from pathlib import Path
from typing import Any

from train.weights.load import Loaded
from zoo import configs, models
from zoo.json_text import print_json


@dataclasses.dataclass(frozen=True, kw_only=True)
class Written:
    """A result, as text and as JSON."""

    text: str
    """Lines for a user."""
    record: dict[str, Any]

    def show(self, *, as_json: bool) -> int:
        """Print the result on standard output, and return the exit code 0."""
        if as_json:
            print_json(self.record)
        else:
            print(self.text)
        return 0


def folder_record(target: Path | str, loaded: Loaded, **more: Any) -> dict[str, Any]:
    """Return a folder that holds a loaded model as JSON: its path, the names of its files, the model, and further facts."""
    cfg, folder = loaded.model.config, Path(target)
    return {
        "folder": str(target),
        "files": sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()),
        "family": loaded.model.family,
        "model": configs.published_name(cfg) or None,
        "parameters": models.parameter_count(cfg),
        "vocabulary": loaded.tokenizer.vocab_size,
        **more,
    }
