"""The readers of files, each with an intact file, for `tests.campaign.fuzz_readers`.

Every function of the project that parses a file of somebody else is here: whoever adds a parser adds its reader.
"""

import bz2
import dataclasses
import functools
import gzip
import json
import lzma
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.core import result_files
from benchmarks.plan import plan_cache
from eval.comparison import run_results
from eval.comparison.task_scores import read_task_scores
from eval.experiments import node_status, preregistration
from eval.generation import prompts
from eval.report import report, rollout_texts
from eval.tasks import blimp, lambada
from eval.tasks.task import Settings
from tests.support import finished_runs, labelled_files, published, small_experiment, tiny
from tests.support.states import make
from train.checkpoints import manifest
from train.checkpoints.checkpoints import Checkpoints
from train.checkpoints.manifest import Manifest
from train.config.data_options import TextData
from train.data import sources
from train.data.text_files import Document
from train.rows import token_cache
from train.run import metrics_file, outcome_sets
from train.run.item_outcomes import Outcomes, read_outcomes, write_outcomes
from train.run.run_dir import RunDir, read_config
from train.store import result_sync as stored_results
from train.tokenizers import chat_template, hf_files, special_tokens, unigram
from train.tokenizers.tokenizer import CHAT, Tokenizer, read_chat_template
from train.weights import reference_cache, reward_scale
from zoo import published_weights
from zoo.hf import flax_msgpack, hub, safetensors_dir
from zoo.lora import adapter_config, peft_files
from zoo.models import model

TEXT = "The old white whale is seen by the ship; naïve men sail 12 boats. "
LINE = '{"text": "The old white whale", "source": 1}\n'
TURNS = [{"role": "user", "content": "Who is white?"}, {"role": "assistant", "content": "The whale."}]


@dataclasses.dataclass(frozen=True)
class Reader:
    """A function that reads a file, and the content of that file."""

    file: Path
    content: bytes
    read: Callable[[], Any]
    damage: Callable[[bytes], bytes] | None = None
    """Called with the damaged content: returns it with a right digest, as somebody writes it who wants it to be read."""
    rounds: int = 1
    """It reads one damaged input in so many rounds, in which all others read one: a page with charts takes a second."""


Named = Iterator[tuple[str, Reader]]


def readers(folder: Path) -> dict[str, Reader]:
    """Write an intact input for each reader, and return them by name."""
    folder.mkdir(parents=True, exist_ok=True)
    groups = (
        _texts,
        _labelled,
        _instructions,
        _run,
        _results,
        _checkpoint,
        _caches,
        _weights,
        _adapter,
        _tokenizers,
        _templates,
        _pages,
    )
    return {name: reader for group in groups for name, reader in group(folder)}


def _reader(file: Path, read: Callable[[], Any], damage: Callable[[bytes], bytes] | None = None) -> Reader:
    return Reader(file, file.read_bytes(), read, damage)


def _new(folder: Path, name: str) -> Path:
    (folder / name).mkdir(parents=True)
    return folder / name


def _texts(folder: Path) -> Named:
    """Yield the readers of text to train on."""

    def read(file: Path) -> Any:
        return [list(source.read()) for source in sources.find_sources((str(file),), TextData(paths=(str(file),)))]

    plain, lines = (9 * TEXT).encode(), (9 * LINE).encode()
    files = {"text.txt": plain, "text.jsonl": lines, "text.txt.gz": gzip.compress(plain), "text.jsonl.gz": gzip.compress(lines)}
    files |= {"text.txt.xz": lzma.compress(plain), "text.txt.bz2": bz2.compress(plain)}
    for name, content in files.items():
        file = _new(folder, f"texts-{name}") / name
        file.write_bytes(content)
        yield name, _reader(file, functools.partial(read, file))
    rows = [{"text": TEXT} for _ in range(5)]
    file = labelled_files.put(_new(folder, "texts-parquet") / "text.parquet", rows)
    yield "text.parquet", _reader(file, functools.partial(read, file))
    saved = labelled_files.put(_new(folder, "texts-saved") / "saved", rows)
    for name in ("state.json", "dataset_info.json", "data-00000-of-00001.arrow"):
        yield f"{name} of datasets", _reader(saved / name, functools.partial(read, saved))


def _labelled(folder: Path) -> Named:
    """Yield the readers of labelled examples."""
    table = "text\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in labelled_files.RATED)
    examples: list[tuple[str, str, labelled_files.Content]] = [
        ("classification", "rows.jsonl", labelled_files.ROWS),
        ("classification", "rows.tsv", table),
        ("classification", "rows.csv", table.replace("\t", ",")),
        ("classification", "rows.parquet", labelled_files.ROWS),
        ("tagging", "tagged.jsonl", labelled_files.TAGGED),
        ("tagging", "tagged.conll", "Anna B-PER\nsees O\nRome B-LOC\n\n4 O\n# O\n"),
        ("span", "squad.json", json.dumps(labelled_files.squad())),
        ("choice", "quiz.jsonl", labelled_files.QUIZ),
        ("choice", "race.txt", json.dumps(labelled_files.ARTICLE)),
        ("preference", "pairs.jsonl", [{"prompt": "a ", "chosen": "b", "rejected": "c", "margin": 0.5}]),
        ("kto", "answers.jsonl", [{"prompt": "a ", "completion": "b", "label": True}]),
        ("policy_gradient", "prompts.jsonl", [{"prompt": "a", "completion": "b"}, {"prompt": "c", "completion": "d"}]),
    ]
    for objective, name, content in examples:
        file = labelled_files.put(_new(folder, f"{objective}-{name}") / name, content)
        yield f"{name} ({objective})", _reader(file, functools.partial(labelled_files.read, objective, file))


def _instructions(folder: Path) -> Named:
    """Yield the readers of prompts and conversations, and of the files of tasks."""
    made = _new(folder, "instructions")

    def put(name: str, *rows: Any) -> Path:
        return labelled_files.put(made / name, [dict(row) for row in rows])

    file = put("chats.jsonl", {"messages": TURNS}, {"messages": TURNS})
    yield "chats.jsonl", _reader(file, functools.partial(labelled_files.read, "instruction", file))
    file = put("shots.jsonl", {"q": "Who?", "a": "Anna"}, {"q": 4, "a": "four"})
    yield "shots.jsonl", _reader(file, functools.partial(prompts.read_template_fields, file, "{q} {a}"))
    file = put("prompts.jsonl", {"prompt": "Who?"})
    yield "prompts.jsonl", _reader(file, functools.partial(prompts.read_prompts, file))
    pair = {"sentence_good": "a b", "sentence_bad": "a c", "UID": "x", "linguistics_term": "y"}
    file = put("pairs.jsonl", pair, pair)
    yield "blimp", _reader(file, functools.partial(blimp.TASK.read, [str(file)], Settings()))
    file = put("passages.jsonl", {"text": "The whale is white"})
    yield "lambada", _reader(file, functools.partial(lambada.TASK.read, [str(file)], Settings()))


def _run(folder: Path) -> Named:
    """Yield the readers of a run's configuration and rows."""
    run = _new(folder, "run")
    RunDir(run).write_config(tiny.run())
    yield "config.json of a run", _reader(run / "config.json", functools.partial(read_config, run))
    for row in range(9):
        with (run / "metrics.jsonl").open("a") as stream:
            stream.write(json.dumps({"kind": "train", "step": row, "loss": 1.5, "time": {"seconds": 0.1}}) + "\n")
    file = run / "metrics.jsonl"
    yield "metrics.jsonl", _reader(file, lambda: metrics_file.read_rows(file))
    reward_scale.write_scale(run, reward_scale.RewardScale.of(1.0, 2.0, None))
    yield "reward_scale.json", _reader(run / reward_scale.FILE, functools.partial(reward_scale.read_scale, run, None))


def _results(folder: Path) -> Named:
    """Yield the readers of what a comparison, a report and an experiment read of a run."""
    run = folder / "finished"
    finished_runs.make(run, flops=1e9)
    files = RunDir(run)
    entry = {"metrics": {"accuracy": 0.5}, "examples": 5, "step": 20, "fingerprint": {"files": "x"}, "per_token": ["loss"]}
    files.evaluations.write_text(json.dumps({"blimp": entry}))
    outcomes = Outcomes(("a", "b"), np.array([0.5, 1.0]), np.array([1.0, 2.0]), np.array([1, 1]))
    write_outcomes(files, "blimp", outcomes)
    compared = functools.partial(run_results.read_run, run)
    for file in (files.config, files.scores, files.evaluations, files.metrics, files.starts):
        yield f"{file.name} of a finished run", _reader(file, compared)
    yield "evaluations.json", _reader(files.evaluations, functools.partial(read_task_scores, files.evaluations))
    yield "outcomes.npz", _reader(files.outcomes, functools.partial(read_outcomes, files, "blimp"))
    yield "outcomes.npz of a store", _reader(files.outcomes, lambda: outcome_sets.parse_sets(files.outcomes.read_bytes()))
    yield (
        "evaluations.json of a store",
        _reader(files.evaluations, lambda: stored_results._parse_evaluations(files.evaluations.read_bytes())),
    )
    yield "scores.json of an experiment", _reader(files.scores, functools.partial(node_status.read_object, files.scores))


def _pages(folder: Path) -> Named:
    """Yield the readers of files that pages show."""
    made, run = _new(folder, "pages"), folder / "shown"
    finished_runs.make(run)
    files = RunDir(run)
    contents = {
        "samples.json": {"step": 1, "samples": [{"prompt": "a", "text": "b", "truth": "c"}]},
        "data.json": [{"name": "a", "weight": 1.0, "tokens": 5, "rows": 1, "share": 1.0, "epochs": 0.5}],
        "evaluations.json": {"blimp": {"step": 1, "metrics": {"accuracy": 0.5}, "examples": 5, "details": {"left out": "x"}}},
    }
    for name, content in contents.items():
        (run / name).write_text(json.dumps(content))
    for file in (files.metrics, files.starts, files.scores, *(run / name for name in contents)):
        yield (
            f"{file.name} of a report",
            dataclasses.replace(_reader(file, functools.partial(report.write_report, run)), rounds=50),
        )
    line = {"prompt": "a", "completion": "b", "reward": 1.0, "advantage": 0.5}
    rollout = labelled_files.put(made / "00000000.jsonl", [line, line])
    yield "rollouts", _reader(rollout, lambda: list(rollout_texts._responses(rollout)))
    registration = preregistration.registration_of(small_experiment.small_grid())
    (made / preregistration.FILE).write_text(json.dumps(registration))
    yield "registration.json", _reader(made / preregistration.FILE, functools.partial(preregistration.read_registration, made))
    header = {"schema": 2, "what": "attention", "environment": {"backend": "cpu"}, "asked": {}, "unit": {"implementation": "xla"}}
    cell = {"key": {"implementation": "xla"}, "process": 0, "state": "timed", "reason": "", "seconds": 1.0}
    attempt = {"attempt": [{"implementation": "a"}], "process": 1}
    cells = labelled_files.put(made / result_files.CELLS, [])
    cells.write_text("".join(json.dumps(line) + "\n" for line in (header, cell, attempt)))
    yield "cells.jsonl", _reader(cells, functools.partial(result_files.read_results, made))


def _with_digest(raw: bytes) -> bytes:
    """Return the damaged content of a manifest with its digest, where it is still an object."""
    try:
        content = json.loads(raw)
        content.pop("sha256", None)
        return manifest._add_digest(content).encode()
    except (ValueError, AttributeError, RecursionError):
        return raw


def _checkpoint(folder: Path) -> Named:
    """Yield the readers of a manifest, damaged by chance and on purpose."""
    with Checkpoints(folder / "checkpoints", 9, notify=lambda line: None) as saved:
        saved.save(make(1), {"config": {"seed": 1}})
        saved.wait()
    step = folder / "checkpoints" / "00000001"
    yield "COMMIT.json", _reader(step / manifest.NAME, lambda: Manifest.read(step, 1))

    def check() -> None:
        Manifest.read(step, 1).check_content(step)

    yield "COMMIT.json with a right digest", _reader(step / manifest.NAME, check, _with_digest)


def _caches(folder: Path) -> Named:
    """Yield the readers of caches, which are read as if others could write to them."""
    words = Tokenizer.train([TEXT] * 5, 280)
    tokens = token_cache.tokenize_documents([Document("", TEXT)], words, folder / "tokens")
    store = folder / "tokens" / tokens.fingerprint
    header = functools.partial(token_cache._open, store, tokens.fingerprint, words)
    yield "header.json of tokens", _reader(store / token_cache.HEADER, header)
    made = _new(folder, "references")
    reference_cache.write_log_probs(made, "key", np.ones((3, 2), np.float32))
    yield "log-probabilities", _reader(made / "key", functools.partial(reference_cache.read_log_probs, made, "key", 3))
    (made / "plan.json").write_text(json.dumps({"schema": 1, "title": "a plan"}))
    yield "plan of the cache", _reader(made / "plan.json", functools.partial(plan_cache._read, made / "plan.json"))


def _weights(folder: Path) -> Named:
    """Yield the readers of published weights."""
    from flax import serialization

    for name, sharded in (("one", False), ("many", True)):
        weights = folder / name
        published.write(weights, published.GPT2, sharded=sharded)
        cfg, _ = published_weights.read_config(weights)

        def plan(weights: Path = weights, cfg: Any = cfg) -> Any:
            return published_weights.plan_import(cfg, safetensors_dir.read_safetensors(weights), weights)

        if sharded:
            yield "model.safetensors.index.json", _reader(weights / safetensors_dir.INDEX, plan)
            yield "shard of safetensors", _reader(weights / published.file(0), plan)
            yield (
                "index of the hub's cache",
                _reader(weights / safetensors_dir.INDEX, functools.partial(hub._is_complete, weights)),
            )
        else:
            yield "model.safetensors", _reader(weights / safetensors_dir.SINGLE, plan)
    for family, numbers in published.TINY.items():
        (weights := _new(folder, f"config-{family}") / "config.json").write_text(json.dumps(numbers))
        yield f"config.json of {family}", _reader(weights, functools.partial(published_weights.read_config, weights.parent))
    flax_folder = _new(folder, "flax")
    content = serialization.msgpack_serialize({"wte": {"embedding": np.ones((5, 4), np.float32)}, "b": np.zeros(3)})
    (flax_folder / "flax_model-1.msgpack").write_bytes(content)
    index = {"weight_map": {"wte/embedding": "flax_model-1.msgpack", "b": "flax_model-1.msgpack"}}
    (flax_folder / flax_msgpack.INDEX).write_text(json.dumps(index))
    read = functools.partial(flax_msgpack.read_msgpack, flax_folder)
    yield "flax_model.msgpack.index.json", _reader(flax_folder / flax_msgpack.INDEX, read)
    file = _new(folder, "flax-single") / flax_msgpack.SINGLE
    file.write_bytes(content)
    yield "flax_model.msgpack", _reader(file, functools.partial(flax_msgpack.read_msgpack, file.parent))


def _adapter(folder: Path) -> Named:
    """Yield the readers of an adapter."""
    import jax

    from zoo.lora import adapters

    made, cfg = _new(folder, "adapter"), tiny.run().model
    spec = adapter_config.Adapters(rank=2, alpha=4.0, targets=("c_attn",), rslora=False)
    leaves = adapters.flatten_tree(adapters.init_adapters(model(cfg), spec, jax.random.key(0)))
    trained = adapters.unflatten_tree({name: np.full(leaf.shape, 0.01, np.float32) for name, leaf in leaves.items()})
    peft_files.save_adapter(made, cfg, spec, trained, base="base")
    for name in (adapter_config.CONFIG, peft_files.WEIGHTS):
        yield name, _reader(made / name, functools.partial(peft_files.read_peft_adapter, made, cfg))


def _use_tokenizer(folder: Path) -> None:
    """Read a tokenizer, and use it on a text."""
    words = hf_files.read_tokenizer(folder)
    words.decode(words.encode(TEXT))


def _tokenizers(folder: Path) -> Named:
    """Yield the readers of the tokenizers of published models, and of what is beside them."""
    for kind in ("gpt", "roberta", "modernbert", "wordpiece", "sentencepiece", "xlnet"):
        target = _new(folder, f"tokenizer-{kind}")
        hf_files.write_tokenizer(target, Tokenizer.train([TEXT] * 5, 400, kind), longest=32)
        files = sorted(target.iterdir())
        vocabulary = [file.name for file in files if file.suffix == ".txt" or file.name == hf_files.VOCABULARY]
        for file in files:
            if file.name not in vocabulary:
                yield f"{file.name} ({kind})", _reader(file, functools.partial(_use_tokenizer, target))
        if vocabulary:
            # These are read only if there is no tokenizer.json.
            alone = Path(shutil.copytree(target, folder / f"vocabulary-{kind}"))
            (alone / hf_files.FILE).unlink()
            for name in vocabulary:
                yield f"{name} ({kind}, alone)", _reader(alone / name, functools.partial(_use_tokenizer, alone))
    pieces = _new(folder, "tokenizer-spiece")
    (pieces / hf_files.PIECES).write_bytes(unigram.train_t5_model([TEXT] * 5, 60))
    special = {"eos_token": special_tokens.TEXT["end"], "pad_token": special_tokens.TEXT["pad"]}
    (pieces / "special_tokens_map.json").write_text(json.dumps(special | {"unk_token": special_tokens.TEXT["unk"]}))
    for file in sorted(pieces.iterdir()):
        yield f"{file.name} (spiece.model)", _reader(file, functools.partial(_use_tokenizer, pieces))


def _templates(folder: Path) -> Named:
    """Yield the readers of a chat template: that of an option, and that of a folder of weights."""
    words, template = Tokenizer.train([TEXT] * 5, 300), _new(folder, "template") / CHAT
    template.write_text(chat_template.TEMPLATE)
    messages = [chat_template.Message(**turn) for turn in TURNS]

    def render() -> str:
        compiled = chat_template.chat_template(chat_template.with_template(words, str(template)), "a model")
        return compiled.render(messages, "a conversation")

    def render_of_folder() -> str:
        source = read_chat_template(template.parent)
        assert source is not None
        return chat_template.ChatTemplate(source, {"eos_token": "</s>"}, str(template)).render(messages, "a conversation")

    yield "chat_template.jinja", _reader(template, render)
    yield "chat_template.jinja of a folder", _reader(template, render_of_folder)
