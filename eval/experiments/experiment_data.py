"""The data of an experiment: its task files, and as text the embedded corpus, a fixed public one, or the user's own.

A corpus is a folder with `train/` and `valid/`, in the forms that `--data.paths` reads. Task files are a folder with the
published files of a data set, as `multi30k/train.en.gz`. A smoke test needs neither: its text is the embedded corpus, and its
task files are generated from it, in the same format.
"""

import dataclasses
import gzip
import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from eval.experiments.declaration import Tier
from train.config.data_options import TextData
from train.data import corpus
from train.data.corpus import Documents
from train.run.run_dir import replace_atomically
from zoo.errors import BadInput
from zoo.sha256_and_fsync import sha256

PUBLIC_SHA256 = "db6c523f8291149bd507ab511f159657a9534fd93875ba16cb65e62ca84c6971"
"""Digest of the `public` corpus, which `eval.experiments.public_corpus` builds from its sources."""
EMBEDDED = "embedded"
ANY = "any"
TOY_EXAMPLES = {"train": 240, "val": 60, "test_2016_flickr": 60}
"""Examples of a generated task file."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Files:
    """Folders that replace the placeholders in options, and their contents."""

    train: str
    valid: str
    tasks: str
    corpus: str
    """Kind and digest of the corpus, as "embedded fe282a57"; it is part of the registration."""
    deviations: tuple[str, ...] = ()
    """Differences from the declared files, in words."""

    def fill(self, text: str, run: str = "") -> str:
        """Return a text with its placeholders replaced."""
        for name, folder in (("train", self.train), ("valid", self.valid), ("tasks", self.tasks), ("run", run)):
            text = text.replace("{" + name + "}", folder)
        return text

    def without_folders(self, text: str) -> str:
        """Return a text in which CORPUS and TASKS stand for the folders of --corpus and --tasks on this machine."""
        for name, folder in (("CORPUS", Path(self.train).parent), ("TASKS", Path(self.tasks))):
            text = text.replace(str(folder), name) if folder.is_absolute() else text
        return text


def find_files(tier: Tier, needs_tasks: bool, *, folder: str, digest: str, tasks: str) -> Files:
    """Return the files of a tier, without writing any.

    Args:
        needs_tasks: whether a stage reads task files.
        folder: the user's corpus; "" = the tier's own, "embedded" = the embedded one.
        digest: SHA-256 that the user's corpus must have; "" = the tier's, "any" = not checked.
        tasks: the user's folder of task files.

    Raises:
        BadInput: the tier needs a folder that is not named, there is none, or the corpus has another digest.
    """
    deviations = []
    if tier.corpus == "embedded" and folder not in ("", EMBEDDED) and digest == "":
        raise BadInput(
            f"--corpus {folder}: this tier trains on the embedded corpus; add --corpus-digest any to train on another one"
        )
    if not folder and tier.corpus != "embedded":
        fix = "name a folder with train/ and valid/, or choose --corpus embedded --corpus-digest any"
        raise BadInput(
            f"--corpus: this tier trains on {'the `public` corpus' if tier.corpus == 'public' else 'your own text'}; {fix}"
        )
    if folder in ("", EMBEDDED):
        if tier.corpus != "embedded" and digest != ANY:
            raise BadInput(f"--corpus embedded: this tier trains on the {tier.corpus} corpus; add --corpus-digest any")
        if tier.corpus != "embedded":
            deviations.append(f"trained on the embedded corpus instead of the {tier.corpus} one")
        train, valid, label = "files/train", "files/valid", f"embedded {corpus.EMBEDDED_SHA256}"
    else:
        train, valid = (str((Path(folder) / name).resolve()) for name in ("train", "valid"))
        for part in (train, valid):
            if not Path(part).is_dir():
                raise BadInput(f"--corpus {folder}: it has no folder {Path(part).name}/; see docs/experiments.md")
        actual = folder_digest(Path(folder))
        expected = digest or (PUBLIC_SHA256 if tier.corpus == "public" else ANY)
        if expected not in (ANY, actual):
            fix = "build it as docs/experiments.md says, or add --corpus-digest any to train on another corpus"
            raise BadInput(f"--corpus {folder}: its SHA-256 is {actual}, and the tier's corpus has {expected}; {fix}")
        label = f"{tier.corpus if actual == PUBLIC_SHA256 else 'user'} {actual}"
        if tier.corpus != "user" and actual != PUBLIC_SHA256:
            deviations.append(f"trained on the corpus with SHA-256 {actual} instead of the {tier.corpus} one")
    if needs_tasks and tier.tasks == "files" and not tasks:
        raise BadInput("--tasks: this tier reads published task files; name the folder that has them, see docs/experiments.md")
    if tasks and not Path(tasks).is_dir():
        raise BadInput(f"--tasks {tasks}: no such folder")
    own_tasks = str(Path(tasks).resolve()) if tasks else "files/tasks"
    return Files(train=train, valid=valid, tasks=own_tasks, corpus=label, deviations=tuple(deviations))


def folder_digest(folder: Path) -> str:
    """Return the SHA-256 of the names and contents of the files in `train/` and `valid/` of a corpus."""
    corpus_digest = hashlib.sha256()
    for part in ("train", "valid"):
        for path in sorted(path for path in (folder / part).rglob("*") if path.is_file()):
            content = sha256(path)
            corpus_digest.update(f"{path.relative_to(folder).as_posix()}\0{content}\n".encode())
    return corpus_digest.hexdigest()


def task_digests(files: Files, texts: Iterable[str]) -> dict[str, str]:
    """Return name in the folder of --tasks -> SHA-256 of each task file that option values name; {} if they are generated.

    Raises:
        BadInput: a file does not exist.
    """
    names = sorted({text for text in texts if text.startswith("{tasks}/")}) if Path(files.tasks).is_absolute() else []
    if missing := [name for name in names if not Path(files.fill(name)).is_file()]:
        raise BadInput(f"--tasks: there is no file {files.fill(missing[0])}; see docs/experiments.md for the files it needs")
    return {name.removeprefix("{tasks}/"): sha256(Path(files.fill(name))) for name in names}


def write_files(files: Files, folder: Path) -> None:
    """Write the embedded corpus and the generated task files below an experiment's folder, unless the user's are used."""
    if not Path(files.train).is_absolute() and not (folder / files.valid / "text.jsonl").exists():
        training, held_out = corpus.split_corpus(TextData())
        for name, documents in ((files.train, training), (files.valid, held_out)):
            lines = (json.dumps({"text": text}) + "\n" for text in document_texts(documents))
            _write(folder / name / "text.jsonl", lines)
    if not Path(files.tasks).is_absolute() and not (folder / files.tasks / "multi30k" / "done").exists():
        training, _ = corpus.split_corpus(TextData())
        _write_tasks(folder / files.tasks, " ".join(document_texts(training)))


def document_texts(documents: Documents) -> Iterator[str]:
    """Yield the text of each document, its chunks joined."""
    chunks: list[str] = []
    for document in documents:
        chunks.append(document.text)
        if document.last:
            yield "".join(chunks)
            chunks = []


def _write_tasks(folder: Path, text: str) -> None:
    """Write task files in the form of Multi30k, made of the sentences of a text.

    The "translation" of a sentence has its words in reverse order: a task that a small model can begin to learn.
    """
    sentences = [" ".join(sentence.split()) for sentence in re.split(r"(?<=[.!?])\s+", text)]
    sentences = [sentence for sentence in sentences if 20 <= len(sentence) <= 90]
    start = 0
    for part, count in TOY_EXAMPLES.items():
        chosen, start = sentences[start : start + count], start + count
        reverse = (" ".join(reversed(sentence.split())) + "\n" for sentence in chosen)
        for language, lines in (("en", (f"{sentence}\n" for sentence in chosen)), ("de", reverse)):
            _write(folder / "multi30k" / f"{part}.{language}.gz", lines)
    _write(folder / "multi30k" / "done", ())


def _write(path: Path, lines: Iterable[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = "".join(lines).encode()
    with replace_atomically(path) as file:
        file.write(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)
