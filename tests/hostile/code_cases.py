"""Folders that name or contain code, data elsewhere, or commands."""

import json
import pickle
from collections.abc import Callable
from typing import Any

from tests.hostile import canary
from tests.hostile.case_types import READ_WEIGHTS, Case, Place, edit, edit_config, edited, forge_manifest, replace, step_of

EVIL = "evil; rm -rf ~"
RUNS, MODELS = "run policy", "model encoder classifier"
READ_REWARD = ("eval", "train (resume)")
"""Commands that use the rewards of a run."""


def config(**changes: Any) -> Callable[[Place], None]:
    """Return a function that changes the config.json of a run or of published weights."""
    return lambda place: edit_config(place, **changes)


def module(place: Place, path: str) -> None:
    """Write a module whose import and whose every function leave a file in the home folder."""
    code = canary.payload(place.trial)
    names = ("f", "judge", "Model", "Objective", "Tokenizer", "attention", "process_docs")
    functions = "".join(f"def {name}(*args, **kwargs):\n    {code}\n    return [0.0] * 99\n" for name in names)
    replace(place.work / path, f"{code}\n{functions}")


class Payload:
    """An object that runs code when it is unpickled."""

    def __init__(self, code: str) -> None:
        self.code = code

    def __reduce__(self) -> Any:
        return (exec, (self.code,))


def pickled(place: Place) -> bytes:
    """Return a pickle that runs code when it is read."""
    return pickle.dumps({"weight": Payload(canary.payload(place.trial))})


def reward(name: str, path: str) -> Callable[[Place], None]:
    """Return a function that lets the configuration name a reward, with the module that it names."""

    def write(place: Place) -> None:
        if path:
            module(place, path)
        edit_config(place, rollout__reward=[name])

    return write


def plugin(**changes: str) -> Callable[[Place], None]:
    """Return a function that lets the configuration name a plug-in that is not installed."""
    record = {"group": "zoo.attention", "name": "fast", "distribution": "fast", "version": "1.0", **changes}
    return config(plugins=[record])


def beside(path: str, **changes: Any) -> Callable[[Place], None]:
    """Return a function that changes the configuration, which then names a module that is written below the argument."""

    def write(place: Place) -> None:
        module(place, str(place.folder.relative_to(place.work) / path))
        edit_config(place, **changes)

    return write


def _entry_point(place: Place) -> None:
    """Write a distribution into the current folder, whose entry point is the attention of the run."""
    module(place, "evil_module.py")
    folder = place.work / "evil-1.0.dist-info"
    replace(folder / "METADATA", "Metadata-Version: 2.1\nName: evil\nVersion: 1.0\n")
    replace(folder / "entry_points.txt", "[zoo.attention]\nevil = evil_module:attention\n")
    edit_config(place, model__compute__attention="evil")


def _judge(place: Place) -> None:
    """Name a reward model whose weights are a pickle."""
    (place.folder / "judge").mkdir()
    config = {"model_type": "gpt2", "architectures": ["GPT2ForSequenceClassification"]}
    replace(place.folder / "judge" / "config.json", json.dumps(config))
    replace(place.folder / "judge" / "pytorch_model.bin", pickled(place))
    edit_config(place, rollout__reward=["runs/policy/judge"])


def _only(name: str) -> Callable[[Place], None]:
    """Return a function that replaces the weights by a pickle of some name."""

    def write(place: Place) -> None:
        (place.folder / "model.safetensors").unlink()
        replace(place.folder / name, pickled(place))

    return write


def _pickle_as(name: str) -> Callable[[Place], None]:
    return lambda place: replace(place.folder / name, pickled(place))


def _auto_map(place: Place) -> None:
    """Name the classes of the model and of the tokenizer as `trust_remote_code` would import them."""
    module(place, str(place.folder.relative_to(place.work) / "payload.py"))
    classes = {"AutoConfig": "payload.Model", "AutoModel": "payload.Model", "AutoModelForCausalLM": "payload.Model"}
    edit(place.folder / "config.json", auto_map=classes, trust_remote_code=True)
    edit(place.folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["payload.Tokenizer", None]}, trust_remote_code=True)


def _object_array(place: Place) -> None:
    import numpy as np

    with (place.folder / "outcomes.npz").open("wb") as file:
        arrays: dict[str, Any] = {"perplexity/id": np.array([Payload(canary.payload(place.trial))], object)}
        np.savez(file, **arrays)
    replace(place.folder / "evaluations.json", json.dumps({"perplexity": {"metrics": {"loss": 1.0}, "examples": 1}}))


def _checkpoint_types(place: Place) -> None:
    """Let the metadata of the arrays name a type, and give the manifest the right digests."""
    import hashlib

    step = step_of(place.folder)
    file = step / "_METADATA"
    module(place, "payload.py")
    content = json.loads(file.read_text())
    for entry in content["tree_metadata"].values():
        entry["value_metadata"]["value_type"] = "payload.Model"
    file.write_text(json.dumps(content))
    digest = {"size": file.stat().st_size, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
    forge_manifest(step, lambda manifest: manifest["files"].__setitem__("_METADATA", digest))


def _base_is_secret(place: Place) -> None:
    edit(place.folder / "adapter_config.json", base_model_name_or_path=str(place.home / ".ssh/id_rsa"))


def _tokenizer_elsewhere(place: Place) -> None:
    edit_config(place, tokenizer__path=str(place.home / ".ssh"))


def _data_elsewhere(place: Place) -> None:
    edit_config(place, data__paths=[str(place.outside / "notes.txt")])


PICKLES = (
    *("pytorch_model.bin", "model.pt", "model.pth", "model.ckpt", "model.pkl", "model.h5", "weights.npz"),
    *("model.gguf", "model.onnx"),
)
REMOTE = {"hub:evil/data": "the hub", "s3://evil/data": "an object store", "https://evil.example/data.txt": "an address"}
MAPPING = {"parent_library": "payload", "base_model_class": "Model"}
BASE = {"base_model_name_or_path": "evil/model"}
READ_DATA = ("eval", "data inspect", "train (resume)")
"""Commands that read the data of a run."""

CASES = [
    Case("reward in the run's folder", "code", "policy", reward("runs.policy.payload:f", "runs/policy/payload.py"), READ_REWARD),
    Case("reward in the current folder", "code", "policy", reward("payload:f", "payload.py"), READ_REWARD),
    Case("reward of the standard library", "code", "policy", reward("os:system", ""), READ_REWARD),
    Case("reward that deletes", "code", "policy", reward("shutil:rmtree", ""), READ_REWARD),
    Case("reward with a path", "code", "policy", reward("../outside/payload:f", ""), READ_REWARD),
    Case("reward model that is a pickle", "code", "policy", _judge, READ_REWARD),
    Case("family that is a module", "code", RUNS, beside("payload.py", family="runs.done.payload")),
    Case("objective that is a module", "code", RUNS, beside("payload.py", objective="runs.done.payload:Objective")),
    Case("attention that is a module", "code", RUNS, beside("payload.py", model__compute__attention="runs.done.payload")),
    Case("attention of a distribution in the current folder", "code", RUNS, _entry_point),
    Case("recipe that is a module", "code", RUNS, beside("payload.py", recipe="runs.done.payload:recipe"), ()),
    Case("auto_map", "code", MODELS, _auto_map, ()),
    Case("objects in outcomes.npz", "code", "run", _object_array, ()),
    Case("types in a checkpoint", "code", "run", _checkpoint_types, ()),
    *(Case(f"weights in {name}", "code", "model", _only(name), READ_WEIGHTS) for name in PICKLES),
    Case("pickle as safetensors", "code", MODELS, _pickle_as("model.safetensors"), READ_WEIGHTS),
    Case("pickle as the msgpack of Flax", "code", "model", _only("flax_model.msgpack"), READ_WEIGHTS),
    Case("pickle as adapter", "code", "adapter", _pickle_as("adapter_model.safetensors")),
    Case("pickle beside an adapter", "code", "adapter", _pickle_as("adapter_model.bin"), ()),
    Case("module of an adapter", "code", "adapter", edited("adapter_config.json", auto_mapping=MAPPING), ()),
    Case("base model of an adapter", "reads", "adapter", _base_is_secret, ()),
    Case("base model of an adapter on the hub", "network", "adapter", edited("adapter_config.json", **BASE), ()),
    Case("plug-in that is a command", "advice", RUNS, plugin(distribution=EVIL)),
    Case("plug-in whose version is a command", "advice", RUNS, plugin(distribution="evil", version="1.0' && evil #")),
    Case("plug-in of another name", "advice", RUNS, plugin(distribution="evil-package")),
    Case("plug-in whose name is an address", "advice", RUNS, plugin(distribution="git+https://evil.example/evil.git")),
    Case("plug-in that is a recipe", "advice", RUNS, plugin(group="zoo.recipes", distribution=EVIL), ()),
    *(Case(f"data of {what}", "network", "run", config(data__paths=[name]), READ_DATA) for name, what in REMOTE.items()),
    Case("tokenizer of the hub", "network", "run", config(tokenizer__path="hub:evil/tokenizer"), ()),
    Case("start from the hub", "network", "run", config(init="hub:evil/model"), ()),
    Case("output in an object store", "network", "run", config(out="s3://evil/out"), ()),
    Case("reward model of the hub", "network", "policy", config(rollout__reward=["hub:evil/judge"]), READ_REWARD),
    Case("tokenizer elsewhere", "reads", "run", _tokenizer_elsewhere, ()),
    Case("data elsewhere", "reads", "run", _data_elsewhere, READ_DATA),
]
