"""A folder of gpt-oss as released, at a small size: MXFP4 tensors, tokenizer and chat template; imported, trained, generated."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest
from huggingface_hub.utils import filter_repo_objects

from tests.support import harmony, published
from tests.support.commands import assert_refused, call, in_folder, words
from tests.train.tokenizers.kinds import auto
from train.config import run_config
from train.engine import device_mesh
from train.weights.load import load_model
from zoo.hf import hub, safetensors_dir

TEXT = "".join(f"The {n}th whale's seen, and {n * n} more.\n\n" for n in range(400))
ENTRIES = 300
CONFIG = published.GPT_OSS | {
    **{
        "vocab_size": ENTRIES + len(harmony.NAMES) + 11,
        "max_position_embeddings": 64,
        "hidden_size": 32,
        "intermediate_size": 32,
    },
    **{"architectures": ["GptOssForCausalLM"], "attention_bias": True, "attention_dropout": 0.0, "hidden_act": "silu"},
    **{"experts_per_token": 2, "initial_context_length": 8, "initializer_range": 0.02, "output_router_logits": False},
    **{"layer_types": ["sliding_attention", "full_attention"], "rms_norm_eps": 1e-5, "router_aux_loss_coef": 0.9},
    **{"eos_token_id": ENTRIES + 4, "pad_token_id": ENTRIES + 1, "tie_word_embeddings": False, "use_cache": True},
    "quantization_config": {
        "modules_to_not_convert": ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"],
        "quant_method": "mxfp4",
    },
}
"""With every key of the released files; the vocabulary has more rows than the tokenizer has entries."""
TRAIN = (
    "train sft --init models/model --data.paths chat.jsonl --steps 2 --data.length 48 --data.batch 8 --log.samples 0 --name tuned"
)
TRAIN += " --optim.lr 1e-9 --optim.warmup 1 --log.validate-every 2"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder to work in, with conversations and the released model `model`, imported to `models/model`."""
    folder = tmp_path_factory.mktemp("place")
    chat = [{"messages": [{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": "Seen."}]} for n in range(40)]
    (folder / "chat.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in chat))
    published.write_mxfp4(folder / "model", CONFIG)
    harmony.write(folder / "model", harmony.content([TEXT], ENTRIES))
    (folder / "model" / "generation_config.json").write_text('{"do_sample": true}')
    with in_folder(folder):
        yield folder


def test_a_released_folder_is_imported_and_its_export_is_the_same(capsys: pytest.CaptureFixture[str], place: Path) -> None:
    imported = call(capsys, "import", "model")
    assert imported.code == 0 and f"a vocabulary of {ENTRIES + len(harmony.NAMES)}" in imported.stdout, imported
    target = place / "models" / "model"
    assert (target / "generation_config.json").read_text() == '{"do_sample": true}'
    mesh = device_mesh.make_mesh(run_config.Mesh(data=1, expert=1), jax.devices()[:1])
    original, again = (load_model(folder, mesh) for folder in (place / "model", target))
    jax.tree.map(np.testing.assert_array_equal, again.params, original.params)
    assert again.tokenizer.content() == original.tokenizer.content() and again.tokenizer.chat_template == harmony.TEMPLATE
    content = json.loads((target / "config.json").read_text())
    assert content["dtype"] == "bfloat16" and "quantization_config" not in content
    assert (content["bos_token_id"], content["pad_token_id"]) == (ENTRIES, ENTRIES + 1)
    assert content["eos_token_id"] == [ENTRIES + 4, ENTRIES + 1]
    for folder in (place / "model", target):
        assert auto(folder)(TEXT)["input_ids"] == original.tokenizer.encode(TEXT).tolist()


@pytest.mark.slow
def test_a_released_folder_generates_and_is_trained(capsys: pytest.CaptureFixture[str], place: Path) -> None:
    """Text and answers in the harmony format are the same from the folder, its import, and a run that it initializes."""
    if not (place / "models").exists():
        assert call(capsys, "import", "model").code == 0
    run = call(capsys, *words(TRAIN))
    assert run.code == 0, run
    for source, options in (("models/model", "--prompt The"), ("runs/tuned", "--prompt Who? --chat")):
        command = words(f"{options} --limit 4 --temperature 0")
        outputs = [call(capsys, "generate", folder, *command) for folder in ("model", source)]
        assert [output.code for output in outputs] == [0, 0], outputs
        assert len({output.stdout for output in outputs}) == 1 and outputs[0].stdout.strip()


def test_a_score_without_padding_is_noted(capsys: pytest.CaptureFixture[str], place: Path) -> None:
    """The padding of the released tokenizer is the end of a document, which is no padding of a scored text."""
    published.write(place / "score", published.config("gpt_oss", "sequence", published.GPT_OSS | {"vocab_size": 340}))
    harmony.write(place / "score", harmony.content([TEXT], ENTRIES))
    imported = call(capsys, "import", "score")
    assert imported.code == 0 and "! config.json has no pad_token_id, because" in imported.stderr
    assert json.loads((place / "models" / "score" / "config.json").read_text())["pad_token_id"] is None


def test_copies_in_other_formats_are_not_fetched() -> None:
    used = ["config.json", "model-00000-of-00002.safetensors", "tokenizer.json", "chat_template.jinja"]
    files = [*used, "original/model.safetensors", "original/config.json", "metal/model.bin", "README.md"]
    assert [*filter_repo_objects(files, allow_patterns=hub.patterns_for(files), ignore_patterns=hub.IGNORED)] == used


@pytest.mark.planted(3)
def test_damaged_folders_are_refused(capsys: pytest.CaptureFixture[str], place: Path) -> None:
    for name, file in (("no-tokenizer", "tokenizer.json"), ("no-weights", safetensors_dir.SINGLE)):
        shutil.copytree(place / "model", place / name)
        (place / name / file).unlink()
    shutil.copytree(place / "model", place / "small")
    (place / "small" / "config.json").write_text(json.dumps(CONFIG | {"vocab_size": ENTRIES + 9}))
    cases = {
        "no tokenizer": (words("import no-tokenizer"), "no-tokenizer: holds no tokenizer.json"),
        "no weights": (words("import no-weights"), "no-weights: "),
        "small vocabulary": (words("import small"), "small: not the weights of its config.json: .*embed_tokens.weight has shape"),
    }
    assert_refused(capsys, place, {name: ([*argv], pattern) for name, (argv, pattern) in cases.items()})
