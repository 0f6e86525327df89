"""The files of GLUE as published, how fine-tuned models are scored on them, and their text form. Nothing here imports JAX.

Source: Wang et al. 2019, "GLUE: A Multi-Task Benchmark and Analysis Platform", table 1 and section 3: each task's metrics, the
mean of those of one task, and the mean over the nine tasks. MNLI is scored on matched and mismatched texts, whose mean counts
once.

The text form of a task, for models of text to text, is that of Raffel et al. 2020, appendix D (written from memory): the name of
the task, and each text after the name of its column; labels are words. WNLI, which has another form there, has this one here.
STS-B's scores are rounded to fifths, and an answer that is no number counts as 0.
"""

from pathlib import Path
from typing import NamedTuple

from train.config.option_groups import Labelled
from train.data.example_types import Text
from train.data.labelled_reader import read_labelled_examples
from zoo.errors import BadInput

SOURCE = "gluebenchmark.com/tasks (Wang et al. 2019), unpacked"


class GlueFile(NamedTuple):
    """A labelled file of GLUE."""

    task: str
    """Name in `eval.metrics.metric_functions.GLUE`, and of the run that is fine-tuned on it."""
    folder: str
    """Folder of the file as published; in any case of letters."""
    file: str
    text: str
    label: str
    pair: str = ""
    """Columns of the text, the label and the second text."""
    form: tuple[str, str] = ("sentence1", "sentence2")
    """Names of both texts in the text form."""
    words: dict[str, str] | None = None
    """Label -> word of the text form; None: the label itself, or a number."""
    header: bool = True
    row: str = ""
    """Name in the table, if it is not the task's."""

    @property
    def name(self) -> str:
        return self.row or self.task


ENTAILED = {"0": "not_entailment", "1": "entailment"}
FILES = (
    GlueFile(
        "cola", "CoLA", "dev.tsv", "4", "2", form=("sentence", ""), words={"0": "unacceptable", "1": "acceptable"}, header=False
    ),
    GlueFile("sst2", "SST-2", "dev.tsv", "sentence", "label", form=("sentence", ""), words={"0": "negative", "1": "positive"}),
    GlueFile("mrpc", "MRPC", "dev.tsv", "#1 String", "Quality", "#2 String", words={"0": "not_equivalent", "1": "equivalent"}),
    GlueFile(
        *("qqp", "QQP", "dev.tsv", "question1", "is_duplicate", "question2", ("question1", "question2")),
        words={"0": "not_duplicate", "1": "duplicate"},
    ),
    GlueFile("stsb", "STS-B", "dev.tsv", "sentence1", "score", "sentence2"),
    GlueFile("mnli", "MNLI", "dev_matched.tsv", "sentence1", "gold_label", "sentence2", ("premise", "hypothesis")),
    GlueFile(
        *("mnli", "MNLI", "dev_mismatched.tsv", "sentence1", "gold_label", "sentence2", ("premise", "hypothesis")), row="mnli-mm"
    ),
    GlueFile("qnli", "QNLI", "dev.tsv", "question", "label", "sentence", ("question", "sentence")),
    GlueFile("rte", "RTE", "dev.tsv", "sentence1", "label", "sentence2"),
    GlueFile("wnli", "WNLI", "dev.tsv", "sentence1", "label", "sentence2", words=ENTAILED),
)
"""The files that are published with labels."""


class LocalGlue(NamedTuple):
    """A file of GLUE, and what of it and of its model is on this machine."""

    glue: GlueFile
    file: Path | None
    run: Path | None


def find_glue(runs: str, data: str) -> list[LocalGlue]:
    """Return the files in a folder of GLUE, and the run in `runs` that has the name of each task.

    Raises:
        BadInput: no such folder.
    """
    for option, name in (("--suite-data ", data), ("", runs)):
        if not Path(name).is_dir():
            raise BadInput(f"{option}{name}: no such folder; name one with {'the folders of GLUE' if option else 'runs by task'}")
    by_task = {plain_name(folder.name): folder for folder in sorted(Path(runs).iterdir()) if (folder / "config.json").is_file()}
    folders = {plain_name(folder.name): folder for folder in sorted(Path(data).iterdir()) if folder.is_dir()}
    parts = []
    for glue in FILES:
        file = folders.get(plain_name(glue.folder), Path(data)) / glue.file
        parts.append(
            LocalGlue(glue, file if plain_name(glue.folder) in folders and file.is_file() else None, by_task.get(glue.task))
        )
    return parts


def check_glue(parts: list[LocalGlue], runs: str, data: str, *, partial: bool) -> None:
    """Refuse a folder that lacks files or runs.

    Raises:
        BadInput: names the files, with their columns and source, and the runs.
    """
    complete = [part for part in parts if part.file is not None and part.run is not None]
    if len(complete) == len(parts) or (partial and complete):
        return
    files = [
        f"{part.glue.folder}/{part.glue.file} [{', '.join(filter(None, part.glue[3:6]))}]" for part in parts if part.file is None
    ]
    names = list(dict.fromkeys(part.glue.task for part in parts if part.run is None))
    lacks = [f"{data} lacks {', '.join(files)} from {SOURCE}"] if files else []
    lacks += [f"{runs} lacks runs that are fine-tuned on and named {', '.join(names)}"] if names else []
    fix = "put them there" if partial or not complete else "put them there, or add --partial to score the others, without a mean"
    raise BadInput(f"--suite glue-files: {'; '.join(lacks)}; {fix}")


def labelled_options(glue: GlueFile) -> Labelled:
    """Return the options that read a file of GLUE."""
    named = ("header", "label", "pair", "text")
    return Labelled(text=glue.text, pair=glue.pair, label=glue.label, header=glue.header, named=named)


def text_examples(glue: GlueFile, file: Path, limit: int = 0) -> tuple[list[str], list[str]]:
    """Return (sources, labels in words) of a file's examples in the text form.

    Raises:
        BadInput: a label that the task does not have; see also `read_labelled_examples`.
    """
    from train.config.data_options import Data
    from train.config.find_objective import from_labelled

    options = from_labelled("classification", labelled_options(glue)).labelled
    examples = read_labelled_examples("classification", (str(file),), Data(), options)[0]
    sources, labels = [], []
    for example in examples[: limit or None]:
        assert isinstance(example, Text)
        label = str(example.label)
        if glue.words is not None and label not in glue.words:
            raise BadInput(f"{example.origin}: label {label!r}; the labels of {glue.task} are {', '.join(glue.words)}")
        texts = dict(zip(glue.form, (example.text, example.pair), strict=True))
        if glue.task == "mnli":
            texts = {name: texts[name] for name in ("hypothesis", "premise")}
        sources.append(" ".join([glue.task, *(f"{name}: {text}" for name, text in texts.items() if name)]))
        labels.append(_fifths(label) if glue.task == "stsb" else label if glue.words is None else glue.words[label])
    return sources, labels


def is_number(text: str) -> bool:
    """Return whether a text is a number."""
    try:
        return abs(float(text)) < float("inf")
    except ValueError:
        return False


def plain_name(name: str) -> str:
    """Return the name of a task without case and signs: sst2 of SST-2."""
    return "".join(letter for letter in name.lower() if letter.isalnum())


def _fifths(label: str) -> str:
    return f"{round(5 * float(label)) / 5:.1f}"
