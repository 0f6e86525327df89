"""The activation of a cross-encoder's scores, which sentence-transformers keeps beside the weights of a classifier.

Version 6 writes `activation_fn` into config_sentence_transformers.json, versions 4 and 5 into the object `sentence_transformers`
of config.json, and earlier ones wrote `sbert_ce_default_activation_function`. The newest of these takes precedence, as in the
library. Nothing here imports JAX.
"""

from pathlib import Path
from typing import Any, Literal

from zoo.embedding_modules import MODULES, PACKAGE, PROMPTS, TEXTS
from zoo.errors import BadInput
from zoo.file_access import read_regular
from zoo.hf.config_json import LARGEST_FILE, PublishedConfig, first_name, parse_json, read_json

ScoreActivation = Literal["identity", "sigmoid"]
"""The function of a logit that is the score of a pair; both keep the order of pairs."""
NEW, OLD, KEY = "sentence_transformers", "sbert_ce_default_activation_function", "activation_fn"
NAMES: dict[str, ScoreActivation] = {
    **{"torch.nn.modules.linear.Identity": "identity", "torch.nn.modules.activation.Sigmoid": "sigmoid"},
    **{"torch.nn.Identity": "identity", "torch.nn.Sigmoid": "sigmoid"},
}
"""Published names; the first one of each activation is written."""
VERSION = "4.0.0"
"""First version of the library that reads what `activation_entries` returns."""


def read_activation(folder: Path) -> ScoreActivation | None:
    """Return the activation that a folder of a classifier names; None if it names none, which is the sigmoid in the library.

    Raises:
        BadInput: another activation, prompts, further modules or settings of texts; the message names the file and the key.
    """
    published = PublishedConfig.load(folder)
    sections = [_model_settings(folder) if is_cross_encoder(folder) else None, published.subsection(NEW)]
    for section, key in (*((section, KEY) for section in sections), (published, OLD)):
        if section is not None and section.has(key):
            return section.choice(key, NAMES, "", why="this activation of scores is not supported, only")
    return None


def activation_entries(activation: ScoreActivation) -> dict[str, Any]:
    """Return the entries of a config.json that name an activation."""
    return {NEW: {KEY: first_name(NAMES, activation), "version": VERSION}}


def is_cross_encoder(folder: Path) -> bool:
    """Return whether a folder has the files of a cross-encoder that version 6 of the library writes."""
    file = folder / PROMPTS
    return file.exists() and read_json(file, LARGEST_FILE).get("model_type") == "CrossEncoder"


def _model_settings(folder: Path) -> PublishedConfig:
    """Return the content of config_sentence_transformers.json, after a check of this file and of those beside it."""
    settings = PublishedConfig(folder / PROMPTS, content := read_json(folder / PROMPTS, LARGEST_FILE))
    if content.get("prompts"):
        raise settings.wrong("prompts", content["prompts"], "a cross-encoder with prompts is not supported; remove them")
    if (file := folder / MODULES).exists():
        rows = parse_json(b'{"modules": ' + read_regular(file, LARGEST_FILE) + b"}", file)["modules"]
        kinds = [row.get("type") if isinstance(row, dict) else None for row in rows] if isinstance(rows, list) else []
        if len(kinds) != 1 or not str(kinds[0]).startswith(PACKAGE) or not str(kinds[0]).endswith(".Transformer"):
            names = ", ".join(str(kind).rpartition(".")[2] for kind in kinds)
            raise BadInput(
                f"{file}: the modules {names} of a cross-encoder are not supported, only Transformer; use another model"
            )
    if (file := folder / TEXTS[0]).exists():
        texts = PublishedConfig(file, content := read_json(file, LARGEST_FILE))
        for key in ("max_seq_length", "do_lower_case"):
            if content.get(key):
                fix = "this is not supported in a cross-encoder, whose tokenizer_config.json says it; remove the key"
                raise texts.wrong(key, content[key], fix)
    return settings
