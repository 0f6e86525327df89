"""The pooling, prompts and normalization of a run's vectors: those that it trains, or those of the model that it begins with.

`zoo.embedding_modules` is imported by functions, because it needs numpy, and a recipe without --init does not.
"""

from typing import TYPE_CHECKING

from train.config.embedding_options import Contrastive, EmbeddingOptions, Similarity
from train.config.run_config import Run
from train.run.run_dir import modules_folder
from train.weights.resolve_model_name import resolve_model_name
from zoo.configs._pooling import DOCUMENT_NAMES, QUERY_NAMES
from zoo.errors import BadInput

if TYPE_CHECKING:
    from zoo.embedding_modules import EmbeddingModules

EMBEDDING_TASKS = ("body", "masked", "pretraining", "next", "permutation")
"""Tasks of encoders whose hidden states remain those of texts."""


def modules_of_run(run: Run) -> "EmbeddingModules | None":
    """Return the modules that belong into the folder of a run; None if its model has none.

    Raises:
        BadInput: see `zoo.embedding_modules.read_modules`.
    """
    from zoo.embedding_modules import EmbeddingModules, read_modules

    options = run.options
    if not isinstance(options, EmbeddingOptions):
        keeps = run.init and getattr(run.model, "task", "") in EMBEDDING_TASKS
        return read_modules(modules_folder(resolve_model_name(run.init))) if keeps else None
    group = getattr(options, run.objective)
    is_dot = isinstance(group, Contrastive) and not group.normalize
    sides = (QUERY_NAMES[0], DOCUMENT_NAMES[0])
    texts = (group.query_prompt, group.document_prompt) if isinstance(group, Contrastive) else ("", "")
    return EmbeddingModules(
        pool=group.pool,
        normalize=not is_dot,
        prompts={name: text for name, text in zip(sides, texts, strict=True) if text},
        similarity="dot" if is_dot else "cosine",
        longest=run.data.length,
    )


def contrastive_options(init: str) -> Contrastive:
    """Return the options of contrastive learning that continue the vectors of a model; the defaults for "".

    Raises:
        BadInput: see `_read_init_modules`.
    """
    if not init:
        return Contrastive()
    modules = _read_init_modules(init)
    return Contrastive(
        pool=modules.pool,
        normalize=modules.similarity != "dot",
        query_prompt=modules.side_prompt(QUERY_NAMES),
        document_prompt=modules.side_prompt(DOCUMENT_NAMES),
    )


def similarity_options(init: str) -> Similarity:
    """Return the options of learning scores that continue the vectors of a model; the defaults for "".

    Raises:
        BadInput: see `_read_init_modules`.
    """
    return Similarity(pool=_read_init_modules(init).pool) if init else Similarity()


def _read_init_modules(init: str) -> "EmbeddingModules":
    """Return the modules of a model; the defaults for a plain encoder.

    Raises:
        BadInput: it has dense layers or does not pool prompts, as no objective trains it; see also
            `zoo.embedding_modules.read_modules`.
    """
    from zoo.embedding_modules import EmbeddingModules, read_modules

    modules = read_modules(modules_folder(resolve_model_name(init))) or EmbeddingModules()
    if modules.dense:
        raise BadInput(f"--init {init}: its vectors have dense layers, which are not trained; remove them from its modules.json")
    if not modules.include_prompt:
        fix = "set include_prompt to true in its 1_Pooling/config.json"
        raise BadInput(f"--init {init}: its vectors leave out the tokens of prompts, which training pools; {fix}")
    return modules
