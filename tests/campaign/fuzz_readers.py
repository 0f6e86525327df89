"""Damage the inputs of every reader at random and read them: `python -m tests.campaign.fuzz_readers FOLDER COUNT SEED SECONDS`.

A reader may refuse an input, in one line, or read it. Any other exception, a crash of the process and growth of its memory are
failures.
"""

import collections
import dataclasses
import json
import resource
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.support import environment, labelled_files, published, tiny  # noqa: F401 - it starts JAX with eight devices
from tests.support.chat import CHATML, turns
from tests.support.fuzz_weights import mutate
from tests.support.states import make
from train.checkpoints.checkpoints import Checkpoints
from train.checkpoints.manifest import DamagedCheckpoint, Manifest
from train.config.objectives import find_options
from train.data import sources
from train.data.text_files import Document
from train.rows import token_cache
from train.run import metrics_file
from train.run.run_dir import RunDir, read_config
from train.tokenizers import hf_files, unigram
from train.tokenizers.chat_template import ChatTemplate
from train.tokenizers.special_tokens import TEXT as TEXT_NAMES
from train.tokenizers.tokenizer import CHAT, Tokenizer, read_chat_template
from zoo import published_weights
from zoo.errors import BadInput
from zoo.hf import flax_msgpack, safetensors_dir

LARGEST_GROWTH = 200 << 20
"""Bytes by which the memory of the process may grow after each reader was called once."""
TEXT = "The old white whale is seen by the ship; naïve men sail 12 boats. "
LINE = '{"text": "The old white whale", "source": 1}\n'


@dataclasses.dataclass(frozen=True)
class Reader:
    """A function that reads a file, and the content of that file."""

    file: Path
    content: bytes
    read: Callable[[], Any]


def readers(folder: Path) -> dict[str, Reader]:
    """Write an intact input for each reader, and return them by name."""
    result: dict[str, Reader] = {}

    def add(name: str, file: Path, read: Callable[[], Any]) -> None:
        result[name] = Reader(file, file.read_bytes(), read)

    def new(name: str) -> Path:
        (folder / name).mkdir(parents=True)
        return folder / name

    def texts(file: Path, **options: Any) -> Callable[[], Any]:
        data = find_options("causal").data(paths=(str(file),), **options)
        return lambda: [list(source.read()) for source in sources.sources((str(file),), data)]

    for suffix, content in (("txt", TEXT * 9), ("jsonl", LINE * 9)):
        file = new(suffix) / f"text.{suffix}"
        file.write_text(content)
        add(f"text .{suffix}", file, texts(file))
    examples: dict[str, tuple[str, labelled_files.Content]] = {
        "classification": ("rows.jsonl", labelled_files.ROWS),
        "tagging": ("tagged.jsonl", labelled_files.TAGGED),
        "span": ("squad.json", json.dumps(labelled_files.squad())),
        "choice": ("quiz.jsonl", labelled_files.QUIZ),
    }
    table = "text\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in labelled_files.RATED)
    for objective, name, content in [*((key, *value) for key, value in examples.items()), ("classification", "rows.tsv", table)]:
        file = labelled_files.put(new(f"{objective}-{name}") / name, content)
        add(f"{name} ({objective})", file, lambda objective=objective, file=file: labelled_files.read(objective, file))
    run = new("run")
    RunDir(run).write_config(tiny.run())
    add("config.json of a run", run / "config.json", lambda: read_config(run))
    for row in range(9):
        with (run / "metrics.jsonl").open("a") as stream:
            stream.write(json.dumps({"kind": "train", "step": row, "loss": 1.5, "time": {"seconds": 0.1}}) + "\n")
    add("metrics.jsonl", run / "metrics.jsonl", lambda: metrics_file.read_rows(run / "metrics.jsonl"))
    with Checkpoints(run / "checkpoints", 9, notify=str) as saved:
        saved.save(make(1), {"config": {"seed": 1}})
        saved.wait()
    step = run / "checkpoints" / "00000001"
    add("COMMIT.json", step / "COMMIT.json", lambda: Manifest.read(step, 1))
    documents = [Document("", TEXT)]
    words = Tokenizer.train([TEXT] * 5, 280)
    tokens = token_cache.prepare(documents, words, run / "tokens")
    store = run / "tokens" / tokens.fingerprint
    add("header.json of tokens", store / "header.json", lambda: token_cache._open(store, tokens.fingerprint, words))
    for name, sharded in (("one", False), ("many", True)):
        weights = folder / name
        published.write(weights, published.GPT2, sharded=sharded)
        cfg, _ = published_weights.read_config(weights)

        def plan(weights: Path = weights, cfg: Any = cfg) -> Any:
            return published_weights.plan_import(cfg, safetensors_dir.read_tensors(weights), weights)

        if sharded:
            add("model.safetensors.index.json", weights / safetensors_dir.INDEX, plan)
            add("shard of safetensors", weights / published.file(0), plan)
        else:
            add("model.safetensors", weights / safetensors_dir.SINGLE, plan)
            add("config.json of weights", weights / "config.json", lambda weights=weights: published_weights.read_config(weights))
    from flax import serialization

    flax_folder = new("flax")
    file = flax_folder / flax_msgpack.SINGLE
    file.write_bytes(serialization.msgpack_serialize({"wte": {"embedding": np.ones((5, 4), np.float32)}, "b": np.zeros(3)}))
    add("flax_model.msgpack", file, lambda: flax_msgpack.read_tensors(flax_folder))
    for kind in ("gpt", "roberta", "wordpiece", "sentencepiece", "xlnet"):
        target = new(f"tokenizer-{kind}")
        hf_files.write_tokenizer(target, Tokenizer.train([TEXT] * 5, 400, kind), longest=32)
        vocabulary = [file for file in sorted(target.iterdir()) if file.suffix == ".txt" or file.name == hf_files.VOCABULARY]
        for name in (hf_files.FILE, hf_files.SETTINGS):
            add(f"{name} ({kind})", target / name, lambda target=target: use_tokenizer(target))
        if vocabulary:
            # These are read only if there is no tokenizer.json.
            alone = Path(shutil.copytree(target, folder / f"vocabulary-{kind}"))
            (alone / hf_files.FILE).unlink()
            for file in vocabulary:
                add(f"{file.name} ({kind})", alone / file.name, lambda alone=alone: use_tokenizer(alone))
    target = new("tokenizer-spiece")
    (target / hf_files.PIECES).write_bytes(unigram.model([TEXT] * 5, 60))
    (target / "special_tokens_map.json").write_text(
        json.dumps({"eos_token": TEXT_NAMES["end"], "pad_token": TEXT_NAMES["pad"], "unk_token": TEXT_NAMES["unk"]})
    )
    for file in sorted(target.iterdir()):
        add(f"{file.name} of spiece.model", file, lambda: use_tokenizer(folder / "tokenizer-spiece"))
    template = new("template") / CHAT
    template.write_text(CHATML)

    def render() -> str:
        source = read_chat_template(template.parent)
        assert source is not None
        return ChatTemplate(source, {"eos_token": "</s>"}, str(template)).render(turns("a", "b"), "a conversation")

    add(CHAT, template, render)
    return result


def use_tokenizer(folder: Path) -> None:
    """Read a tokenizer, and use it on a text."""
    tokenizer = hf_files.read_tokenizer(folder)
    tokenizer.decode(tokenizer.encode(TEXT))


def main(folder: Path, count: int, seed: int, seconds: float) -> dict[str, Any]:
    """Read `count` damaged inputs, for at most `seconds`, and return the counts by reader and outcome."""
    rng, every = np.random.default_rng(seed), readers(folder)
    for reader in every.values():
        reader.read()
    began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    counts: dict[str, collections.Counter[str]] = {name: collections.Counter() for name in every}
    failures, number, names = [], 0, list(every)
    while number < count and (number < len(names) or time.monotonic() - began < seconds):
        name = names[number % len(names)]
        reader = every[name]
        reader.file.write_bytes(mutate(reader.content, rng))
        try:
            reader.read()
            counts[name]["read"] += 1
        except (BadInput, DamagedCheckpoint, token_cache._Damaged) as refusal:
            counts[name]["refused"] += 1
            if "\n" in str(refusal) or len(str(refusal)) > 2000:
                failures.append(f"{name}: not one short line: {str(refusal)[:300]!r}")
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            # A panic of the tokenizers library is not an `Exception`.
            failures.append(f"{name}, input {number}: {type(error).__name__}: {str(error)[:300]}")
            (folder / f"failure-{number}").write_bytes(reader.file.read_bytes())
        reader.file.write_bytes(reader.content)
        number += 1
    growth = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10) - before
    return {"count": number, "readers": counts, "failures": failures, "growth": growth}


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]))))
