"""Loading a model for use from a run, a folder of published weights, or the hub."""

import dataclasses
import functools
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from train.checkpoints.checkpoints import Checkpoints
from train.checkpoints.config_check import check_identity
from train.config import run_config
from train.config.late_interaction_options import LateInteractionOptions
from train.config.sentence_denoising_options import SentenceDenoisingOptions
from train.engine import averages, device_mesh
from train.engine.optim import make_optimizer
from train.engine.sentence_decoder import DECODER, SentenceDecoder
from train.engine.state_init import all_params
from train.engine.token_projection import PROJECTION, token_projection
from train.engine.width_transfer import factors_of_run, transferred_params
from train.run.run_dir import RunDir, is_run, no_checkpoint, plugin_notices, read_config
from train.store import run_fetch
from train.tokenizers import hf_files
from train.tokenizers.tokenizer import Tokenizer
from train.weights import adapter_params, frozen_layers, param_parts
from train.weights.generation_settings import PublishedGeneration, read_generation
from train.weights.resolve_model_name import resolve_model_name
from train.weights.reward_scale import RewardScale, read_scale
from zoo import configs, models, published_weights
from zoo.errors import BadInput, printable, require
from zoo.hf.config_json import PublishedConfig
from zoo.models import Model

NEWEST = -1
"""Step number that means the newest intact checkpoint, also for a run that keeps a best one."""


@dataclasses.dataclass(frozen=True, eq=False)
class Loaded:
    """A model, its parameters and its tokenizer."""

    name: str
    """Name of the folder."""
    model: Model
    params: dict[str, Any]
    """Parameters in float32, sharded over `mesh`."""
    tokenizer: Tokenizer
    mesh: Mesh
    run: run_config.Run | None = None
    """The run whose checkpoint this is; None for published weights."""
    step: int | None = None
    """Step of that checkpoint."""
    reward_scale: RewardScale = RewardScale()
    """Normalization of a reward model's scores."""
    generation: PublishedGeneration | None = None
    """The settings of generation in its folder; None for a run without any."""
    source: str = ""
    """The source that it was loaded from, as the caller named it."""
    modules_folder: Path | None = None
    """The folder with the files of its embeddings, if it has any; see `zoo.embedding_modules`."""

    @property
    def where(self) -> str:
        """The model as messages name it, so that a command in one finds it."""
        return self.source or self.name


def load_model(where: str | Path, mesh: Mesh | None = None, step: int | None = None, adapter: str = "") -> Loaded:
    """Load a run's checkpoint, also one in an object store, a folder of published weights, or `hub:ID[@REVISION]`.

    Args:
        mesh: the devices for the parameters; None = all devices, a copy on each.
        step: the checkpoint of a run, or `NEWEST`; None = its best one, if it keeps one, else the newest intact one.
        adapter: folder of an adapter in peft's format, which is merged into the parameters; "" = none.

    Raises:
        BadInput: nothing complete to load there; see `zoo.hf.hub`, `zoo.published_weights` and `train.checkpoints.checkpoints`;
            or the adapter is of another model, see `zoo.lora.peft_files.read_peft_adapter`.
    """
    if adapter:
        loaded = load_model(where, mesh, step)
        params = adapter_params.with_adapter(loaded.model, loaded.mesh, loaded.params, Path(adapter))
        # A stored normalization is of other parameters.
        return dataclasses.replace(loaded, params=params, reward_scale=RewardScale())
    folder = resolve_model_name(str(where), step)
    mesh = device_mesh.make_mesh(run_config.Mesh()) if mesh is None else mesh
    if is_run(folder):
        return dataclasses.replace(_load_run(folder, mesh, step), source=str(where), modules_folder=RunDir(folder).embedding)
    if step is not None:
        raise BadInput(f"--step {step}: {folder} is not a run, so it has no checkpoints; remove --step")
    cfg, params = published_weights.load_published(folder, mesh, notify=_print_error)
    loaded = _check_entries(Loaded(folder.resolve().name, models.model(cfg), params, hf_files.read_tokenizer(folder), mesh))
    _check_padding(folder, loaded)
    return dataclasses.replace(
        loaded,
        reward_scale=read_scale(folder, None),
        generation=read_generation(folder),
        source=str(where),
        modules_folder=folder,
    )


def load_average(where: str, mesh: Mesh, last: int) -> Loaded:
    """Load a run with the mean of the parameters of its newest intact checkpoints (Vaswani et al. 2017, section 6.1).

    Raises:
        BadInput: not a run, or one with fewer checkpoints.
    """
    if not is_run(path := Path(run_fetch.local_name(where, all_steps=True))):
        raise BadInput(f"--last {last}: {where} is not a run, so it has no checkpoints; remove --last")
    keep = read_config(path).checkpoint.keep
    steps = Checkpoints(RunDir(path).checkpoints, keep, notify=_print_error).valid_steps()
    fix = f"{where} has {len(steps)} intact checkpoints; choose 1 to that, or train with a larger --checkpoint.keep"
    require(1 <= last <= len(steps), "last", last, fix)
    newest, *others = (load_model(where, mesh, step) for step in steps[:last])
    total = functools.reduce(lambda a, b: jax.tree.map(jnp.add, a, b), [loaded.params for loaded in others], newest.params)
    # A stored normalization is of other parameters.
    return dataclasses.replace(newest, params=jax.tree.map(lambda leaf: leaf / last, total), reward_scale=RewardScale())


def load_width(where: str, mesh: Mesh, width: float) -> Loaded:
    """Load a run with an average of its parameters at its newest step, of another width than those that it has computed.

    It is the sum of the averages of all kept checkpoints that is nearest to it: `train.engine.averages.synthesis_weights`.

    Raises:
        BadInput: not a run, or one without `--optim.average-widths`, or with frozen parameters.
    """
    local = Path(run_fetch.local_name(where, all_steps=True))
    run = read_config(local) if is_run(local) else None
    fix = f"{where} has no averages to make it from; name a run with --optim.average-widths"
    require(run is not None and bool(run.optim.average_widths), "average_width", width, fix)
    assert run is not None
    require(not run.has_frozen, "average_width", width, f"{where} has frozen parameters; leave it out")
    checkpoints = Checkpoints(RunDir(local).checkpoints, run.checkpoint.keep, notify=_print_error)
    steps, places = sorted(checkpoints.valid_steps()), range(len(run.optim.average_widths))
    if not steps:
        raise no_checkpoint(local)
    stored = [(step, place) for step in steps for place in places]
    exponents = np.array([averages.exponent_of_width(run.optim.average_widths[place]) for _, place in stored])
    counts, exponent = np.array([step for step, _ in stored], np.float64), averages.exponent_of_width(width)
    total: Any = None
    for (step, place), weight in zip(
        stored, averages.synthesis_weights(counts, exponents, float(steps[-1]), exponent).tolist(), strict=True
    ):
        trained, _, _ = _restore(local, checkpoints, run, mesh, step, place)
        part = jax.tree.map(lambda leaf, weight=weight: weight * leaf, trained)
        total = part if total is None else jax.tree.map(jnp.add, total, part)
    params = transferred_params(factors_of_run(run), total) if run.width_transfer else total
    # A stored normalization is of other parameters.
    return dataclasses.replace(load_model(where, mesh, NEWEST), params=params, reward_scale=RewardScale())


def _load_run(path: Path, mesh: Mesh, step: int | None) -> Loaded:
    run, folder = read_config(path), RunDir(path)
    for line in plugin_notices(path):
        print(f"! {printable(line)}", file=sys.stderr)
    params, step, meta = restore_params(path, run, mesh, step)
    tokenizer = Tokenizer.load(folder.tokenizer)
    if meta.get("tokenizer") != tokenizer.fingerprint:
        raise BadInput(f"{folder.tokenizer}: not the tokenizer that {path} was trained with; restore that one")
    scale = read_scale(path, step)
    model, generation = models.model(run.model), read_generation(path)
    return _check_entries(Loaded(path.resolve().name, model, params, tokenizer, mesh, run, step, scale, generation))


def restore_params(
    path: Path, run: run_config.Run, mesh: Mesh, step: int | None, *, scores: bool = False
) -> tuple[Any, int, dict[str, Any]]:
    """Return (the parameters of a run's model, trained and frozen ones joined; their step; the metadata of the checkpoint).

    Args:
        run: the configuration in the folder `path`.
        step: as in `load_model`.
        scores: return those too that only the scores of the objective read.

    Raises:
        BadInput: no intact checkpoint, or one of another configuration; or the run's frozen parameters are missing.
    """
    trained, number, meta = restore_trained(path, run, mesh, step, scores=scores)
    if run.width_transfer:
        return transferred_params(factors_of_run(run), trained), number, meta
    if (parts := frozen_layers.param_parts(run)) is None:
        return trained, number, meta
    base = param_parts.read_base(RunDir(path), parts, mesh, meta.get("base", ""), notify=_print_error)
    added = {name: trained.pop(name) for name in (PROJECTION, DECODER) if name in trained}
    return parts.joined(mesh, base, trained) | added, number, meta


def restore_trained(
    path: Path, run: run_config.Run, mesh: Mesh, step: int | None, *, scores: bool = False
) -> tuple[Any, int, dict[str, Any]]:
    """Return the same as `restore_params`, but only the trained parameters if the run has frozen ones."""
    source = open_checkpoints(path, run, step)
    # RUN/best has the average as its parameters.
    has_average = run.optim.has_average and source.folder != RunDir(path).best.absolute()
    return _restore(path, source, run, mesh, None if step == NEWEST else step, 0 if has_average else None, scores=scores)


def _restore(
    path: Path,
    source: Checkpoints,
    run: run_config.Run,
    mesh: Mesh,
    step: int | None,
    width: int | None,
    *,
    scores: bool = False,
) -> tuple[Any, int, dict[str, Any]]:
    """Return what `restore_trained` does, from some checkpoints.

    Args:
        step: None = the newest one.
        width: the place of an average; None = the parameters themselves.
    """
    parts = frozen_layers.param_parts(run)
    parameters = all_params(models.model(run.model)) if parts is None else parts.trained
    if isinstance(run.options, LateInteractionOptions):
        parameters = parameters.beside(token_projection(run.model.width, run.options.late_interaction.dimensions))
    if scores and isinstance(run.options, SentenceDenoisingOptions):
        decoder = SentenceDecoder(run.model, run.options.sentence_denoising.decoder_layers)
        parameters = parameters.beside(decoder.params())
    abstract = param_parts.abstract_params(parameters, mesh)
    counter = jax.ShapeDtypeStruct((), jnp.int32, sharding=NamedSharding(mesh, PartitionSpec()))
    stored = {"params": abstract}
    if width is not None:
        stored = averages.stored_average(jax.eval_shape(make_optimizer(run.optim).init, abstract), abstract, width)
    restored = source.restore({**stored, "step": counter}, step=step, partial=True)
    if restored is None:
        raise no_checkpoint(path)
    state, meta = restored
    check_identity(source.folder, meta, run)
    params = jax.tree.unflatten(jax.tree.structure(abstract), jax.tree.leaves([state[name] for name in stored]))
    return params, int(jax.device_get(state["step"])), meta


def _print_error(line: str) -> None:
    print(printable(line), file=sys.stderr)


def open_checkpoints(path: Path, run: run_config.Run, step: int | None = None) -> Checkpoints:
    """Return a run's checkpoints for reading: RUN/best if it has the step, or no step is requested, else RUN/checkpoints.

    Raises:
        BadInput: a step below `NEWEST`.
    """
    require(step is None or step >= NEWEST, "step", step, "choose the step of a checkpoint, or -1 for the newest one")
    folder, keep = RunDir(path), run.checkpoint.keep

    def reader(folder: Path) -> Checkpoints:
        return Checkpoints(folder, keep, notify=_print_error)

    best = reader(folder.best).latest() if run.selection.best else None
    return reader(folder.checkpoints if best is None or step not in (None, best) else folder.best)


def _check_padding(folder: Path, loaded: Loaded) -> None:
    """Refuse a published model whose padding id differs from its tokenizer's, in families whose results depend on it.

    RoBERTa counts positions from the padding id, and the decoders of T5 and Marian begin with it.
    """
    default = getattr(configs.family(loaded.model.family), "PADDING", None)
    own = loaded.tokenizer.text_special_tokens or loaded.tokenizer.special_tokens
    if default is None or own is None:
        return
    content = PublishedConfig.load(folder)
    if (padding := content.integer("pad_token_id", default, least=0)) != own.pad:
        raise content.wrong("pad_token_id", padding, f"its tokenizer pads with {own.pad}; use the files of one model")


def _check_entries(loaded: Loaded) -> Loaded:
    entries, vocabulary = loaded.tokenizer.vocab_size, loaded.model.config.vocab
    if entries > vocabulary:
        raise BadInput(
            f"{loaded.name}: its tokenizer has {entries:,} entries and its model a vocabulary of {vocabulary:,}; "
            "use the tokenizer that the model was trained with"
        )
    return loaded
