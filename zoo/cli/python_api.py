"""The Python interface of the zoo; `import zoo` offers these names and imports this module when one of them is used."""

import dataclasses
import difflib
import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from zoo import plugins
from zoo import trust as permissions
from zoo.cli import early_checks
from zoo.cli.trust_option import trust_folder
from zoo.errors import BadInput, require

if TYPE_CHECKING:
    from jax.sharding import Mesh
    from jaxtyping import Array, Float, Float32

    from eval.generation.generator import Generator
    from train.config.run_config import Run
    from train.tokenizers.tokenizer import Tokenizer
    from train.weights.load import Loaded
    from zoo.models import Model


Ids = Sequence[int] | np.ndarray
"""Token ids of one text."""
FIX = "pass another value"
"""End of the message about an argument of another type."""


class LoadedModel:
    """A model with its parameters and its tokenizer, as `load` returns it."""

    def __init__(self, loaded: "Loaded", batch: int = 16) -> None:
        """Wrap a loaded model, which computes `batch` rows at a time."""
        self._loaded, self._batch = loaded, batch
        self._generator: Generator | None = None

    @property
    def model(self) -> "Model":
        """The configuration with its functions `apply`, `unembed`, `decode` and others."""
        return self._loaded.model

    @property
    def config(self) -> Any:
        """The configuration of the model, a frozen dataclass of `zoo.configs`."""
        return self.model.config

    @property
    def params(self) -> dict[str, Any]:
        """Nested dict of float32 arrays, laid out over `mesh`."""
        return self._loaded.params

    @property
    def mesh(self) -> "Mesh":
        """The devices that the parameters are laid out over."""
        return self._loaded.mesh

    @property
    def tokenizer(self) -> "Tokenizer":
        """The tokenizer that the model was trained with."""
        return self._loaded.tokenizer

    @property
    def run(self) -> "Run | None":
        """The configuration of the run; None for published weights."""
        return self._loaded.run

    @property
    def step(self) -> int | None:
        """The step of the checkpoint; None for published weights."""
        return self._loaded.step

    def __repr__(self) -> str:
        at = "" if self.step is None else f", step {self.step:,}"
        return f"<LoadedModel {self._loaded.name}: {self.model.family}{at}>"

    def logits(self, text: str | Ids, target: str | Ids | None = None) -> "Float[Array, 'T V']":
        """Return float32 logits over the vocabulary at each position of one text.

        Args:
            text: a text, which an encoder reads between its special tokens, or the token ids as they are.
            target: what the decoder of an encoder-decoder reads; for other models None.

        Raises:
            BadInput: the model predicts no tokens, or `target` is missing or not applicable.
        """
        import jax
        import jax.numpy as jnp

        from train.engine import device_mesh
        from zoo.batch import Batch

        model = self.model
        fix = "an encoder-decoder needs a target, and other models accept none"
        require(model.is_encoder_decoder == (target is not None), "target", target, fix)
        if not (model.generates or {"masked", "unembed"} & self.params.keys()):
            raise BadInput(f"{self._loaded.name}: a {model.family} for the task {model.task} has no head that predicts tokens")
        # The mesh divides the rows of a batch, so the text is repeated.
        rows = device_mesh.round_up_rows(self.mesh, 1)

        def batch(text: str | Ids, **fields: Any) -> Batch:
            return Batch(tokens=jnp.tile(self._ids(text), (rows, 1)), **fields)

        inputs = batch(text) if target is None else batch(target, source=batch(text))
        with jax.set_mesh(self.mesh):
            hidden = model.apply(self.params, inputs).hidden
            return model.unembed(self.params, hidden[:1])[0, :, : self.config.vocab]

    def generate(self, prompts: str | Sequence[str], **settings: Any) -> Any:
        """Continue a prompt, or each of several, and return the new text, or a list of texts.

        Args:
            settings: fields of `eval.generation.generation_options.Decoding` and of `Sampling` and `Beams` in
                `zoo.generation.decoding_settings`: limit (new tokens at most), stop, samples, seed, temperature, top_k, top_p,
                beams, ... With `samples` above 1 the texts of a prompt follow each other.

        Raises:
            BadInput: an unknown setting or a value out of range, an empty prompt, or a model that does not generate.
        """
        import jax.numpy as jnp

        from eval.generation.generator import Generator

        decoding, several = _decoding(settings), not isinstance(prompts, str)
        if self._generator is None:
            loaded = self._loaded
            self._generator = Generator(
                loaded.model, loaded.params, loaded.mesh, loaded.tokenizer, dtype=jnp.float32, batch=self._batch
            )
        # The source of an encoder-decoder is a complete text, which ends with its end-of-sequence token.
        end = [self.tokenizer.end_of_text] if self.model.is_encoder_decoder else []
        texts = [prompts] if isinstance(prompts, str) else list(prompts)
        ids = [np.array([*tokens, *end], np.int32) for tokens in self.tokenizer.encode_many(texts)]
        results = [result.text for result in self._generator.generate(ids, decoding)]
        return results if several or decoding.samples > 1 else results[0]

    def predict(self, texts: str | Sequence[str], **options: Any) -> Any:
        """Return the prediction of a fine-tuned model for a text, or a list of predictions for several.

        Args:
            options: `pair`, `context`, `options` and others of `eval.commands.predict.predict`, which describes the result.

        Raises:
            BadInput: a model without a head for labels, or texts that do not fit its kind.
        """
        from eval.commands.predict import predict

        several = not isinstance(texts, str)
        results = list(predict(self._loaded, texts=list(texts) if several else [texts], batch=self._batch, **options))
        return results if several else results[0]

    def embed(self, texts: str | Sequence[str], *, pool: str = "mean", normalize: bool = False) -> "Float32[np.ndarray, '...']":
        """Return the float32 vector [D] of a text from an encoder's last layer, or those of several texts [N, D].

        Args:
            pool: "mean" over all tokens, special ones included; "cls", the first special token's.
            normalize: divide each vector by its Euclidean length.

        Raises:
            BadInput: a model that is not an encoder, or a text that is too long.
        """
        from eval.commands.embed import embed
        from eval.scoring.encoder_runner import Encoder, Text

        require(pool in ("mean", "cls"), "pool", pool, "choose mean or cls")
        several = not isinstance(texts, str)
        named = [Text(f"text {number}", text) for number, text in enumerate(texts if several else [texts], 1)]
        encoder = Encoder.of(self._loaded, batch=self._batch, dtype="float32")
        vectors = embed(encoder, named, pool=pool, normalize=normalize)  # pyright: ignore[reportArgumentType]
        return vectors if several else vectors[0]

    def export(self, folder: str | Path) -> Path:
        """Write config.json, safetensors and the tokenizer's files, as `transformers` reads them, to a new folder.

        Raises:
            BadInput: the folder exists, or the model has no published form.
        """
        from train.weights import import_export

        return import_export.write_folder(Path(folder), self._loaded)

    def _ids(self, text: str | Ids) -> np.ndarray:
        if isinstance(text, str):
            ids = np.asarray(self.tokenizer.encode(text), np.int32)
            special = None if self.model.generates else self.tokenizer.special_tokens
            ids = ids if special is None else special.single(ids)[0]
        else:
            ids = np.asarray(text, np.int32)
        require(ids.ndim == 1 and ids.size > 0, "text", repr(text), "pass a text, or the ids of one, with a token or more")
        return ids


def load(
    source: str | Path,
    *,
    mesh: Mapping[str, int] | None = None,
    step: int | None = None,
    batch: int = 16,
    trust: bool = False,
) -> LoadedModel:
    """Load a run's checkpoint, a folder of published weights, or `hub:ID[@REVISION]` from the local cache of the hub.

    Args:
        mesh: devices along the axes data, fsdp and tensor ({"fsdp": 2}); None = all devices, a copy of the parameters on each.
        step: the checkpoint of a run; None = the best one of a run that keeps it, else the newest; -1 = the newest.
        batch: rows computed at a time by the methods of the model.
        trust: permit the code of others that the folder names, from now on, as --trust does.

    Raises:
        BadInput: there is nothing to load under this name, or it names code of others, and `trust` was never True.
    """
    early_checks.check_packages()
    permissions.permit([str(source)])
    if trust:
        trust_folder(str(source))
    from zoo.runtime import jax_setup

    jax_setup.prepare()
    from train.config.run_config import Mesh
    from train.engine import device_mesh
    from train.weights.load import load as load_folder

    shape = device_mesh.make_mesh(_fields(Mesh, dict(mesh or {}), "mesh"))
    return LoadedModel(load_folder(source, shape, step), batch)


def model(size: str | Any) -> "Model":
    """Return the functions of a model for a training loop of your own: `init`, `apply`, `unembed`, ... It has no parameters.

    Args:
        size: the name of a size (see `sizes`), or a configuration, such as `dataclasses.replace(sizes()["gpt2"], layers=6)`.

    Raises:
        BadInput: no size has this name, or the object is no configuration.
    """
    early_checks.check_packages()
    from zoo import configs, models
    from zoo.runtime import jax_setup

    jax_setup.prepare()
    config = configs.find_size(size)[1].config if isinstance(size, str) else size
    is_config = dataclasses.is_dataclass(config) and not isinstance(config, type) and hasattr(config, "vocab")
    require(is_config, "size", config, "pass the name of a size, or a configuration of `zoo.configs`")
    return models.model(config)


def train(recipe: str = "gpt-nano", **options: Any) -> Path:
    """Train a recipe to its end, continuing the run of this name if there is one, and return the run's folder.

    Args:
        options: options of `zoo train RECIPE --help`. Those with a dot are nested or quoted:
            `train("gpt-nano", steps=20, data={"batch": 8})` or `train("gpt-nano", **{"steps": 20, "data.batch": 8})`.

    Raises:
        BadInput: an unknown recipe or option, a value that does not fit, or data that cannot be read.
        SystemExit: a signal stopped the run, with 128 + its number; the same call continues it.
    """
    early_checks.check_packages()
    from zoo.cli.commands.train import parse_run, train_here
    from zoo.runtime import jax_setup

    arguments = list(_arguments(options))
    run = parse_run(recipe, arguments)
    require(run.machine.processes == 1, "processes", run.machine.processes, "several processes are started by `zoo train`")
    jax_setup.prepare(run.machine.devices)
    if code := train_here(run):
        raise SystemExit(code)
    from train.run.run_dir import RunDir

    return RunDir.of(run).path


def recipes() -> dict[str, str]:
    """Return the first line of the description of every recipe, by name; for one of a plug-in, its distribution."""
    early_checks.check_packages()
    from train.recipes import recipes as functions

    own = {name: (inspect.getdoc(function) or "").partition("\n")[0] for name, function in sorted(functions().items())}
    return own | {plugin.name: f"Plug-in of {plugin.origin}." for plugin in plugins.installed("zoo.recipes")}


def sizes() -> dict[str, Any]:
    """Return the configuration of every published size of the zoo, by name."""
    from zoo import configs

    return {name: size.config for family in configs.families() for name, size in configs.family(family).SIZES.items()}


def _arguments(options: Mapping[str, Any], prefix: str = "") -> "list[str]":
    """Return options as the words of a command line."""
    words: list[str] = []
    for key, value in options.items():
        *groups, name = f"{prefix}{key}".replace("_", "-").split(".")
        option = "--" + ".".join([*groups, name])
        if isinstance(value, Mapping):
            words += _arguments(value, f"{prefix}{key}.")
        elif isinstance(value, bool):
            words.append(option if value else "--" + ".".join([*groups, f"no-{name}"]))
        elif isinstance(value, list | tuple):
            words += [option, *map(str, value)]
        else:
            words.append(f"{option}={value}")
    return words


def _decoding(settings: Mapping[str, Any]) -> Any:
    """Return `Decoding` with settings that are named without their group."""
    from eval.generation.generation_options import Decoding
    from train.config.from_json import from_json
    from zoo.generation.decoding_settings import Beams, Sampling

    groups: dict[str, Any] = {"sampling": Sampling, "search": Beams}
    names = {name: {field.name for field in dataclasses.fields(kind)} for name, kind in groups.items()}
    own = {field.name for field in dataclasses.fields(Decoding)} - groups.keys()
    _check_names(settings, own.union(*names.values()), "generate")
    values = {key: [value] if key == "stop" and isinstance(value, str) else value for key, value in settings.items()}
    values = {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}
    parts = {
        name: from_json(kind, {key: values[key] for key in values if key in names[name]}, "", fix=FIX)
        for name, kind in groups.items()
    }
    return dataclasses.replace(from_json(Decoding, {key: values[key] for key in values if key in own}, "", fix=FIX), **parts)


def _fields(kind: Any, values: Mapping[str, Any], name: str) -> Any:
    from train.config.from_json import from_json

    _check_names(values, {field.name for field in dataclasses.fields(kind)}, name)
    return from_json(kind, dict(values), name, fix=FIX)


def _check_names(settings: Mapping[str, Any], names: set[str], where: str) -> None:
    for name in settings:
        if name not in names:
            near = difflib.get_close_matches(name, sorted(names), n=1)
            nearest = f"the nearest is {near[0]}; " if near else ""
            raise BadInput(f"{where}: there is no setting {name!r}; {nearest}choose {', '.join(sorted(names))}")
