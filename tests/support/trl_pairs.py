"""Token ids of preferences as TRL prepares them. `python -m tests.support.trl_pairs` writes them to `tests/golden`."""

import json
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tests.golden import make
from tests.support.chat import CHATML, chat_tokenizer, turns
from train.tokenizers import hf_files
from train.tokenizers.chat_template import TEMPLATE
from train.tokenizers.tokenizer import Tokenizer

FILE = make.FOLDER / "preference_ids.json"
TEMPLATES = {"chatml": CHATML, "built in": TEMPLATE}


def _listed(*contents: str, system: str = "", first: str = "user") -> list[dict[str, str]]:
    messages = turns(*contents, system=system) if first == "user" else turns("", *contents)[1:]
    return [message._asdict() for message in messages]


def _pair(prompt: list[dict[str, str]], chosen: tuple[str, ...], rejected: tuple[str, ...]) -> dict[str, Any]:
    sides = {"chosen": _listed(*chosen, first="assistant"), "rejected": _listed(*rejected, first="assistant")}
    return {"prompt": prompt, **sides}


PAIRS = (
    _pair(_listed("What is white?"), ("The whale.",), ("A ship, a \U0001f40b.",)),
    _pair(_listed("One.", "Two.", "Three?", system="Count & <be> brief."), ("Four!",), ("line\n\nline",)),
    _pair(_listed("Who?"), ("naïve", "Why?", "'quoted'"), ("I.",)),
)
"""Explicit prompts with conversational completions; the second has a system message, the third a completion of three turns."""
TEXTS = (
    {"prompt": "What is white?", "chosen": " The whale.", "rejected": " A ship."},
    {"prompt": "Count:\n", "chosen": "one two", "rejected": "one"},
)
"""Explicit prompts in standard form."""


def implicit(pair: dict[str, Any]) -> dict[str, Any]:
    """Return a pair without its prompt, with which both sides begin."""
    return {name: pair["prompt"] + pair[name] for name in ("chosen", "rejected")}


def published_tokenizer(tokenizer: Tokenizer, template: str) -> Any:
    """Return the tokenizer of `transformers` that an export of a tokenizer gives, with a chat template."""
    from transformers import AutoTokenizer

    with tempfile.TemporaryDirectory() as folder:
        hf_files.write_tokenizer(Path(folder), tokenizer.with_files(tokenizer.settings, template), longest=None)
        return AutoTokenizer.from_pretrained(folder)


def prepared(theirs: Any, rows: list[dict[str, Any]], objective: str = "dpo") -> list[dict[str, Any]]:
    """Return the rows of the data set that TRL's trainer of an objective makes of `rows`.

    They have prompt_ids, and chosen_ids and rejected_ids (kto: completion_ids).
    """
    import datasets
    from trl.trainer.dpo_trainer import DPOTrainer
    from trl.trainer.kto_trainer import KTOTrainer

    datasets.disable_progress_bars()
    trainer: Any = {"dpo": DPOTrainer, "kto": KTOTrainer}[objective]
    options = SimpleNamespace(dataset_num_proc=None, max_length=None, truncation_mode="keep_start")
    own = SimpleNamespace(_tokenizer=theirs, calculate_KL=False)
    return trainer._prepare_dataset(own, datasets.Dataset.from_list(rows), theirs, options, "eval").to_list()


def token_ids() -> dict[str, list[dict[str, list[int]]]]:
    """Return the ids of the sides of `PAIRS` by each of `TEMPLATES`, and those of `TEXTS`."""
    result = {}
    for name, source in TEMPLATES.items():
        theirs = published_tokenizer(chat_tokenizer(), source)
        result[name] = prepared(theirs, list(PAIRS))
    result["texts"] = prepared(published_tokenizer(chat_tokenizer(), TEMPLATE), list(TEXTS))
    return {name: [{key: row[key] for key in row if key.endswith("_ids")} for row in rows] for name, rows in result.items()}


def main() -> None:
    """Write the ids."""
    import trl

    content = {"trl": trl.__version__, **make.versions(), "ids": token_ids()}
    FILE.write_text(json.dumps(content, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
