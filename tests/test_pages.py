"""Pages that people look at, in Chromium: the site, reports of runs, benchmarks, plans, experiments and the page of `zoo serve`.

Each is opened in a wide and a narrow window, light and dark. Screenshots stay in the folder that the first line of the output
names; pytest's `--basetemp FOLDER` chooses where it is.
"""

import contextlib
import functools
import http.server
import importlib
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.core import result_files
from eval.experiments.page import render_html
from tests.support import browser, encoders, tiny
from tests.support.browser import SCHEMES, WIDTHS
from tests.support.commands import BOOK, words
from tests.support.experiment_result import masks
from tests.support.labelled_files import put
from tests.support.processes import ROOT, clean_environment, run_python
from tests.support.site import WORDS, build, site_copy
from train.tokenizers.tokenizer import Tokenizer
from zoo.cli.commands.bench import BENCHMARKS

pytestmark = pytest.mark.browser
SAMPLE = (
    *("index", "quickstart", "fine-tuning", "feedback-policy-gradients", "evaluation"),
    *("options", "models", "benchmarks", "reference/python", "status"),
)
"""Pages of the site that are looked at in all windows."""
OFTEN = "--log.every 2 --log.validate-every 6 --optim.warmup 2"
RUNS = {
    "pretraining": (*words("gpt-nano --steps 20 --data.paths book.txt"), *tiny.FLAGS, *words("--log.samples 2")),
    "fine-tuning": words(
        "finetune-classification --init bert --data.length 16 --data.batch 16 --data.paths labels.tsv --steps 12"
        f" --data.validation-share 0 {OFTEN}"
    ),
    "feedback": words(
        "rloo --model.vocab 257 --model.context 32 --model.layers 1 --model.width 32 --model.heads 4 --model.head 8 "
        " --model.ffn 64 --tokenizer.path bytes --data.paths prompts.jsonl --data.length 16 --data.batch 16"
        f" --rollout.tokens 6 --rollout.reward low_ids:share --policy-gradient.beta 0 --steps 12 {OFTEN}"
    ),
}
"""Kind -> the arguments of `zoo train`."""
KINDS = (("the white", "good"), ("a naive", "bad"))
"""Texts and their labels."""
TRAIN = """
import json, sys
from zoo.cli import main
for argv in json.loads(sys.argv[1]):
    assert main.main(argv) == 0, argv
"""
BENCHED = {"attention": "attention-sweep_xeon-2-cores_2026-11-26", "feedback": "feedback_epyc-2-cores_2026-11-29"}
"""Benchmark -> the folder of results whose page is made."""


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    try:
        with browser.chromium() as started:
            yield started
    except browser.NoBrowser as error:
        pytest.fail(str(error), pytrace=False)


@pytest.fixture(scope="module")
def screenshots(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Path:
    folder = tmp_path_factory.mktemp("screenshots")
    with pytestconfig.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print(f"\nscreenshots: {folder}")
    return folder


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve a folder, and yield host and port."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = site_copy(tmp_path_factory.mktemp("site"))
    code, output = build(folder, "zensical")
    assert code == 0, output
    return folder / "site"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a run of each kind in runs/."""
    folder = tmp_path_factory.mktemp("trained")
    put(folder / "book.txt", BOOK)
    rows = [f"{text} whale {number} is seen by old men of the ship\t{label}\n" for number in range(48) for text, label in KINDS]
    put(folder / "labels.tsv", "text\tlabel\n" + "".join(rows))
    put(folder / "prompts.jsonl", [{"prompt": f"{number}="} for number in range(30)])
    put(folder / "low_ids.py", "def share(ids, **_):\n    return [sum(id < 64 for id in row) / 6 for row in ids]\n")
    encoders.folder(folder / "bert", "bert")
    (folder / "bytes").mkdir()
    Tokenizer.train([], 257).save(folder / "bytes")
    argv = [["train", *flags, "--name", name] for name, flags in RUNS.items()]
    done = run_python("-c", TRAIN, json.dumps(argv), cwd=folder, env={"PYTHONPATH": str(ROOT)}, timeout=600)
    assert done.code == 0, done
    return folder


def faults_in_all_windows(chromium: Any, address: str, screenshots: Path, name: str, host: str = "") -> list[str]:
    """Open a page in all windows, and return its faults there."""
    faults = []
    for width in WIDTHS:
        for scheme in SCHEMES:
            with browser.view(chromium, width, scheme, host) as view:
                view.open(address)
                found = [*view.layout_faults(), *view.contrast_faults(), *view.take_faults()]
                faults += [f"{name}, {width} px, {scheme}: {fault}" for fault in dict.fromkeys(found)]
                view.screenshot(screenshots / f"{name.replace('/', '-')}-{width}-{scheme}.png")
    return faults


def test_every_page_of_the_site_fits_a_narrow_window(site: Path, chromium: Any) -> None:
    faults = []
    with served(site) as host, browser.view(chromium, 400, "light", host) as view:
        for path in sorted(site.rglob("*.html")):
            name = path.relative_to(site).as_posix()
            view.open(f"http://{host}/{name}")
            faults += [f"{name}: {fault}" for fault in (*view.layout_faults(), *view.take_faults())]
    assert faults == []


def test_pages_of_the_site_are_legible_in_all_windows(site: Path, chromium: Any, screenshots: Path) -> None:
    with served(site) as host:
        assert [
            fault
            for name in SAMPLE
            for fault in faults_in_all_windows(chromium, f"http://{host}/{name}.html", screenshots, name, host)
        ] == []


def test_the_search_of_the_site_finds_words(site: Path, chromium: Any, screenshots: Path) -> None:
    """They are typed into its box; the results contain the word."""
    with served(site) as host, browser.view(chromium, 1280, "light", host) as view:
        view.open(f"http://{host}/index.html")
        view.page.locator(".md-search__button").click()
        box, results = view.page.get_by_role("combobox", name="Search"), view.page.get_by_role("option")
        for word in WORDS:
            box.fill(word)
            results.filter(has_text=word).first.wait_for(timeout=20_000)
        view.screenshot(screenshots / "search-1280-light.png")
        results.first.click()
        view.page.wait_for_url("**/*.html?h=*")
        assert view.take_faults() == []


@pytest.mark.parametrize("kind", RUNS)
def test_the_report_of_a_run(kind: str, trained: Path, chromium: Any, screenshots: Path) -> None:
    assert (
        faults_in_all_windows(chromium, (trained / "runs" / kind / "report.html").as_uri(), screenshots, f"report-{kind}") == []
    )


def bench_page(name: str) -> str:
    """Return the page of recorded results, as the command writes it."""
    command = importlib.import_module(BENCHMARKS[name][1]).BENCHMARK
    return command.page(result_files.read_results(ROOT / "benchmarks" / "results" / BENCHED[name]))


def plan_page(folder: Path) -> str:
    argv = ["plan", "gpt-nano", "--target", "cpu:8", "--mesh.fsdp", "4", "--batch", "32", "--page", "plan.html"]
    done = run_python("-P", "-m", "zoo.cli", *argv, cwd=folder)
    assert done.code == 0, done
    return (folder / "plan.html").read_text(encoding="utf-8")


def experiment_page(name: str) -> str:
    return render_html(json.loads((ROOT / "eval/experiments/results" / name / "experiment.json").read_text(encoding="utf-8")))


PAGES: dict[str, Callable[[Path], str]] = {
    "plan": plan_page,
    "experiment": lambda folder: render_html(masks()),
    **{f"bench-{name}": lambda folder, name=name: bench_page(name) for name in BENCHED},
    "experiment-scaling": lambda folder: experiment_page("scaling"),
}


@pytest.mark.parametrize("name", PAGES)
def test_other_pages_that_commands_write(name: str, tmp_path: Path, chromium: Any, screenshots: Path) -> None:
    file = tmp_path / "page.html"
    file.write_text(PAGES[name](tmp_path), encoding="utf-8")
    assert faults_in_all_windows(chromium, file.as_uri(), screenshots, name) == []


def test_the_page_of_a_served_model(trained: Path, chromium: Any, screenshots: Path) -> None:
    argv = [sys.executable, "-m", "zoo.cli", "serve", "runs/pretraining", "--port", "0"]
    environment = clean_environment() | {"PYTHONPATH": str(ROOT)}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    with subprocess.Popen(argv, cwd=trained, env=environment, **pipes) as process:
        try:
            assert process.stdout is not None
            address = process.stdout.readline().split()[1]
            host = address.partition("//")[2].rstrip("/")
            assert faults_in_all_windows(chromium, address, screenshots, "serve", host) == []
            with browser.view(chromium, 400, "dark", host) as view:
                view.open(address)
                view.page.get_by_role("textbox").fill("The 7th whale")
                view.page.get_by_role("spinbutton", name="Tokens").fill("4")
                view.page.get_by_role("button", name="Send").click()
                view.page.get_by_role("status").filter(has_text="4 tokens").wait_for(timeout=120_000)
                assert [*view.layout_faults(), *view.contrast_faults(), *view.take_faults()] == []
                view.screenshot(screenshots / "serve-answered-400-dark.png")
        finally:
            process.terminate()


SVG = '<svg viewBox="0 0 100 100" width="100" height="100">{}</svg>'
WRONG = {
    "overflow": '<div style="width:900px">wide</div>',
    "cut": '<div style="width:40px;overflow:hidden;white-space:nowrap">a text that is cut</div>',
    "out of its cell": '<table style="table-layout:fixed;width:60px"><tr><td>Donaudampfschiffahrt<td>b</table>',
    "contrast": '<p style="color:#999;background:#fff">grey</p>',
    "contrast 2": SVG.format('<text y="50" style="fill:#999">grey</text>'),
    "cut: <text": SVG.format('<text x="80" y="50">a text that is cut</text>'),
    "on other text": SVG.format('<text y="50">one</text><text y="52">two</text>'),
    "console: error": "<script>console.error('wrong')</script>",
    "console: warning": "<script>console.warn('wrong')</script>",
    "console: thrown": "<script>throw new Error('thrown')</script>",
    "answer 404": '<img src="absent.png" alt="">',
    "no answer": '<img src="http://127.0.0.1:9/a.png" alt="">',
    "elsewhere": '<img src="http://127.0.0.1:9/a.png" alt="">',
}
RIGHT = [
    '<div style="overflow-x:auto"><div style="width:900px">wide, in a box that scrolls</div></div>',
    '<div style="width:40px;overflow:hidden;white-space:nowrap;text-overflow:ellipsis" title="shortened">shortened</div>',
    SVG.format('<text y="20">one</text><text y="60">two</text>'),
]


def faults_of(body: str, folder: Path, chromium: Any) -> list[str]:
    (folder / "index.html").write_text(f"<!doctype html><html lang=en><title>a</title><link rel=icon href=data:,>{body}")
    with served(folder) as host, browser.view(chromium, 400, "light", host) as view:
        view.open(f"http://{host}/index.html")
        return [*view.layout_faults(), *view.contrast_faults(), *view.take_faults()]


def test_a_page_without_faults_has_none(tmp_path: Path, chromium: Any) -> None:
    assert [fault for body in RIGHT for fault in faults_of(body, tmp_path, chromium)] == []


@pytest.mark.planted(len(WRONG))
def test_each_fault_is_caught(tmp_path: Path, chromium: Any) -> None:
    caught = {name: faults_of(body, tmp_path, chromium) for name, body in WRONG.items()}
    assert {name: faults for name, faults in caught.items() if not any(fault.startswith(name) for fault in faults)} == {}


def test_a_missing_browser_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHROMIUM", "absent-program")
    with pytest.raises(browser.NoBrowser, match="--browser: there is no absent-program; install Chromium, or name its program"):
        browser.executable()
