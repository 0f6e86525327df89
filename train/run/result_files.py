"""The results of a run as JSON files: the shape that each must have, and the one way to read them."""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from train.run.metric_definitions import METRICS
from train.run.run_dir import RunDir, write_json
from zoo.errors import BadInput
from zoo.json_shapes import Number, read_shaped_json

SHAPES: dict[str, Any] = {
    "scores.json": {f"{name}?": Number for name in METRICS},
    "evaluations.json": {
        str: {
            **{"step": int | None, "metrics": {str: Number}, "examples": int, "details?": {str: object}},
            **{"fingerprint?": {str: object}, "tokenizer?": str, "per_token?": [str], "settings?": {str: object}},
        }
    },
    "predictions.json": {
        "labels": [str],
        "confusion": [[int]],
        "worst": [{"text": str, "pair": str, "truth": str, "found": str, "loss": Number}],
    },
    "samples.json": {
        "step": int,
        "temperature?": Number,
        "samples": [{"prompt": str, "text": str, "truth": str}],
        "alignment?": {"source": [str], "text": [str], "weights": [[Number]]},
    },
    "failure.json": {"reason": str, "at": Number},
    "data.json": [{"name": str, "weight": Number, "tokens": int, "rows": int, "share": Number, "epochs": Number}],
}
"""Name of a file -> its shape, see `zoo.json_shapes`.

predictions.json has the names of classes, and the numbers of examples by true class (rows) and predicted class (columns), both
empty for a model that does not classify; and examples, the greatest loss first, with `pair` "" if there is no second text.
"""
LONGEST_REASON = 1000
"""Characters of the reason of a failure that are kept."""
REWRITE = "create it again, or remove it"
"""The fix for a file with other content, unless its reader has a better one."""


def read_result(path: Path, fix: str = REWRITE) -> Any:
    """Return the content of one of the files that `SHAPES` describes; None if it does not exist.

    Args:
        fix: what to do about a file with other content, for the message.

    Raises:
        BadInput: it is not valid JSON, or has another shape.
    """
    return read_shaped_json(path, SHAPES[path.name], fix)


@contextlib.contextmanager
def failure_recorded(folder: RunDir, process: int) -> Iterator[None]:
    """Write failure.json if the block raises an error, and remove that of an earlier start; the block trains a claimed run.

    The file has the `reason` in one line and the Unix time. A run that is interrupted by a signal or killed has not failed, and
    continues. Process 0 writes.
    """
    if process == 0:
        folder.failure.unlink(missing_ok=True)
    try:
        yield
    except Exception as error:
        if process == 0:
            text = " ".join(str(error).split())
            reason = text if isinstance(error, BadInput) else f"{type(error).__name__}: {text}"
            with contextlib.suppress(BadInput):  # as on a full disk, on which the run may have failed
                write_json(folder.failure, {"reason": reason[:LONGEST_REASON], "at": time.time()})
        raise
