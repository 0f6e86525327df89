"""The pooling, prompts and normalization of a run's vectors: those that it trains, or those of the model that it begins with.

`zoo.embedding_modules` is imported by functions, because it needs numpy, and a recipe without --init does not.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from train.config.embedding_options import Contrastive, EmbeddingOptions, Similarity
from train.config.late_interaction_options import LateInteraction, LateInteractionOptions
from train.config.ranking_options import Ranking
from train.config.run_config import Run
from train.config.sentence_denoising_options import SentenceDenoising
from train.run.run_dir import is_run, modules_folder, read_config
from train.weights.resolve_model_name import resolve_model_name
from zoo.configs._pooling import DOCUMENT_NAMES, QUERY_NAMES
from zoo.errors import BadInput, require
from zoo.multi_vector_files import PUNCTUATION

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
    if isinstance(options, LateInteractionOptions):
        return _multi_vector_modules(run, options.late_interaction)
    if not isinstance(options, EmbeddingOptions):
        keeps = run.init and getattr(run.model, "task", "") in EMBEDDING_TASKS
        modules = read_modules(modules_folder(resolve_model_name(run.init))) if keeps else None
        # The projection of a run's token vectors is a parameter that other objectives do not have.
        return None if modules is not None and modules.multi_vector and not modules.dense else modules
    group = getattr(options, run.objective)
    is_dot = isinstance(group, Contrastive) and not group.normalize
    similarity = group.similarity if isinstance(group, Ranking) else "dot" if is_dot else "cosine"
    sides = (QUERY_NAMES[0], DOCUMENT_NAMES[0])
    texts = (group.query_prompt, group.document_prompt) if isinstance(group, Contrastive | Ranking) else ("", "")
    return EmbeddingModules(
        pool=group.pool,
        normalize=similarity == "cosine",
        prompts={name: text for name, text in zip(sides, texts, strict=True) if text},
        similarity=similarity,
        longest=run.data.length,
    )


def _multi_vector_modules(run: Run, group: LateInteraction) -> "EmbeddingModules":
    """Return the modules of a run without its projection, which is a parameter."""
    from zoo.embedding_modules import EmbeddingModules
    from zoo.multi_vector_files import MultiVector

    texts = {QUERY_NAMES[0]: group.query_prompt, DOCUMENT_NAMES[0]: group.document_prompt}
    settings = MultiVector(
        query_length=group.query_length,
        document_length=run.data.length,
        query_expansion=group.query_expansion,
        attend_to_expansion_tokens=group.attend_to_expansion_tokens,
        skiplist_words=PUNCTUATION if group.skip_punctuation else (),
    )
    prompts = {name: text for name, text in texts.items() if text}
    return EmbeddingModules(normalize=True, prompts=prompts, longest=run.data.length, multi_vector=settings)


def late_interaction_options(init: str) -> LateInteraction:
    """Return the options of late interaction that continue the vectors of a model; the defaults for "" and a plain encoder.

    Raises:
        BadInput: see `_options_of_model`.
    """
    return (_options_of_model(init) if init else None) or LateInteraction()


def check_projection(run: Run) -> None:
    """Refuse other dimensions than those of the projection that a run of late interaction begins with.

    Raises:
        BadInput: names both; see also `_options_of_model`.
    """
    if isinstance(run.options, LateInteractionOptions) and (own := _options_of_model(run.init)) is not None:
        fix = f"the projection of --init {run.init} has {own.dimensions}; choose {own.dimensions}"
        chosen = run.options.late_interaction.dimensions
        require(chosen == own.dimensions, "late_interaction.dimensions", chosen, fix)


def _options_of_model(init: str) -> LateInteraction | None:
    """Return the options of late interaction of a model; None for a plain encoder.

    Raises:
        BadInput: the model has one vector for a text, several layers, or settings that no option has; see also
            `zoo.embedding_modules.read_modules`.
    """
    from zoo.embedding_modules import read_modules

    folder = modules_folder(resolve_model_name(init))
    if (modules := read_modules(folder)) is None:
        return None
    alone = "remove its modules.json to begin with the encoder alone"
    if (settings := modules.multi_vector) is None:
        raise BadInput(
            f"--init {init}: it has a Pooling, one vector for a text, and late interaction has one for a token; {alone}"
        )
    plain = [layer for layer in modules.dense if layer.bias is None and layer.activation == "identity"]
    if len(modules.dense) > 1 or len(plain) < len(modules.dense):
        raise BadInput(f"--init {init}: its layers are not one without bias and activation, which is trained; {alone}")
    if settings.skiplist_words not in ((), PUNCTUATION):
        raise BadInput(f"--init {init}: its skiplist_words are neither none nor the punctuation of ASCII; {alone}")
    if modules.dense:
        dimensions = len(modules.dense[0].kernel)
    elif is_run(folder.parent):
        # A run has its projection among its parameters.
        dimensions = _run_options(folder.parent).dimensions
    else:
        raise BadInput(f"--init {init}: it has no 1_Dense, the layer that is trained; {alone}")
    lengths: dict[str, Any] = {} if settings.query_length is None else {"query_length": settings.query_length}
    return LateInteraction(
        dimensions=dimensions,
        **lengths,
        query_expansion=settings.query_expansion,
        attend_to_expansion_tokens=settings.attend_to_expansion_tokens,
        skip_punctuation=bool(settings.skiplist_words),
        query_prompt=modules.side_prompt(QUERY_NAMES),
        document_prompt=modules.side_prompt(DOCUMENT_NAMES),
    )


def _run_options(path: Path) -> LateInteraction:
    options = read_config(path).options
    if not isinstance(options, LateInteractionOptions):
        raise BadInput(f"{path}/embedding: it has a vector for each token, and no 1_Dense; restore the folder of the run")
    return options.late_interaction


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


def ranking_options(init: str) -> Ranking:
    """Return the options of learning the ranking of texts that continue the vectors of a model; the defaults for "".

    Raises:
        BadInput: see `_read_init_modules`.
    """
    if not init:
        return Ranking()
    modules = _read_init_modules(init)
    return Ranking(
        pool=modules.pool,
        similarity=modules.similarity,
        query_prompt=modules.side_prompt(QUERY_NAMES),
        document_prompt=modules.side_prompt(DOCUMENT_NAMES),
    )


def similarity_options(init: str) -> Similarity:
    """Return the options of learning scores that continue the vectors of a model; the defaults for "".

    Raises:
        BadInput: see `_read_init_modules`.
    """
    return Similarity(pool=_read_init_modules(init).pool) if init else Similarity()


def sentence_denoising_options(init: str) -> SentenceDenoising:
    """Return the options of denoising sentences that continue the vectors of a model; the defaults for "".

    Raises:
        BadInput: see `_read_init_modules`.
    """
    return SentenceDenoising(pool=_read_init_modules(init).pool) if init else SentenceDenoising()


def _read_init_modules(init: str) -> "EmbeddingModules":
    """Return the modules of a model; the defaults for a plain encoder.

    Raises:
        BadInput: it has dense layers or does not pool prompts, as no objective trains it; see also
            `zoo.embedding_modules.read_modules`.
    """
    from zoo.embedding_modules import EmbeddingModules, read_modules

    modules = read_modules(modules_folder(resolve_model_name(init))) or EmbeddingModules()
    if modules.multi_vector:
        fix = "use embed-late-interaction, or the folder of an encoder alone"
        raise BadInput(f"--init {init}: it has a vector for each token, and this recipe trains one for a text; {fix}")
    if modules.dense:
        raise BadInput(f"--init {init}: its vectors have dense layers, which are not trained; remove them from its modules.json")
    if not modules.include_prompt:
        fix = "set include_prompt to true in its 1_Pooling/config.json"
        raise BadInput(f"--init {init}: its vectors leave out the tokens of prompts, which training pools; {fix}")
    return modules
