"""The files that sentence-transformers puts beside an encoder: how its hidden states become the vector of a text.

`modules.json` lists the modules in order: the encoder, `1_Pooling`, any number of `2_Dense`, `3_Normalize`. The settings of texts
are in `config_sentence_transformers.json` (prompts, similarity) and `sentence_bert_config.json` (longest text, lower case). The
format is that of sentence-transformers 2 to 6; what it allows beyond this is refused by name. A model with a vector for each
token has `1_Dense` and no pooling, or the files of ColBERT's own code, see `zoo.multi_vector_files`. Nothing here imports JAX.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import numpy as np

from zoo.configs._pooling import DenseActivation, Pool, Similarity
from zoo.errors import BadInput
from zoo.file_access import read_regular
from zoo.hf import safetensors_dir
from zoo.hf.config_json import FILE, LARGEST_FILE, PublishedConfig, first_name, parse_json, read_json
from zoo.hf.safetensors_dir import Tensor
from zoo.multi_vector_files import (
    LAYER,
    MASK,
    METADATA,
    NATIVE,
    PYLATE,
    MultiVector,
    is_original,
    multi_vector_entries,
    read_multi_vector,
    read_original,
    read_prefixed_prompts,
)

MODULES, PROMPTS = "modules.json", "config_sentence_transformers.json"
TEXTS = tuple(f"sentence_{name}_config.json" for name in ("bert", "roberta", "distilbert", "camembert", "xlm-roberta", "xlnet"))
"""Names of the file with the longest text; the first is the one that is written."""
PACKAGE, PYLATE_PACKAGE = "sentence_transformers.", "pylate."
ORDER = ("Transformer", "Pooling", "Dense", "Normalize")
"""Classes of modules that are read, in the only order in which they are."""
POOLS: dict[str, Pool] = {
    **{"mean": "mean", "cls": "cls", "lasttoken": "last", "max": "max"},
    **{"weightedmean": "weighted_mean", "mean_sqrt_len_tokens": "mean_sqrt"},
}
"""Values of the key `pooling_mode`."""
FLAGS: dict[str, Pool] = {
    **{"pooling_mode_cls_token": "cls", "pooling_mode_mean_tokens": "mean", "pooling_mode_max_tokens": "max"},
    **{"pooling_mode_mean_sqrt_len_tokens": "mean_sqrt", "pooling_mode_weightedmean_tokens": "weighted_mean"},
    "pooling_mode_lasttoken": "last",
}
"""Keys of older files, one of which is true."""
ACTIVATIONS: dict[str, DenseActivation] = {
    "torch.nn.modules.linear.Identity": "identity",
    **{f"torch.nn.modules.activation.{name}": name.lower() for name in ("Tanh", "ReLU", "GELU", "SiLU", "Sigmoid")},
}  # pyright: ignore[reportAssignmentType]


@dataclasses.dataclass(frozen=True, eq=False)
class DenseLayer:
    """activation(x W^T + b)."""

    kernel: np.ndarray
    """W, float32 [out, in], as torch stores it."""
    bias: np.ndarray | None
    """b, float32 [out]; None = none."""
    activation: DenseActivation = "tanh"


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class EmbeddingModules:
    """Steps from hidden states to the vector of a text. The defaults are those of an encoder that has no such files."""

    pool: Pool = "mean"
    include_prompt: bool = True
    """Pool the tokens of the prompt too."""
    dense: tuple[DenseLayer, ...] = ()
    """Layers on the pooled vector."""
    normalize: bool = False
    """Divide each vector by its Euclidean length."""
    prompts: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Texts that are put before a text, by name."""
    default_prompt: str = ""
    """Name of the prompt that is used if none is named; "" = none."""
    similarity: Similarity = "cosine"
    longest: int = 0
    """Most tokens of a text, special tokens included; 0 = the model's positions."""
    lowercase: bool = False
    """Change texts to lower case before they are tokenized."""
    multi_vector: MultiVector | None = None
    """The settings of a model with a vector for each token, on which the layers are computed; None: one vector for a text."""

    def width(self, hidden: int) -> int:
        """Return the dimensions of a vector of a model with `hidden` dimensions."""
        return len(self.dense[-1].kernel) if self.dense else hidden

    def prompt(self, name: str, where: str) -> str:
        """Return the text of a prompt by its name; that of the default prompt for "".

        Args:
            where: the model as messages name it.

        Raises:
            BadInput: there is no prompt of this name.
        """
        if name and name not in self.prompts:
            names = ", ".join(self.prompts)
            fix = f"choose one of {names}" if names else "write the text itself"
            raise BadInput(f"--prompt {name}: {where} has no prompt of this name; {fix}")
        return self.prompts.get(name or self.default_prompt, "")

    def side_prompt(self, names: tuple[str, ...]) -> str:
        """Return the text of the first prompt of these names that there is, else of the default prompt."""
        return next((self.prompts[name] for name in names if name in self.prompts), self.prompts.get(self.default_prompt, ""))


def read_modules(folder: Path) -> EmbeddingModules | None:
    """Return the modules of a folder; None for an encoder alone, without modules.json.

    Raises:
        BadInput: a damaged file, or a module or a setting that is not supported; the message names the file and the key.
    """
    if not (folder / MODULES).exists():
        return _read_original(folder) if is_original(folder) else None
    multi_vector = read_multi_vector(folder)
    paths = _module_paths(folder / MODULES, is_multi_vector=multi_vector is not None)
    if multi_vector and not multi_vector.has_markers and not {MASK, "Normalize"} <= {kind for kind, _ in paths}:
        raise BadInput(f"{folder / MODULES}: a {NATIVE} without {MASK} or Normalize is not supported; {WITHOUT}")
    of = "token_embeddings" if multi_vector else "sentence_embedding"
    values: dict[str, Any] = {"dense": tuple(_read_dense(folder / path, of) for kind, path in paths if kind == "Dense")}
    for kind, path in paths:
        if kind == "Pooling":
            values["pool"], values["include_prompt"] = _read_pooling(folder / path)
    values["normalize"] = multi_vector is not None or any(kind == "Normalize" for kind, _ in paths)
    values["multi_vector"] = multi_vector
    return EmbeddingModules(**values, **_read_prompts(folder), **_read_texts(folder))


def _read_original(folder: Path) -> EmbeddingModules:
    settings, prompts, dimensions = read_original(folder)
    tensor = safetensors_dir.read_safetensors(folder).get(LAYER)
    if tensor is None or len(tensor.shape) != 2 or tensor.shape[0] != dimensions:
        actual = "missing" if tensor is None else f"{list(tensor.shape)}"
        raise BadInput(f"{folder}: {LAYER} is {actual}, and {METADATA} says dim {dimensions}; use the files of one model")
    layer = DenseLayer(_finite_arrays(folder, {LAYER: tensor})[LAYER], None, "identity")
    return EmbeddingModules(dense=(layer,), normalize=True, prompts=prompts, multi_vector=settings)


def write_modules(folder: Path, modules: EmbeddingModules, hidden: int) -> None:
    """Write modules into a folder, in the form that all versions of the library read.

    Args:
        hidden: dimensions of the encoder's hidden states.

    Raises:
        OSError: the disk is full or not writable.
    """
    folder.mkdir(exist_ok=True)
    settings, dense = modules.multi_vector, ["Dense" for _ in modules.dense]
    kinds = (
        ["Transformer", *dense] if settings else ["Transformer", "Pooling", *dense, *(["Normalize"] if modules.normalize else [])]
    )
    paths = ["", *(f"{number}_{kind}" for number, kind in enumerate(kinds[1:], 1))]
    dense_paths = [path for kind, path in zip(kinds, paths, strict=True) if kind == "Dense"]
    rows = [
        {"idx": number, "name": str(number), "path": path, "type": f"{PACKAGE}models.{kind}"}
        for number, (kind, path) in enumerate(zip(kinds, paths, strict=True))
    ]
    (folder / MODULES).write_text(json.dumps(rows, indent=2) + "\n")
    for path in paths[1:]:
        (folder / path).mkdir(exist_ok=True)
    if not settings:
        flags = {key: pool == modules.pool for key, pool in FLAGS.items()}
        _write(folder / paths[1] / FILE, {"word_embedding_dimension": hidden, **flags, "include_prompt": modules.include_prompt})
    for layer, path in zip(modules.dense, dense_paths, strict=True):
        outputs, inputs = layer.kernel.shape
        activation = first_name(ACTIVATIONS, layer.activation)
        sizes = {"in_features": inputs, "out_features": outputs, "bias": layer.bias is not None}
        _write(folder / path / FILE, {**sizes, "activation_function": activation})
        arrays = {LAYER: layer.kernel} | ({} if layer.bias is None else {"linear.bias": layer.bias})
        safetensors_dir.write_tensors(folder / path, {name: array.shape for name, array in arrays.items()}, arrays.__getitem__)
    prompts = {"prompts": dict(modules.prompts), "default_prompt_name": modules.default_prompt or None}
    own = multi_vector_entries(settings, modules.prompts) if settings else {"similarity_fn_name": modules.similarity}
    _write(folder / PROMPTS, prompts | own)
    _write(folder / TEXTS[0], {"max_seq_length": modules.longest or None, "do_lower_case": modules.lowercase})


def _write(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def _module_paths(file: Path, *, is_multi_vector: bool) -> list[tuple[str, str]]:
    """Return (class, folder) of each module."""
    order = (ORDER[0], "Dense", MASK, "Normalize") if is_multi_vector else ORDER
    packages = (PACKAGE, PYLATE_PACKAGE) if is_multi_vector else PACKAGE
    try:
        # The file is a list, which the strict reader takes as a value.
        rows = parse_json(b'{"modules": ' + read_regular(file, LARGEST_FILE) + b"}", file)["modules"]
    except OSError as error:
        raise BadInput(f"{file}: cannot be read ({error.strerror})") from None
    paths = []
    for row in rows if isinstance(rows, list) else [None]:
        kind, path = (row.get("type"), row.get("path")) if isinstance(row, dict) else (None, None)
        if not isinstance(kind, str) or not isinstance(path, str):
            raise BadInput(f'{file}: not a list of modules, each with a "type" and a "path"; copy the file of the model there')
        name = kind.rpartition(".")[2]
        if not kind.startswith(packages) or name not in order:
            raise BadInput(f"{file}: the module {kind} is not supported, only {', '.join(order)}; {WITHOUT}")
        if (path != Path(path).name or path in ("", "..")) and not (name == "Transformer" and path == ""):
            raise BadInput(f'{file}: the path "{path}" of {name} is no folder beside the file; name one')
        if name == "Transformer" and path:
            raise BadInput(
                f'{file}: the encoder is in the folder "{path}"; move its files beside {MODULES}, and write the path ""'
            )
        paths.append((name, path))
    kinds = [kind for kind, _ in paths]
    required = ORDER[:1] if is_multi_vector else ORDER[:2]
    counts = {name: kinds.count(name) if name == "Dense" else int(name in required or name in kinds) for name in order}
    allowed = [name for name in order for _ in range(counts[name])]
    if kinds != allowed:
        raise BadInput(
            f"{file}: the modules {', '.join(kinds)} are not supported, only {', '.join(order)} in this order; {WITHOUT}"
        )
    return paths


WITHOUT = f"remove {MODULES} to use the encoder alone"


def _read_pooling(folder: Path) -> tuple[Pool, bool]:
    """Return (pool, include_prompt) of a module."""
    config = PublishedConfig.load(folder)
    flags = [key for key in FLAGS if config.flag(key, False)]
    if config.has("pooling_mode"):
        # The library ignores the older keys of such a file.
        content = read_json(folder / FILE, LARGEST_FILE)["pooling_mode"]
        names = content if isinstance(content, list) else [content]
        if len(names) != 1:
            raise config.wrong("pooling_mode", content, f"several at once are not supported; choose one of {', '.join(POOLS)}")
        if not isinstance(names[0], str) or names[0] not in POOLS:
            raise config.wrong("pooling_mode", content, f"this is not supported, only {', '.join(POOLS)}")
        pool = POOLS[names[0]]
    elif len(flags) > 1:
        raise config.wrong(flags[1], True, f"several at once are not supported, and {flags[0]} is true too; set one to false")
    else:
        pool = FLAGS[flags[0]] if flags else "mean"
    for key in read_json(folder / FILE, LARGEST_FILE):
        if key.startswith("pooling_mode_") and key not in FLAGS and config.flag(key, False):
            raise config.wrong(key, True, f"this pooling is not supported, only {', '.join(FLAGS)}")
    include = config.flag("include_prompt", True)
    if pool == "cls" and not include:
        raise config.wrong("include_prompt", include, "the versions of the library pool another token for it; set it to true")
    return pool, include


def _read_dense(folder: Path, of: str) -> DenseLayer:
    """Return a layer.

    Args:
        of: the name of its input, which a file may state.
    """
    config = PublishedConfig.load(folder)
    if config.flag("use_residual", False, nullable=True):
        raise config.wrong("use_residual", True, "layers with a residual connection are not supported")
    inputs, outputs, has_bias = config.integer("in_features"), config.integer("out_features"), config.flag("bias", True)
    activation = config.choice(
        "activation_function", ACTIVATIONS, "torch.nn.modules.activation.Tanh", why="this is not supported, only"
    )
    for key in ("module_input_name", "module_output_name"):
        if config.has(key):
            config.choice(key, {of: 0}, of, why="a layer on something else is not supported, only")
    tensors = safetensors_dir.read_safetensors(folder)
    shapes = {LAYER: (outputs, inputs)} | ({"linear.bias": (outputs,)} if has_bias else {})
    if (actual := {name: tensor.shape for name, tensor in tensors.items()}) != shapes:
        raise BadInput(f"{folder}: the tensors are {actual}, and {FILE} says {shapes}; use the files of one model")
    arrays = _finite_arrays(folder, tensors)
    return DenseLayer(arrays[LAYER], arrays.get("linear.bias"), activation)


def _finite_arrays(folder: Path, tensors: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """Return tensors as float32 arrays, none of which has NaN or infinity."""
    arrays = {name: np.array(tensor.view(), np.float32) for name, tensor in tensors.items()}
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise BadInput(f"{folder}: {name} is not finite; the weights are damaged: download them again")
    return arrays


def _read_prompts(folder: Path) -> dict[str, Any]:
    if not (folder / PROMPTS).exists():
        return {}
    config = PublishedConfig(folder / PROMPTS, content := read_json(folder / PROMPTS, LARGEST_FILE))
    kinds = ("SentenceTransformer", PYLATE, NATIVE)
    if (kind := content.get("model_type", kinds[0])) not in kinds:
        raise config.wrong("model_type", kind, f"such models are not supported, only {', '.join(kinds)}")
    prompts = content.get("prompts") or {}
    if not isinstance(prompts, dict) or not all(isinstance(text, str) for text in prompts.values()):
        raise config.wrong("prompts", prompts, "it must be an object of texts")
    default = content.get("default_prompt_name") or ""
    if default and (not isinstance(default, str) or default not in prompts):
        raise config.wrong("default_prompt_name", default, f"it must be one of the prompts {', '.join(prompts)}")
    if kind != kinds[0]:
        # Vectors of tokens are compared by their cosine.
        prompts = {name: text for name, text in read_prefixed_prompts(content, prompts).items() if text}
        return {"prompts": prompts, "default_prompt": default, "similarity": "cosine"}
    similarity = content.get("similarity_fn_name") or "cosine"
    if similarity not in get_args(Similarity):
        raise config.wrong("similarity_fn_name", similarity, f"this is not supported, only {', '.join(get_args(Similarity))}")
    return {"prompts": prompts, "default_prompt": default, "similarity": similarity}


def _read_texts(folder: Path) -> dict[str, Any]:
    file = next((folder / name for name in TEXTS if (folder / name).exists()), None)
    if file is None:
        return {}
    config = PublishedConfig(file, content := read_json(file, LARGEST_FILE))
    longest = 0 if content.get("max_seq_length") is None else config.integer("max_seq_length")
    return {"longest": longest, "lowercase": config.flag("do_lower_case", False, nullable=True)}
