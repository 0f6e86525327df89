"""The metadata of a model card, by which the Hugging Face hub files a model: the YAML at the head of README.md.

The keys: https://huggingface.co/docs/hub/model-cards.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval.model_card.card_scores import Score
from train.config.run_config import Run
from train.weights.import_export import Exported
from zoo import configs
from zoo.embedding_modules import MODULES, PROMPTS
from zoo.hf import hub
from zoo.hf.config_json import FILE, LARGEST_FILE, read_json
from zoo.lora import adapter_config
from zoo.multi_vector_files import PYLATE

TASKS = {
    **{"ForCausalLM": "text-generation", "LMHeadModel": "text-generation", "MTModel": "translation"},
    **{"ForConditionalGeneration": "text2text-generation", "ForMaskedLM": "fill-mask", "ForPreTraining": "fill-mask"},
    **{"ForSequenceClassification": "text-classification", "ForTokenClassification": "token-classification"},
    **{"ForQuestionAnswering": "question-answering", "ForQuestionAnsweringSimple": "question-answering"},
    **{"ForMultipleChoice": "multiple-choice", "EncoderModel": "feature-extraction", "Model": "feature-extraction"},
}
"""End of the name of a class of `transformers` -> its task on the hub, `PIPELINE_DATA` in packages/tasks/src/pipelines.ts of
huggingface.js. The hub has no name for other heads, such as that for pairs of consecutive sentences."""
ADAPTER_TASKS = {
    **{"CAUSAL_LM": "text-generation", "SEQ_2_SEQ_LM": "text2text-generation", "SEQ_CLS": "text-classification"},
    **{"TOKEN_CLS": "token-classification", "QUESTION_ANS": "question-answering", "FEATURE_EXTRACTION": "feature-extraction"},
}
"""Task of an adapter in peft -> the same."""
CROSS_ENCODER = "sentence_transformers"
"""Key of the config.json of a cross-encoder."""
METRIC_IDS = {
    **{"matthews": "matthews_correlation", "pearson": "pearsonr", "spearman": "spearmanr", "mean_squared_error": "mse"},
    **{"exact": "exact_match", "f1_micro": "f1", "f1_macro": "f1", "entity_f1": "seqeval", "rouge1": "rouge"},
    **{"rouge2": "rouge", "rougeL": "rouge"},
}
"""Metric -> its id in https://huggingface.co/metrics, where that is another one."""


def library_and_task(folder: Path) -> tuple[str, str | None]:
    """Return the library that loads an exported folder, and the task of its model on the hub, None if that has no name for it."""
    if (folder / adapter_config.CONFIG).exists():
        task = read_json(folder / adapter_config.CONFIG, LARGEST_FILE).get("task_type")
        return "peft", ADAPTER_TASKS.get(task or "")
    content = read_json(folder / FILE, LARGEST_FILE)
    if CROSS_ENCODER in content:
        return "sentence-transformers", "text-ranking"
    if (folder / MODULES).exists():
        is_pylate = read_json(folder / PROMPTS, LARGEST_FILE).get("model_type") == PYLATE
        return "PyLate" if is_pylate else "sentence-transformers", "sentence-similarity"
    name = content["architectures"][0]
    # The longest end decides: BertForMaskedLM, not LM.
    ends = [end for end in TASKS if name.endswith(end)]
    return "transformers", TASKS[max(ends, key=len)] if ends else None


def hub_datasets(run: Run) -> list[str]:
    """Return the ids of the data sets of the hub that a run was trained or validated on."""
    names = [name for name in (*run.data.paths, *run.data.valid_paths) if name.startswith(hub.PREFIX)]
    ids = [name.removeprefix(hub.PREFIX).partition("@")[0] for name in names]
    return list(dict.fromkeys(name for name in ids if hub.is_hub_id(name)))


def base_model(exported: Exported, parents: dict[str, Any]) -> str:
    """Return the model of the hub that the weights began with, as ORG/NAME@COMMIT or ORG/NAME; "" if there is none on record.

    Args:
        parents: the record of `train.weights.lineage`, in the metadata of the checkpoint.
    """
    if exported.run is None:
        return exported.origin
    recorded = parents.get("init", {}).get("hub", "")
    is_named = exported.run.init.startswith(hub.PREFIX)
    name = recorded or (exported.run.init.removeprefix(hub.PREFIX) if is_named else "")
    return name if hub.is_hub_id(name.partition("@")[0]) else ""


def card_metadata(
    folder: Path, exported: Exported, scores: Sequence[Score], *, name: str, license_id: str, base: str
) -> dict[str, Any]:
    """Return the metadata of a card, without keys that nothing is known for: the language of the data, for example.

    Args:
        folder: the exported folder.
        license_id: "" = no licence.
        base: see `base_model`.
    """
    from huggingface_hub import EvalResult, ModelCardData

    library, task = library_and_task(folder)
    run = exported.run
    datasets = [] if run is None else hub_datasets(run)
    tags = ["transformer-zoo", configs.family_of(exported.config), *([] if run is None else [run.objective])]
    results = [
        EvalResult(
            task_type=task or "other",
            dataset_type=_slug(score.task or "held-out"),
            dataset_name=score.task or "held-out data of the run",
            metric_type=METRIC_IDS.get(score.metric, score.metric),
            metric_name=score.title,
            metric_value=score.value,
        )
        for score in scores
    ]
    data = ModelCardData(
        license=license_id or None,
        library_name=library,
        pipeline_tag=task,
        base_model=base.partition("@")[0] or None,
        datasets=datasets or None,
        tags=[_slug(tag) for tag in tags],
        model_name=name if results else None,
        eval_results=results or None,
    )
    return data.to_dict()


def _slug(text: str) -> str:
    """Return a text as an id: lower-case letters, digits, '_' and '-'."""
    return re.sub(r"[^a-z0-9_]+", "-", text.lower()).strip("-") or "other"
