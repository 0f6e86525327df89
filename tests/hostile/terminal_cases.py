"""Names and texts that control a terminal, are markup of a library, or are HTML, in everything that commands show."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np

from tests.hostile.case_types import ESCAPES, HTML, Case, Place, edit, edited, forge_manifest, replace, step_of
from tests.hostile.code_cases import config
from tests.hostile.content_cases import content, row

MARKUP = "[bold red]x[/nothing][link=file:///etc/passwd]"
NAMES = {"escapes": ESCAPES, "HTML": HTML, "markup": MARKUP}


def lines(name: str, *rows: Any) -> Callable[[Place], None]:
    """Return a function that writes a file of JSON objects."""
    return content(name, "".join(json.dumps(row) + "\n" for row in rows).encode())


def _result(name: str) -> bytes:
    entry = {"metrics": {"loss": 1.0, name: 2.0}, "examples": 5, "step": 2, "details": {name: {name: 1}, "files": [name]}}
    return json.dumps({name: entry}).encode()


def _scores(name: str) -> Callable[[Place], None]:
    return content("scores.json", json.dumps({name: 1.0, "loss": 2.0, "tokens": 5}).encode())


def _facts(name: str) -> dict[str, Any]:
    provenance = {"commit": name, "dirty": False, "device": name, "host": name}
    return {"step": 0, "at": 1.0, "facts": {name: name, "model": name}, "versions": {"jax": name, name: name}, "flops": 1.0} | {
        "provenance": provenance
    }


def file_named(name: str, text: str = "A whale.\n") -> Callable[[Place], None]:
    """Return a function that adds a file whose name is hostile."""

    def write(place: Place) -> None:
        (place.folder / f"{name.replace('/', '_')}.txt").write_text(text)

    return write


def _labels(name: str) -> Callable[[Place], None]:
    labels = ("no", name, "yes")
    return config(id2label={str(n): text for n, text in enumerate(labels)}, label2id={text: n for n, text in enumerate(labels)})


def _rollouts(name: str) -> Callable[[Place], None]:
    return lines("rollouts/00000001.jsonl", *(2 * [{"prompt": name, "completion": name, "reward": 1.0, "advantage": 0.5}]))


def _samples(name: str) -> Callable[[Place], None]:
    return content("samples.json", json.dumps([{"prompt": name, "text": name, "source": name, "target": name}]).encode())


def _bench(name: str) -> Callable[[Place], None]:
    header = {"schema": 2, "what": "attention", "environment": {"backend": name, "device": name, "versions": {name: name}}}
    header |= {"asked": {name: name}, "unit": {}}
    cell = {"key": {"implementation": name, name: name}, "process": 0, "state": "timed", "reason": name, "seconds": 1.0}
    return lines("cells.jsonl", header, cell, {**cell, "key": {"implementation": "b"}, "state": "failed"})


def _failure(name: str) -> Callable[[Place], None]:
    return lambda place: replace(place.folder / "logs" / "tokenizer.failed", name)


def _registration(name: str) -> Callable[[Place], None]:
    def write(place: Place) -> None:
        edit(place.folder / "registration.json", date=name, deviations=[name], claims=lambda claims: [{**claims[0], "id": name}])

    return write


def _meta(name: str) -> Callable[[Place], None]:
    """Let a checkpoint name a parent, and fingerprints."""
    parent = {"path": name, "row": name, "seeds": [0], "ancestors": []}
    return lambda place: forge_manifest(
        step_of(place.folder), lambda content: content["meta"].update(parents={"init": parent}, targets={name: name})
    )


def _writes_escapes(place: Place) -> None:
    """Let the model write ESC again and again: only the last bias and one row of the embeddings are not zero."""
    import safetensors.numpy

    file = place.folder / "model.safetensors"
    tensors = {name: np.zeros_like(array) for name, array in safetensors.numpy.load_file(file).items()}
    vocabulary = json.loads((place.folder / "vocab.json").read_text())
    table = next(name for name in tensors if name.endswith("wte.weight"))
    bias = next(name for name in tensors if name.endswith("ln_f.bias"))
    tensors[table][vocabulary["\u013d"]] = 1.0
    tensors[bias][:] = 1.0
    safetensors.numpy.save_file(tensors, file)


def cases_of(what: str, name: str) -> list[Case]:
    """Return the cases in which a name or a text of a folder is hostile."""

    def shown(where: str, kind: str, write: Callable[[Place], None], refused: tuple[str, ...] = ()) -> Case:
        return Case(f"{what} in {where}", "terminal", kind, write, refused)

    return [
        shown("evaluations.json", "run", content("evaluations.json", _result(name))),
        shown("scores.json", "run", _scores(name)),
        shown("starts.jsonl", "run", lines("starts.jsonl", _facts(name))),
        shown("metrics.jsonl", "run", row("metrics.jsonl", kind="valid", step=2, **{name: 1.0, "loss": 2.0})),
        shown("a kind of row", "run", row("metrics.jsonl", kind=name, step=2)),
        shown("samples.json", "run", _samples(name)),
        shown("rollouts", "policy", _rollouts(name)),
        shown("the name of a run", "run", config(name=name)),
        shown("a recipe", "run", config(recipe=name)),
        shown("the names of data", "run", config(data__paths=[name])),
        shown("a key of a run", "run", config(**{name: 1}), ("*",)),
        shown("a checkpoint", "run", _meta(name)),
        shown("a key of weights", "model", config(**{f"evil{name}": 1})),
        shown("a value of weights", "model", config(activation_function=name), ("*",)),
        shown("labels", "classifier", _labels(name)),
        shown("an adapter", "adapter", edited("adapter_config.json", target_modules=[name]), ("*",)),
        shown("a name of a file", "text", file_named(name)),
        shown("a text", "text", content("book.txt", 500 * f"A whale {name} is white.\n".encode())),
        shown("a prompt", "prompts", lines("lines.jsonl", {"prompt": name})),
        shown(
            "labels of examples",
            "examples",
            lines("rows.jsonl", *(9 * [{"text": "a", "label": name}, {"text": "b", "label": "yes"}])),
        ),
        shown("a benchmark", "bench", _bench(name)),
        shown("a failure", "experiment", _failure(name)),
        shown("a registration", "experiment", _registration(name)),
    ]


CASES = [
    *(case for names in NAMES.items() for case in cases_of(*names)),
    Case("model that writes escapes", "terminal", "model", _writes_escapes, ()),
]
