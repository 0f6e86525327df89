"""The shapes of a run's batches are known without its data."""

import dataclasses
import json
import lzma
import random
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from tests.support import labelled_files, tiny
from tests.support.processes import ROOT
from train import recipes
from train.config import run_config
from train.config.distillation_options import TripleLoss
from train.config.dpo_options import Dpo
from train.config.kto_options import Kto
from train.inputs import run_inputs, synthetic_batch
from train.rows.batches import Batches
from train.run.run_dir import RunDir
from train.tokenizers.tokenizer import Tokenizer

ROWS = 8


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real text as documents, labelled examples of every kind, parallel files, and a tokenizer for the labelled ones."""
    folder = tmp_path_factory.mktemp("plan")
    book = lzma.decompress((ROOT / "train/data/embedded/moby_dick.txt.xz").read_bytes()).decode()[20_000:220_000]
    chapters = [book[start : start + 10_000] for start in range(0, len(book), 10_000)]
    labelled_files.put(folder / "book.jsonl", [{"text": text} for text in chapters])
    labelled_files.put(folder / "classification.jsonl", labelled_files.ROWS * 4)
    tagged = (zip(*each, strict=True) for each in labelled_files.SENTENCES)
    words = "".join("".join(f"{word} {tag}\n" for word, tag in each) + "\n" for each in tagged)
    labelled_files.put(folder / "tagging.conll", words * 4)
    articles = [labelled_files.squad(title=title)["data"][0] for title in ("one", "two", "three")]
    labelled_files.put(folder / "span.json", json.dumps({"data": articles, "version": "v2.0"}))
    four = [dict(article=f"A sea of {n}.", question="Which?", options=list("abcd"), answer="ABCD"[n]) for n in range(4)]
    labelled_files.put(folder / "choice.jsonl", four)
    ranked = [{"query": f"A sea of {n}.", "positive": f"A ship of {n}."} for n in range(20)]
    labelled_files.put(folder / "contrastive.jsonl", ranked)
    labelled_files.put(folder / "late_interaction.jsonl", ranked)
    for objective in ("ranking", "rerank"):
        labelled_files.put(folder / f"{objective}.jsonl", [row | {"negatives": ["A storm."]} for row in ranked])
    labelled_files.put(folder / "sentence_denoising.jsonl", [{"text": row["query"]} for row in ranked])
    scored = [{"sentence1": f"A sea of {n}.", "sentence2": f"A ship of {n}.", "score": n} for n in range(20)]
    labelled_files.put(folder / "similarity.jsonl", scored)
    lines = "".join(" ".join(random.Random(n).choices(book.split()[:200], k=6)) + "\n" for n in range(40))
    for side in ("source", "target"):
        (folder / f"{side}.txt").write_text(lines)
    labelled_files.put(folder / "instruction.jsonl", [{"prompt": f"{n} and", "completion": f" {n + 1}"} for n in range(40)])
    pairs = [{"prompt": f"A sea of {n}.", "chosen": " Calm.", "rejected": " No."} for n in range(20)]
    labelled_files.put(folder / "preference.jsonl", pairs)
    answers = [{"prompt": f"A sea of {n}.", "completion": f" {n}.", "label": n % 2 == 0} for n in range(20)]
    labelled_files.put(folder / "kto.jsonl", answers)
    labelled_files.put(folder / "prompts.jsonl", [{"prompt": f"{n}+1="} for n in range(20)])
    for kind in ("wordpiece", "gpt", "sentencepiece"):
        (folder / kind).mkdir()
        Tokenizer.train(chapters[:2], 400, kind).save(folder / kind)
    return folder


def with_data(run: run_config.Run, files: Path) -> run_config.Run:
    """A recipe on those files, with few rows in a batch."""
    length = max(32, run.data.length)
    data = dataclasses.replace(run.data, batch=ROWS, ramp=(), length=length, valid_paths=(), valid_fraction=0.4)
    # The recipes for sums have a model too small for these texts.
    wider = {"context": length} if getattr(run.model, "context", None) in range(length) else {}
    model = dataclasses.replace(run.model, vocab=max(512, run.model.vocab), **wider)
    run = dataclasses.replace(run, accumulate=1, data=data, model=model)
    run = tiny.with_options(run, distillation=TripleLoss()) if run.teacher else run
    other = "labelled" if run.recipe.startswith(("fine", "embed")) else "text"
    kinds = {"denoising": "text", "text_to_text": "pairs", "instruction": "instruction"}
    kinds |= {"preference": "preference", "dpo": "preference", "kto": "kto", "policy_gradient": "prompts", "ppo": "prompts"}
    kind = kinds.get(run.objective, other)
    if run.objective in ("dpo", "kto"):
        # tests/train/weights/test_reference_log_probs.py compares the field of a reference.
        run = tiny.with_options(run, **{run.objective: (Dpo if run.objective == "dpo" else Kto)(reference="none")})
    if kind == "pairs":
        pairs = dataclasses.replace(run.options.pairs, source=(str(files / "source.txt"),), target=(str(files / "target.txt"),))
        run = tiny.with_options(run, pairs=pairs)
    else:
        file_kind = kind if kind in ("preference", "prompts") else run.objective
        named = "book.jsonl" if kind == "text" else next(files.glob(f"{file_kind}.*")).name
        run = dataclasses.replace(run, data=dataclasses.replace(data, paths=(str(files / named),)))
    wanted = {"vocab": 500}
    if kind in ("labelled", "preference", "kto", "prompts"):
        decoder = "sentencepiece" if run.model.is_encoder_decoder else "gpt"
        wanted = {"path": str(files / ("wordpiece" if kind == "labelled" else decoder))}
    return dataclasses.replace(run, tokenizer=dataclasses.replace(run.tokenizer, **wanted))


# The fast tier has a recipe of each kind of data; the others are `full`.
FAST = ("gpt-nano", "t5-nano", "transformer-nano", "xlnet-nano")
EVERY = [pytest.param(n, marks=[] if n in FAST else pytest.mark.full) for n in sorted(recipes.recipes())]


@pytest.mark.parametrize("name", EVERY)
def test_the_batch_is_that_of_a_real_run(name: str, files: Path, tmp_path: Path) -> None:
    """In fields, shapes and dtypes, for every recipe, from real data of its kind."""
    run = with_data(recipes.find_recipe(name)(), files)
    settled = run_inputs.resolve_config(run)
    data = run_inputs.read_inputs(settled, RunDir(str(tmp_path)), files / "cache", quiet=True)
    batches = Batches(data.rows, run_inputs.builder(settled, data), 0, ROWS, np.arange(ROWS), settled.mask_period)
    with batches.read(0) as stream:
        real = next(stream)

    def described(batch: Any) -> Any:
        leaves = jax.tree_util.tree_leaves_with_path(batch)
        return {jax.tree_util.keystr(keys): (leaf.shape, str(leaf.dtype)) for keys, leaf in leaves}

    assert described(synthetic_batch.batch(synthetic_batch.resolve_config(run))) == described(real)
