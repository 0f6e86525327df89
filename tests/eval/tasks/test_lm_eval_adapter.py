"""lm-evaluation-harness asks a zoo model: the same numbers as ours, from local files alone."""

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import yaml

from eval.generation.generation_options import Decoding
from eval.generation.generator import Generator
from eval.inference.likelihood import encode
from eval.inference.text_likelihoods import text_likelihoods
from eval.tasks import blimp, choices
from eval.tasks.harness import harness_task, local_task_files
from eval.tasks.task import Settings
from tests.support import encoders
from tests.support.generation import seq2seq_generator, seq2seq_loaded
from tests.support.text_tasks import pair, quiet, scored, subject, tokenizer, write
from zoo import trust
from zoo.cli.trust_option import trust_folder
from zoo.errors import BadInput
from zoo.generation.decoding_settings import Sampling

SENTENCES = ["The whale sleeps.", "The whale sleep.", "The men see.", "The old ship.", "The old whale of the men.", "The men."]


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No network, though nothing tells the libraries so; and it must not even be tried."""
    import datasets.config
    import huggingface_hub.constants

    asked: list[Any] = []

    def refuse(*address: Any, **_: Any) -> None:
        asked.append(address)
        raise OSError("no network")

    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    yield
    assert asked == []


@pytest.fixture
def model(no_network: None) -> Any:
    from eval.tasks.harness.lm_eval_adapter import HarnessModel

    return HarnessModel(subject(), batch=4)


def requests(kind: Any, *arguments: tuple[Any, ...]) -> list[Any]:
    from lm_eval.api.instance import Instance

    return [Instance(request_type=kind, doc={}, arguments=each, idx=number) for number, each in enumerate(arguments)]


def task(folder: Path, name: str, data: str, **fields: Any) -> str:
    """A task's YAML file, which is JSON too; returns its folder."""
    common = {"task": name, "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": data}}, "test_split": "test"}
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.yaml").write_text(json.dumps(common | fields))
    return str(folder)


@pytest.mark.full
@pytest.mark.usefixtures("no_network")
def test_minimal_pairs_give_the_accuracy_of_our_task(tmp_path: Path) -> None:
    lines = [pair(one, other) for one in SENTENCES for other in SENTENCES if one != other]
    data = write(tmp_path / "pairs.jsonl", *lines)
    fields: dict[str, Any] = dict(output_type="multiple_choice", doc_to_text="", doc_to_target=0, target_delimiter="")
    fields |= dict(doc_to_choice="{{[sentence_good, sentence_bad]}}", metadata={"version": 1.5})
    fields["metric_list"] = [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}]
    folder = task(tmp_path / "tasks", "local_pairs", data, **fields)
    settings = Settings(argument="local_pairs")
    result = harness_task.TASK.score(subject(), harness_task.TASK.read([folder], settings), settings, quiet)
    ours = blimp.TASK.score(subject(), blimp.TASK.read([data], Settings()), Settings(), quiet)
    expected = {"acc": ours.metrics["accuracy"], "acc_stderr": ours.metrics["accuracy_stderr"]}
    assert result.metrics == pytest.approx(expected, abs=1e-12)
    assert result.examples == len(lines)
    told = {"examples": 30, "version": "1.5", "shots": 0}
    assert result.details == {"tasks": {"local_pairs": {**result.metrics, **told}}}


@pytest.mark.full
def test_likelihoods_are_ours(model: Any, caplog: pytest.LogCaptureFixture) -> None:
    texts = [("The whale", " sleeps"), ("", "The men"), ("The men ", "see"), ("The whale", " sleeps")]
    found = model.loglikelihood(requests("loglikelihood", *texts))
    assert [-logarithm for logarithm, _ in found] == pytest.approx([each.nats for each in scored(encode(tokenizer(), texts))])
    assert found[0] == found[3] and not caplog.records
    model.loglikelihood(requests("loglikelihood", ("The whale " * 20, "sleeps"), texts[0]))
    assert "1 of 2 requests are longer than the model's positions" in caplog.text
    with pytest.raises(BadInput, match="empty continuation"):
        model.loglikelihood(requests("loglikelihood", ("The whale", "")))


@pytest.mark.full
def test_a_long_text_is_scored_in_windows_each_token_once(model: Any) -> None:
    short, long = "The men see.", "The old whale sleeps, and the men of the ship see the whale; naïve 鯨. " * 4
    ids, end = tokenizer().encode(long).tolist(), tokenizer().end_of_text
    assert 64 < len(ids) <= 96
    stream = [end, *ids]
    # Full windows one after the other; the last one is filled with the context before it.
    starts = [*range(0, len(ids) - 32, 32), len(ids) - 32]
    ends = [min(start + 32, len(ids)) for start in range(0, len(ids), 32)]
    firsts = [0, *ends[:-1]]
    windows = [(stream[start : first + 1], ids[first:last]) for start, first, last in zip(starts, firsts, ends, strict=True)]
    found = model.loglikelihood_rolling(requests("loglikelihood_rolling", (long,), (short,), ("",)))
    assert -found[0] == pytest.approx(sum(each.nats for each in scored(windows)), rel=1e-5)
    assert -found[1] == pytest.approx(scored([([end], tokenizer().encode(short))])[0].nats, rel=1e-5)
    assert found[2] == 0


def generator() -> Generator:
    return Generator(subject().model, subject().params, subject().mesh, tokenizer(), dtype=jnp.float32, batch=4)


@pytest.mark.full
def test_generation_is_that_of_the_generator(model: Any) -> None:
    contexts = ["The whale", "", "The men of the ship see the whale; " * 3]
    prompts = [tokenizer().encode(contexts[0]), [tokenizer().end_of_text], tokenizer().encode(contexts[2])[-12:]]
    expected = generator().generate(prompts, Decoding(limit=20, sampling=Sampling(temperature=0.0)))
    asked = {"until": [], "max_gen_toks": 20}
    assert model.generate_until(requests("generate_until", *((each, asked) for each in contexts))) == [e.text for e in expected]
    text = expected[0].text
    stop = {"until": text[2:4], "max_gen_toks": 20, "do_sample": False, "temperature": 0.7}
    drawn = {"max_gen_toks": 20, "temperature": 2.0}
    sampled = generator().generate(prompts[:1], Decoding(limit=20, sampling=Sampling(temperature=2.0)), numbers=[1])[0].text
    made = model.generate_until(requests("generate_until", (contexts[0], stop), (contexts[0], drawn)))
    assert made == [text[: text.index(text[2:4])], sampled]
    for wrong, said in {
        ("max_gen_toks", 32): "max_gen_toks 32 leaves no space for a context in the model's 32 positions",
        ("num_beams", 4): "generation_kwargs: num_beams not supported",
    }.items():
        with pytest.raises(BadInput, match=said):
            model.generate_until(requests("generate_until", (contexts[0], asked | dict([wrong]))))


@pytest.mark.full
@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("family", ["bert", "xlnet", "t5", "transformer"])
def test_every_family_that_scores_text_answers_with_its_own_likelihoods(family: str) -> None:
    from eval.tasks.harness.lm_eval_adapter import HarnessModel

    task_name = "permutation" if family == "xlnet" else "masked"
    seq2seq = family in ("t5", "transformer")
    model_subject = seq2seq_loaded(family) if seq2seq else encoders.loaded(family, task_name)
    model = HarnessModel(model_subject, batch=4)
    texts = [("The old whale", " sleeps by the ship"), ("", "The men of France"), ("The old whale", " sleeps by the ship")]
    method = {"bert": "pseudo", "xlnet": "left_to_right"}.get(family, "target")
    expected = text_likelihoods(model_subject, texts, method=method, batch=4, dtype=jnp.float32)  # pyright: ignore[reportArgumentType]
    answers = model.loglikelihood(requests("loglikelihood", *texts))
    assert answers == [(-each.nats, each.greedy) for each in expected] and answers[0] == answers[2]
    assert model.token_counts[texts[0]] == expected[0].tokens
    (full, empty) = model.loglikelihood_rolling(requests("loglikelihood_rolling", ("The men of France",), ("",)))
    assert (full, empty) == (pytest.approx(-expected[1].nats, rel=1e-6), 0.0)
    asked = {"until": [], "max_gen_toks": 6}
    if not seq2seq:
        with pytest.raises(BadInput, match=f"a {family} generates no text, and the task asks for some"):
            model.generate_until(requests("generate_until", ("The whale", asked)))
        return
    words = model_subject.tokenizer
    source = np.append(words.encode("Call me"), words.end_of_text).astype(np.int32)
    generated = seq2seq_generator(family).generate([source], Decoding(limit=6, sampling=Sampling(temperature=0.0)))
    assert model.generate_until(requests("generate_until", ("Call me", asked))) == [generated[0].text]


@pytest.mark.full
@pytest.mark.usefixtures("no_network")
def test_the_four_normalizations_of_a_local_task_are_those_of_choices(tmp_path: Path) -> None:
    """Two tasks on the same questions: in the harness's form, and in ours."""
    options = [[" sleeps", " see the ship of the men"], [" is seen.", " see the whale"], [" of the ship", " naïve"]]
    questions = [{"context": "The whale", "choices": pair, "label": number % 2} for number, pair in enumerate(options)]
    data = write(tmp_path / "a.jsonl", *questions)
    names = {"acc": "accuracy", "acc_norm": "accuracy_per_character", "acc_mutual_info": "accuracy_pmi"}
    metrics = [{"metric": name, "aggregation": "mean", "higher_is_better": True} for name in names]
    fields: dict[str, Any] = dict(output_type="multiple_choice", doc_to_text="{{context}}", doc_to_target="label")
    fields |= dict(doc_to_choice="choices", target_delimiter="", metric_list=metrics, metadata={"acc_per_token": True})
    folder = task(tmp_path / "tasks", "local", data, **fields)
    settings = Settings(argument="local", pmi=True)
    result = harness_task.TASK.score(subject(), harness_task.TASK.read([folder], settings), settings, quiet)
    settings = Settings(pmi=True)
    ours = choices.TASK.score(subject(), choices.TASK.read([data], settings), settings, quiet)
    for name, own in {**names, "acc_per_token": "accuracy_per_token"}.items():
        # The harness counts a space before a choice as a character.
        assert result.metrics[name] == pytest.approx(ours.metrics[own]), name
    sample = {
        "target": 1,
        "metrics": ["acc"],
        "arguments": [("a", " b"), ("a", " c")],
        "filtered_resps": [(-3.0, True), (-4.0, False)],
    }
    assert harness_task.per_token_outcomes([sample], {("a", " b"): 1, ("a", " c"): 2}) == [1.0]
    with pytest.raises(BadInput, match="acc_per_token: doc_to_target gives 'b'"):
        harness_task.per_token_outcomes([{**sample, "target": "b"}], {})


@pytest.mark.full
@pytest.mark.usefixtures("no_network")
def test_task_files_of_local_data_give_the_accuracy_of_our_task(tmp_path: Path) -> None:
    """A task file for each .jsonl of a folder, and their group."""
    lines = [pair(one, other) for one in SENTENCES[:3] for other in SENTENCES[3:]]
    (tmp_path / "data").mkdir()
    data = [write(tmp_path / "data" / f"{name}.jsonl", *lines[number:]) for number, name in enumerate(("first", "second"))]
    rows = ["the whale sleeps\t1", "the men\t0", "the ship of the men\t1"]
    table = write(tmp_path / "sst2.tsv", "sentence\tlabel", *rows)
    folder = tmp_path / "tasks"
    local_task_files.write_minimal_pair_tasks(tmp_path / "data", folder, "local_blimp")
    local_task_files.write_choice_task(Path(table), folder, "local_sst2", text="sentence", label="label", choices=("bad", "good"))
    settings = Settings(argument="local_blimp")
    result = harness_task.TASK.score(subject(), harness_task.TASK.read([str(folder)], settings), settings, quiet)
    ours = blimp.TASK.score(subject(), blimp.TASK.read(data, Settings()), Settings(), quiet)
    assert result.metrics["acc"] == pytest.approx(ours.metrics["accuracy"], abs=1e-12) and result.examples == len(lines) * 2 - 1
    settings = Settings(argument="local_sst2")
    result = harness_task.TASK.score(subject(), harness_task.TASK.read([str(folder)], settings), settings, quiet)
    prompts = ("the whale sleeps", "the men", "the ship of the men")
    results = scored(encode(tokenizer(), [(text, f" {choice}") for text in prompts for choice in ("bad", "good")]))
    right = [results[2 * n + label].nats < results[2 * n + 1 - label].nats for n, label in enumerate((1, 0, 1))]
    assert result.metrics["acc"] == pytest.approx(sum(right) / 3) and result.examples == 3


@pytest.mark.full
@pytest.mark.usefixtures("no_network")
def test_what_cannot_be_loaded_from_this_machine_is_refused(tmp_path: Path) -> None:
    fields = {"output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{text}}"}
    data = write(tmp_path / "a.jsonl", {"text": "The whale."})
    folder = task(tmp_path / "tasks", "of_the_hub", data, **fields, dataset_path="organisation/name", dataset_kwargs={})
    task(tmp_path / "tasks", "gone", str(tmp_path / "gone.jsonl"), **fields)
    for name, said in {
        "other": "no readable .yaml file defines it; the files define: gone, of_the_hub",
        "of_the_hub": "cannot be loaded without the network: ",
        "gone": "cannot be loaded without the network: .*gone.jsonl",
    }.items():
        with pytest.raises(BadInput, match=f"--task harness:{name}: {said}") as refused:
            harness_task.TASK.read([folder], Settings(argument=name))
        assert "\n" not in str(refused.value)
    with pytest.raises(BadInput, match=r"only \.yaml files are read here"):
        harness_task.TASK.read([data], Settings(argument="gone"))


ROLLING = {"output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{text}}"}


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("place", ["beside", "included", "alias"])
def test_functions_of_a_task_run_only_after_the_user_has_confirmed_them(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    data, canary = write(tmp_path / "a.jsonl", {"text": "The whale."}), tmp_path / "canary"
    folder = task(tmp_path / "tasks", "one", data, **ROLLING)
    module = tmp_path / "tasks/evil.py"
    module.write_text(f"open({str(canary)!r}, 'w').close()\ndef same(docs):\n    return docs\n")
    file = tmp_path / "tasks/one.yaml"
    content = json.loads(file.read_text())
    if place == "included":
        (tmp_path / "evil.py").write_text(module.read_text())
        (tmp_path / "base.yaml").write_text("process_docs: !function evil.same\n")
        file.write_text(json.dumps({**content, "include": "../base.yaml"}))
    elif place == "alias":
        file.write_text(f"%TAG !f! !func\n---\nprocess_docs: !f!tion evil.same\n{yaml.dump(content)}")
    else:
        file.write_text(f"process_docs: !function evil.same\n{yaml.dump(content)}")
    for name in (folder, str(file)):
        line = f"^{name}: its task file names code .* the zoo: the task function evil.same of .*, add --trust {name}"
        with pytest.raises(BadInput, match=line):
            harness_task.TASK.read([name], Settings(argument="one"))
    assert not canary.exists()
    trust_folder(str(file))
    harness_task.TASK.read([folder], Settings(argument="one"))
    assert canary.exists()
    module.write_text(module.read_text() + "\n")
    if place != "included":
        trust.begin_command([])
        with pytest.raises(BadInput, match="the task function evil"):
            harness_task.TASK.read([folder], Settings(argument="one"))


@pytest.mark.usefixtures("no_network")
def test_a_metric_that_is_a_script_is_refused(tmp_path: Path) -> None:
    data = write(tmp_path / "a.jsonl", {"text": "The whale."})
    (tmp_path / "metric").mkdir()
    (tmp_path / "metric/metric.py").write_text(f"open({str(tmp_path / 'canary')!r}, 'w').close()\n")
    for row in ({"metric": str(tmp_path / "metric")}, {"metric": "acc", "hf_evaluate": True}):
        folder = task(tmp_path / "tasks", "one", data, **ROLLING, metric_list=[row])
        with pytest.raises(BadInput, match=r"one.yaml: metric '.*' is not supported; choose one of the harness's own"):
            harness_task.TASK.read([folder], Settings(argument="one"))
    assert not (tmp_path / "canary").exists()


@pytest.mark.usefixtures("no_network")
def test_a_template_that_leaves_the_sandbox_is_refused(tmp_path: Path) -> None:
    data, canary = write(tmp_path / "a.jsonl", {"text": "The whale."}), tmp_path / "canary"
    script = "{{ cycler.__init__.__globals__.os.mkdir('" + str(canary) + "') }}"
    settings = Settings(argument="one")
    folder = task(tmp_path / "tasks", "one", data, **{**ROLLING, "doc_to_target": script})
    with pytest.raises(BadInput, match=r"^--task harness:one: a template is refused \(.*unsafe.*\); correct it$"):
        harness_task.TASK.read([folder], settings)
    assert not canary.exists()


@pytest.mark.planted(3)
def test_templates_of_tasks_have_limits_of_time_depth_and_output() -> None:
    from jinja2 import TemplateError

    from eval.tasks.harness.harness_templates import LimitedEnvironment

    environment = LimitedEnvironment()
    document = {"text": "a whale\n", "choices": ["x", "y"], "number": 1.5}
    source = "{{ text }}{{ choices }}{{ number }}{{ text | regex_replace('wh', 'W') }}\n"
    assert environment.from_string(source).render(**document) == "a whale\n['x', 'y']1.5a Wale\n\n"
    for hostile, problem in {
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}": "it takes more than 2 s",
        "{{ 'x' * 10**9 }}": "it needs more than|it writes",
        "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}": "it is nested|too many nested",
        "{{ absent }}": "'absent' is undefined",
        "{{ text.__class__ }}": "is unsafe",
        "{% if %}": "Expected an expression",
    }.items():
        with pytest.raises(TemplateError, match=problem):
            environment.from_string(hostile).render(**document)
    with pytest.raises(TemplateError, match="cannot be written as JSON"):
        environment.from_string("{{ raw }}").render(raw=b"bytes")
    assert environment.from_string("{{ text }}").render(text="again") == "again"


def test_several_tasks_are_averaged_where_they_measure_the_same() -> None:
    one = {"alias": "a", "acc,none": 0.5, "acc_stderr,none": 0.03, "f1,none": 0.4, "f1_stderr,none": "N/A", "exact,strict": 0.25}
    found = {
        "results": {
            "a": one,
            "b": {"alias": "b", "acc,none": 0.9, "acc_stderr,none": 0.04, "bits_per_byte,none": 2.0},
            "both": {"alias": "both", "acc,none": 0.6},
        },
        "n-samples": {"a": {"original": 9, "effective": 4}, "b": {"original": 3, "effective": 3}},
        "versions": {"a": 1.0, "b": 2.0},
        "n-shot": {"a": 0, "b": 5},
    }
    result = harness_task.harness_summary(found)
    wanted = {"acc": 0.7, "acc_stderr": 0.025, "a f1": 0.4, "a exact,strict": 0.25, "b bits_per_byte": 2.0, "both acc": 0.6}
    assert result.metrics == pytest.approx(wanted)
    own = {"acc": 0.9, "acc_stderr": 0.04, "bits_per_byte": 2.0}
    assert result.examples == 7 and result.details["tasks"]["b"] == {**own, "examples": 3, "version": "2.0", "shots": 5}
    del found["results"]["b"], found["results"]["both"], found["n-samples"]["b"]
    assert harness_task.harness_summary(found).metrics == {"acc": 0.5, "acc_stderr": 0.03, "f1": 0.4, "exact,strict": 0.25}
