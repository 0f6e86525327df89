"""Every reader of a file that others may have written refuses a FIFO, a device and a socket in its place, and does not wait."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.core import result_files as bench_files
from benchmarks.plan import plan_cache
from eval.comparison import task_scores
from eval.experiments import node_status, preregistration
from eval.report import rollout_texts
from tests.support.special_files import KINDS, deadline, make_special
from train.checkpoints.manifest import DamagedCheckpoint, Manifest
from train.data import arrow, text_files
from train.run import item_outcomes, metrics_file, result_files, run_dir
from train.run.run_dir import RunDir
from train.tokenizers import byte_tokens, chat_template, hf_files, tokenizer
from train.weights import reference_cache, reward_scale
from zoo import file_access
from zoo.errors import BadInput
from zoo.hf import config_json, flax_msgpack, safetensors_dir
from zoo.runtime.compile_cache import SUFFIX, CheckedCache

READERS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "config of a model": ("config.json", config_json.PublishedConfig.load),
    "config of a run": ("config.json", run_dir.read_config),
    "safetensors": ("model.safetensors", safetensors_dir.read_safetensors),
    "index": (safetensors_dir.INDEX, safetensors_dir.read_safetensors),
    "msgpack": ("flax_model.msgpack", flax_msgpack.read_msgpack),
    "tokenizer": ("tokenizer.json", tokenizer.Tokenizer.load),
    "settings of a tokenizer": (tokenizer.SETTINGS, tokenizer.Tokenizer.load),
    "chat template": (tokenizer.CHAT, tokenizer.read_chat_template),
    "named template": ("a.jinja", lambda folder: chat_template.with_template(_tokenizer(), str(folder / "a.jinja"))),
    "vocabulary": (hf_files.ENTRIES, hf_files.read_tokenizer),
    "SentencePiece": (hf_files.PIECES, hf_files.read_tokenizer),
    "rows": ("metrics.jsonl", lambda folder: metrics_file.read_rows(folder / "metrics.jsonl")),
    "outcomes": ("outcomes.npz", lambda folder: item_outcomes.read_outcomes(RunDir(folder), "a")),
    "reward scale": (reward_scale.FILE, lambda folder: reward_scale.read_scale(folder, None)),
    "manifest": ("COMMIT.json", lambda folder: Manifest.read(folder, 1)),
    "scores": ("scores.json", lambda folder: result_files.read_result(folder / "scores.json")),
    "rollout": ("00000000.jsonl", lambda folder: rollout_texts.rollout_blocks(folder, 1, 1)),
    "evaluations": ("evaluations.json", lambda folder: task_scores.read_task_scores(folder / "evaluations.json")),
    "registration": (preregistration.FILE, preregistration.read_registration),
    "log": ("a.log", lambda folder: node_status.last_line(folder / "a.log")),
    "benchmark": (bench_files.CELLS, bench_files.read_results),
    "text": ("a.txt", lambda folder: [*text_files.read_plain_text(folder / "a.txt", "a")]),
    "compressed text": ("a.txt.gz", lambda folder: [*text_files.decoded_lines(folder / "a.txt.gz")]),
    "JSON": ("a.json", lambda folder: text_files.read_whole(folder / "a.json")),
    "table": ("a.parquet", lambda folder: [*arrow.read_parquet_rows(folder / "a.parquet")]),
}
"""Reader -> the file that it reads, and a call of it for a folder."""
LINKS = {"config of a run": "config.json: a link out of", "chat template": "it is a link out of its folder, to /dev/zero"}
"""Reader that refuses every link out of its folder -> a part of its message."""
CACHES: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "plan": ("a.json", lambda folder: plan_cache._read(folder / "a.json")),
    "program": (f"a{SUFFIX}", lambda folder: CheckedCache(folder).get("a")),
    "reference": ("a", lambda folder: reference_cache.read_log_probs(folder, "a", 1)),
}
"""The same for files of caches, which count as absent."""


def _tokenizer() -> tokenizer.Tokenizer:
    return tokenizer.Tokenizer(byte_tokens.byt5_tokenizer_json(0))


@pytest.mark.planted
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reader", READERS)
def test_a_special_file_is_refused_in_one_line(reader: str, kind: str, tmp_path: Path) -> None:
    name, read = READERS[reader]
    make_special(tmp_path / name, kind)
    with deadline(), pytest.raises((BadInput, DamagedCheckpoint, OSError)) as refusal:
        read(tmp_path)
    message = f"it is {KINDS[kind]}, not a regular file"
    if kind == "device":
        message = LINKS.get(reader, message)
    assert message in str(refusal.value) and "\n" not in str(refusal.value)
    assert isinstance(refusal.value, BadInput | DamagedCheckpoint)


@pytest.mark.planted
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cache", CACHES)
def test_a_special_file_in_a_cache_counts_as_absent(cache: str, kind: str, tmp_path: Path) -> None:
    name, read = CACHES[cache]
    make_special(tmp_path / name, kind)
    with deadline():
        assert read(tmp_path) is None


def test_files_of_any_size_are_read_up_to_a_limit(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"12345")
    assert file_access.read_regular(file, 5) == b"12345"
    with pytest.raises(OSError, match="larger than 4 bytes") as refusal:
        file_access.read_regular(file, 4)
    assert isinstance(refusal.value, BadInput)
    # A file of /proc states the size 0.
    with pytest.raises(OSError, match="larger than 4 bytes"):
        file_access.read_regular("/proc/self/status", 4)
    with pytest.raises(IsADirectoryError):
        file_access.read_regular(tmp_path, 4)
    with pytest.raises(FileNotFoundError):
        file_access.read_regular(tmp_path / "b", 4)


@pytest.mark.planted(3)
def test_large_files_are_refused_before_they_fill_the_memory(tmp_path: Path) -> None:
    rows = tmp_path / "metrics.jsonl"
    for size, message in (
        (metrics_file.LARGEST_FILE + 1, "larger than 512 MiB"),
        (metrics_file.LONGEST_ROW + 1, "is longer than"),
    ):
        with rows.open("wb") as file:
            file.truncate(size)
        with pytest.raises(BadInput, match=message):
            metrics_file.read_rows(rows)
    scores = tmp_path / "scores.json"
    scores.write_bytes(json.dumps({}).encode())
    with scores.open("ab") as file:
        file.truncate(file_access.LARGEST_JSON + 1)
    with pytest.raises(BadInput, match="larger than 64 MiB"):
        result_files.read_result(scores)


@pytest.mark.planted
def test_a_chat_template_is_no_link_to_a_file_elsewhere(tmp_path: Path) -> None:
    """Any text is a template, so that an export would contain it."""
    (tmp_path / "secret").write_text("secret")
    folder = tmp_path / "models--a" / "snapshots" / "0"
    folder.mkdir(parents=True)
    template = folder / tokenizer.CHAT
    template.symlink_to(tmp_path / "secret")
    with pytest.raises(BadInput, match=r"it is a link out of its folder, to .*/secret"):
        tokenizer.read_chat_template(folder)
    # The cache of the hub.
    (tmp_path / "models--a" / "blobs").mkdir()
    (tmp_path / "models--a" / "blobs" / "1").write_text("template")
    template.unlink()
    template.symlink_to("../../blobs/1")
    assert tokenizer.read_chat_template(folder) == "template"
