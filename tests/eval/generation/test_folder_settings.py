"""Settings of a folder beside options: which are used, what they mean, what is refused, and that texts follow them."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from eval.commands import generate
from eval.commands.model_options import ModelOptions
from eval.generation.folder_settings import end_ids, first_id, folder_processors, make_generator, resolve_settings
from eval.generation.generation_options import Decoding, Prompts
from tests.support import published
from tests.support.generation import GREEDILY, gpt_generator, gpt_tokenizer, ids, prompts, seq2seq_loaded
from tests.support.generation_settings import of_folder
from train.weights.generation_settings import read_generation
from train.weights.load import Loaded
from zoo.cli.option_parser import explicit_names
from zoo.cli.python_api import LoadedModel
from zoo.errors import BadInput
from zoo.generation.decoding_settings import GREEDY, Beams, Processors, Sampling

SEARCHED = {"num_beams": 4, "length_penalty": 0.6, "early_stopping": True}
SAMPLED = {"do_sample": True, "temperature": 0.6, "top_p": 0.9}
EXPECTED: dict[str, tuple[dict[str, Any], dict[str, Any], Decoding, set[str]]] = {
    "nothing is greedy": ({}, {}, Decoding(sampling=GREEDY), set()),
    "no do_sample": ({"temperature": 0.6, "top_k": 50}, {}, Decoding(sampling=GREEDY), {"temperature"}),
    "a search": (
        SEARCHED,
        {},
        Decoding(search=Beams(beams=4, length_penalty=0.6, search_until="full")),
        set(),
    ),
    "never": ({"num_beams": 2, "early_stopping": "never"}, {}, Decoding(search=Beams(beams=2, search_until="impossible")), set()),
    "no search": (SEARCHED, {"beams": 1}, Decoding(sampling=GREEDY), {"num_beams", "length_penalty", "early_stopping"}),
    "another search": (
        SEARCHED | SAMPLED,
        {"beams": 3, "length_penalty": 2.0},
        Decoding(search=Beams(beams=3, length_penalty=2.0, search_until="full")),
        {"num_beams", "length_penalty", "do_sample", "temperature", "top_p"},
    ),
    "a length penalty for the folder's search": (
        {"num_beams": 2},
        {"length_penalty": 2.0},
        Decoding(search=Beams(beams=2, length_penalty=2.0)),
        set(),
    ),
    "sampling": (SAMPLED, {}, Decoding(sampling=Sampling(temperature=0.6, top_p=0.9, top_k=50)), set()),
    "top_k off": (SAMPLED | {"top_k": 0}, {}, Decoding(sampling=Sampling(temperature=0.6, top_p=0.9)), set()),
    "a temperature": (
        SAMPLED,
        {"temperature": 1.0},
        Decoding(sampling=Sampling(temperature=1.0, top_p=0.9, top_k=50)),
        {"temperature"},
    ),
    "greedy by option": (SAMPLED, {"temperature": 0.0}, Decoding(sampling=GREEDY), {"do_sample", "temperature", "top_p"}),
    "sampling by option": ({"min_p": 0.1}, {"top_p": 0.5}, Decoding(sampling=Sampling(top_p=0.5, min_p=0.1)), set()),
    "sampling in place of a search": (SEARCHED, {"top_k": 3}, Decoding(sampling=Sampling(top_k=3)), {*SEARCHED}),
    "lengths": (
        {"max_new_tokens": 7, "max_length": 9, "min_length": 3, "min_new_tokens": 2},
        {},
        Decoding(limit=7, sampling=GREEDY, processors=Processors(min_tokens=2)),
        {"max_length", "min_length"},
    ),
    "length with the prompt": (
        {"max_length": 9, "min_length": 3},
        {},
        Decoding(total=9, sampling=GREEDY, processors=Processors(min_length=3)),
        set(),
    ),
    "a limit": ({"max_length": 9}, {"limit": 5}, Decoding(limit=5, sampling=GREEDY), {"max_length"}),
    "processors": (
        {"repetition_penalty": 1.2, "bad_words_ids": [[1], [2, 3]], "forced_eos_token_id": 4, "suppress_tokens": []},
        {"no_repeat_ngram": 2},
        Decoding(
            sampling=GREEDY,
            processors=Processors(repetition_penalty=1.2, bad_words=((1,), (2, 3)), forced_end=(4,), no_repeat_ngram=2),
        ),
        set(),
    ),
    "several": (
        SAMPLED | {"num_return_sequences": 2, "stop_strings": "x"},
        {"samples": 3},
        Decoding(samples=3, stop=("x",), sampling=Sampling(temperature=0.6, top_p=0.9, top_k=50)),
        {"num_return_sequences"},
    ),
    "neutral values": (
        {"typical_p": 1.0, "penalty_alpha": None, "num_beam_groups": 1, "use_cache": True},
        {},
        Decoding(sampling=GREEDY),
        set(),
    ),
    "unknown": (
        {"chat_format": "chatml", "eta_cutoff": 0.1, "max_time": 3.0},
        {},
        Decoding(sampling=GREEDY),
        {"chat_format", "eta_cutoff", "max_time"},
    ),
    "none of the folder's": (
        {"eos_token_id": 3, **SAMPLED, "dola_layers": "low"},
        {"folder_settings": False},
        Decoding(folder_settings=False),
        set(),
    ),
}


def with_options(options: dict[str, Any]) -> Decoding:
    """The settings of a command line."""
    groups = {"processors": Processors, "sampling": Sampling, "search": Beams}
    names = {name: {field.name for field in dataclasses.fields(kind)} for name, kind in groups.items()}
    parts = {name: kind(**{key: options[key] for key in options.keys() & names[name]}) for name, kind in groups.items()}
    return Decoding(**{key: options[key] for key in options.keys() - set().union(*names.values())}, **parts)


@pytest.mark.parametrize("case", EXPECTED)
def test_options_complete_and_overrule_the_folder(case: str) -> None:
    values, options, expected, unused = EXPECTED[case]
    resolved = resolve_settings(with_options(options), options, of_folder({k: v for k, v in values.items() if v is not None}))
    assert resolved.decoding == expected
    assert resolved.unused.keys() == unused
    assert resolved.used.keys() | resolved.defaults.keys() <= values.keys() | {"do_sample", "top_k"}
    assert all("\n" not in line and "generation_config.json" in line for line in resolved.notices())


def test_without_settings_the_options_are_as_they_are() -> None:
    assert resolve_settings(Decoding(), (), None).decoding == Decoding()
    assert folder_processors(None) == Processors()


def test_names_of_options_are_those_on_the_command_line() -> None:
    names = explicit_names(["x", "--top-p=0.9", "--min_tokens", "3", "--no-folder-settings"])
    assert {"top_p", "min_tokens", "folder_settings"} <= names
    assert "temperature" not in explicit_names(["--prompt", "temperature"])


REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "penalty_alpha is 0.6; this is not supported": ({"penalty_alpha": 0.6}, {}),
    "num_beam_groups is 2; this is not supported": ({"num_beam_groups": 2}, {}),
    "guidance_scale is 1.5; this is not supported": ({"guidance_scale": 1.5}, {}),
    'watermarking_config is {"bias": 1}; this is not supported': ({"watermarking_config": {"bias": 1}}, {}),
    "typical_p is 0.5; this is not supported": ({"typical_p": 0.5, "do_sample": True}, {}),
    "do_sample is true; sampling within a beam search": (SAMPLED | {"num_beams": 3}, {}),
    "do_sample is 1; it must be true or false": ({"do_sample": 1}, {}),
    "temperature is 2; it must be a decimal number": (SAMPLED | {"temperature": 2}, {}),
    "temperature is 0.0; it must be above 0": (SAMPLED | {"temperature": 0.0}, {}),
    "num_beams is 0; it must be a whole number": ({"num_beams": 0}, {}),
    'early_stopping is "soon"; it must be true, false or "never"': (SEARCHED | {"early_stopping": "soon"}, {}),
    "bad_words_ids is []; it must be a list of lists": ({"bad_words_ids": []}, {}),
    "suppress_tokens is [1.5]; it must be a list of whole numbers": ({"suppress_tokens": [1.5]}, {}),
    "forced_eos_token_id is 3; suppress_tokens excludes it": ({"forced_eos_token_id": 3, "suppress_tokens": [3]}, {}),
    "num_return_sequences is 3; neither sampling nor 3 beams": ({"num_return_sequences": 3}, {}),
    "max_new_tokens is 0; it must be a whole number": ({"max_new_tokens": 0}, {}),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_is_not_supported_is_refused_by_its_name(message: str) -> None:
    values, options = REFUSED[message]
    with pytest.raises(BadInput, match=rf"\Ageneration_config.json: {re.escape(message)}[^\n]*\Z"):
        resolve_settings(with_options(options), options, of_folder(values))


def test_equal_samples_are_refused() -> None:
    with pytest.raises(
        BadInput, match=r"^--samples 2: generation_config.json does not say do_sample true, [^\n]*--temperature 1"
    ):
        resolve_settings(Decoding(samples=2), {"samples"}, of_folder({}))
    resolve_settings(with_options({"samples": 2, "temperature": 1.0}), {"samples", "temperature"}, of_folder({}))


def test_ids_that_end_and_begin_texts() -> None:
    assert end_ids(None, 9) == [9] and end_ids(of_folder({}), 9) == [9]
    assert end_ids(of_folder({"eos_token_id": [5, 6, 5]}), 9) == [5, 6]
    # Training taught the end of its tokenizer, and a chat template ends an answer with its own mark.
    assert end_ids(of_folder({"eos_token_id": 5}), 9, is_run=True) == [5, 9]
    assert end_ids(of_folder({"eos_token_id": 5}), 9, mark=7) == [5, 7] and end_ids(None, 9, is_run=True, mark=7) == [7]
    assert end_ids(of_folder({"eos_token_id": -1}), 9) == [9]
    assert first_id(None) is None and first_id(of_folder({"bos_token_id": 3})) == 3
    assert first_id(of_folder({"bos_token_id": 3, "decoder_start_token_id": 4})) == 4
    with pytest.raises(BadInput, match=r"eos_token_id is \"x\"; it must be"):
        end_ids(of_folder({"eos_token_id": "x"}), 9)


def test_old_folders_have_the_settings_in_config_json(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"n_layer": 2, "num_beams": 3, "eos_token_id": [1, 2], "top_k": None}))
    settings = read_generation(tmp_path)
    assert settings is not None and settings.values == {"num_beams": 3, "eos_token_id": [1, 2]}
    (tmp_path / "config.json").write_text('{"force_bos_token_to_be_generated": true, "bos_token_id": 4}')
    settings = read_generation(tmp_path)
    assert settings is not None and settings.values["forced_bos_token_id"] == 4
    # If there is the other file, config.json is not read.
    (tmp_path / "generation_config.json").write_text('{"top_p": 0.5}')
    settings = read_generation(tmp_path)
    assert settings is not None and settings.values == {"top_p": 0.5}
    (tmp_path / "generation_config.json").write_text("[")
    with pytest.raises(BadInput, match=r"generation_config\.json: not strict JSON"):
        read_generation(tmp_path)


def gpt_loaded(values: dict[str, Any]) -> Loaded:
    generator = gpt_generator()
    return Loaded("gpt", generator.model, generator._params, gpt_tokenizer(), generator.mesh, generation=of_folder(values))


@pytest.mark.full
@pytest.mark.planted
@pytest.mark.parametrize("beams", [1, 3])
def test_each_of_several_ends_ends_a_text(beams: int) -> None:
    """The ends are tokens that occur in the texts without them; with one of them, fewer texts end."""
    search = Beams(beams=beams)
    decoding = dataclasses.replace(GREEDILY, past_end=False, sampling=GREEDY if beams == 1 else Sampling(), search=search)
    free = make_generator(gpt_loaded({"eos_token_id": 289}), dtype=jnp.float32, batch=40).generate(prompts()[:40], decoding)
    tokens, counts = np.unique(np.concatenate([text.ids[1:] for text in free]), return_counts=True)
    ends = tokens[np.argsort(-counts)[:2]].tolist()
    both, one = (
        make_generator(gpt_loaded({"eos_token_id": chosen}), dtype=jnp.float32, batch=40).generate(prompts()[:40], decoding)
        for chosen in (ends, ends[0])
    )
    assert all(not set(text.ids) & set(ends) for text in both)
    if beams == 1:
        for text, before in zip(both, free, strict=True):
            first = next((at for at, token in enumerate(before.ids) if token in ends), None)
            assert text.ids == before.ids[:first] and text.ended == ("limit" if first is None else "end of text")
    assert sum(text.ended == "end of text" for text in both) > sum(text.ended == "end of text" for text in one) > 0


@pytest.mark.full
@pytest.mark.parametrize("beams", [1, 2])
def test_a_bad_word_of_marian_is_not_generated(beams: int) -> None:
    """It is the token that the model begins with without the setting; the forced end is the last token of the limit."""
    loaded = seq2seq_loaded("transformer")
    decoding = Decoding(limit=6, sampling=GREEDY if beams == 1 else Sampling(), search=Beams(beams=beams), past_end=True)
    sources = [[5, 6, 7], [8, 9]]
    (likely, *_) = make_generator(loaded, dtype=jnp.float32).generate(sources, decoding)
    word = likely.ids[0]
    settings = of_folder({"bad_words_ids": [[word]], "eos_token_id": 1, "forced_eos_token_id": 1})
    decoding = dataclasses.replace(decoding, processors=folder_processors(settings))
    generator = make_generator(dataclasses.replace(loaded, generation=settings), dtype=jnp.float32)
    texts = ids(generator.generate(sources, decoding))
    assert all(word not in text and text[-1] == 1 for text in texts)


def test_ids_outside_of_the_vocabulary_and_too_long_prompts_are_refused() -> None:
    for field, value in (("forced_first", 400), ("forced_end", (3, 400)), ("bad_words", ((1, 400),))):
        with pytest.raises(BadInput, match=rf"^--{field.replace('_', '-')} 400: the vocabulary ends at "):
            gpt_generator().generate([[1]], dataclasses.replace(GREEDILY, processors=Processors(**{field: value})))
    with pytest.raises(
        BadInput, match=r"^prompt 1 of 1: its 3 tokens and a continuation may have 3 tokens in total; choose --limit"
    ):
        gpt_generator().generate([[1, 2, 3]], dataclasses.replace(GREEDILY, total=3))


@pytest.mark.full
def test_python_uses_the_settings_of_the_folder() -> None:
    (token, *_) = gpt_tokenizer().encode("Call me").tolist()
    values = {"max_new_tokens": 4, "eos_token_id": 289, "forced_eos_token_id": token, "suppress_tokens": [289]}
    model = LoadedModel(gpt_loaded(values))
    text = model.generate("Call me")
    assert text.endswith(gpt_tokenizer().decode([token])) and text == model.generate("Call me", temperature=0)
    assert model.generate("Call me", limit=3) != text


def test_the_command_says_which_settings_are_the_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Before the weights are read, on stderr."""
    published.write(tmp_path / "gpt2", published.GPT2)
    (tmp_path / "gpt2" / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, 6], **SAMPLED, "penalty_alpha": 0}))
    model = ModelOptions(source=str(tmp_path / "gpt2"))
    with pytest.raises(BadInput, match=r"holds no tokenizer.json"):
        generate.run_generate(model, Prompts(prompt=("a",)), Decoding(limit=3), as_json=False, explicit={"limit"})
    out, err = capsys.readouterr()
    file = tmp_path / "gpt2" / "generation_config.json"
    assert out == "" and err.splitlines() == [
        f"! {file}: eos_token_id [5, 6], do_sample true, temperature 0.6, top_p 0.9",
        f"! {file}: by default of transformers: top_k 50",
    ]
