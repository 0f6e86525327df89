"""Labelled examples of a run, read from files and data sets in the formats of its task, and split into two halves."""

import bisect
import dataclasses
import itertools
import json
import math
import string as characters
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from train.config.data_options import Data
from train.config.option_groups import Choices, ExampleFileOptions, LabelledTexts, PairTables, TaggedWords
from train.data import dataset_formats, embedding_records, preference_records, prompt_records, records
from train.data.dataset_formats import get_field
from train.data.dialogues import is_dialogue, parse_dialogue
from train.data.example_types import Answer, Choice, Example, Pair, Question, Tagged, Text
from train.data.records import Record, column_value
from train.data.sources import check_file, file_kind, files_in, load_data_set, refuse_repeated
from train.data.text_files import check_string, json_type
from zoo.errors import BadInput, require
from zoo.file_access import real_path

Reader = Callable[[Path, Any], Iterator[Record | BadInput]]

ANY: dict[str, Reader] = {".jsonl": records.read_json_records, ".parquet": records.read_parquet_records}
CHAT: dict[str, Reader] = {**ANY, ".json": records.json_array}
"""Files of instructions, preferences and prompts."""
TABLES: dict[str, Reader] = {".tsv": records.read_tsv, ".csv": records.comma_separated, **ANY}
LABEL_LISTS = 'with --labelled.multi-label, write a list of names, "labels", in .jsonl or .parquet'
"""The advice in messages about labels that are not lists."""


@dataclasses.dataclass(frozen=True)
class Task:
    """File formats of the examples of an objective."""

    files: dict[str, Reader]
    """Readers by file suffix; text files may also have .gz, .xz or .bz2 appended."""
    example: Callable[[Record, Any], Example]
    formats: tuple[str, ...]
    """Values of --labelled.format that select one of these formats whatever the names of the files are."""


def split_examples(
    objective: str, data: Data, options: ExampleFileOptions, left_out: list[str] | None = None
) -> tuple[list[Example], list[Example]]:
    """Return (training, held-out) examples. Every file is read and checked here. `left_out` is as in `read_labelled_examples`.

    The held-out examples are those of `valid_paths`, or else about the last `valid_fraction` of the examples of `paths`. Examples
    of one document (such as the questions about an article) are in the same half.

    Raises:
        BadInput: no paths, a file that cannot be read or is in both halves, a bad line or row (with its number), or too few
            examples for two halves.
    """
    if not data.paths:
        raise BadInput(f"--data.paths: there is no embedded data for {objective}; name files: {format_names(objective)}")
    training, training_keys = read_labelled_examples(objective, data.paths, data, options, left_out)
    if not data.valid_paths:
        return split_halves(training, data.valid_fraction)
    held_out, held_out_keys = read_labelled_examples(objective, data.valid_paths, data, options, left_out)
    if both := training_keys & held_out_keys:
        raise BadInput(f"--data.valid-paths {min(both)}: it is also in --data.paths; hold out data that is not trained on")
    return training, held_out


def read_labelled_examples(
    objective: str, paths: tuple[str, ...], data: Data, options: ExampleFileOptions, left_out: list[str] | None = None
) -> tuple[list[Example], set[str]]:
    """Return the examples that some paths name, in order, and the identities (`Source.key`) of their files and data sets.

    Args:
        left_out: list to which the error message of each example that `options.skip_bad` leaves out is appended.

    Raises:
        BadInput: a file cannot be read, as in `split_examples`, or `options.format` is not a format of the objective.
    """
    task = TASKS[objective]
    fix = f"{objective} does not read it; choose {', '.join(task.formats)}"
    require(options.format in ("auto", *task.formats), "labelled.format", options.format, fix)
    examples, keys, messages = [], set(), [] if left_out is None else left_out
    for number, path in enumerate(paths):
        for key, where, source_records in sources(path, task, data, options):
            refuse_repeated(path, key, keys)
            examples_before, errors_before = len(examples), len(messages)
            for record in source_records:
                try:
                    if isinstance(record, BadInput):
                        raise record
                    examples.append(dataclasses.replace(task.example(record, options), path_number=number))
                except BadInput as error:
                    if not isinstance(options, Choices) or not options.skip_bad:
                        raise
                    messages.append(str(error))
            if len(examples) == examples_before:
                malformed = messages[errors_before:]
                why = (
                    f"no example that can be used; the first of {len(malformed)}: {malformed[0]}" if malformed else "no examples"
                )
                raise BadInput(f"{where}: holds {why}")
            keys.add(key)
    return examples, keys


def format_names(objective: str) -> str:
    """Return the formats that an objective reads, in words."""
    return _kinds(TASKS[objective])


def _kinds(task: Task) -> str:
    ends = ", ".join(end for end in task.files if end != ".parquet")
    return f"{ends}, these also as .gz, .xz or .bz2, .parquet, and what `datasets` has written"


def sources(
    path: str, task: Task, data: Data, options: ExampleFileOptions
) -> Iterator[tuple[str, str, Iterator[Record | BadInput]]]:
    """Yield (key, name, records) of every file or data set that a path names; records are read lazily.

    Raises:
        BadInput: a file cannot be read, as in `split_examples`.
    """

    def reader(file: Path) -> Reader | None:
        return task.files.get(file_kind(file) if options.format == "auto" else ENDINGS[options.format])

    if data_split := load_data_set(path, data):
        fix = f"{data_split.where} is a data set, whose format is known; remove it"
        require(options.format == "auto", "labelled.format", options.format, fix)
        yield data_split.key, data_split.where, records.read_data_set(data_split)
        return
    supported = _kinds(task)
    choices = " or ".join(filter(None, (", ".join(task.formats[:-1]), task.formats[-1])))
    fix = f"; rename it, or choose --labelled.format {choices}"
    for file in files_in(Path(path), reader, supported) if Path(path).is_dir() else [Path(path)]:
        yield str(real_path(file)), str(file), check_file(file, reader, supported, fix)(file, options)


def split_halves(examples: list[Any], fraction: float) -> tuple[list[Any], list[Any]]:
    """Return (training, held-out) examples; the held-out share is `fraction`, rounded to whole documents.

    The cut is before the document, in order of first appearance, that begins nearest to (1 - fraction) of the examples.
    """
    documents: dict[Any, list[int]] = {}
    for number, example in enumerate(examples):
        documents.setdefault(example.document or number, []).append(number)
    ends = list(itertools.accumulate(map(len, documents.values())))
    if len(ends) < 2:
        raise BadInput(f"--data.paths: all {len(examples)} examples are of one document; name others in --data.valid-paths")
    target = (1 - fraction) * len(examples)
    after = bisect.bisect_left(ends, target)
    cut = min((max(after - 1, 0), min(after, len(ends) - 2)), key=lambda number: abs(ends[number] - target)) + 1
    groups = list(documents.values())
    return tuple([examples[n] for group in half for n in group] for half in (groups[:cut], groups[cut:]))  # pyright: ignore


def split_evenly_spaced(examples: list[Any], share: float) -> tuple[list[Any], list[Any]]:
    """Return (other examples, chosen examples), both in their order: `share` of the documents, evenly spaced over all of them.

    Unlike the last ones, they are a sample of all parts of the files, which may be sorted by label.

    Raises:
        BadInput: all examples are of one document.
    """
    documents = list(dict.fromkeys(example.document or number for number, example in enumerate(examples)))
    if len(documents) < 2:
        raise BadInput(f"--data.validation-share {share}: all {len(examples)} training examples are of one document; choose 0")
    count = min(max(1, round(share * len(documents))), len(documents) - 1)
    chosen = {documents[(2 * place + 1) * len(documents) // (2 * count)] for place in range(count)}
    is_chosen = [(example.document or number) in chosen for number, example in enumerate(examples)]
    parts = [[example for example, is_one in zip(examples, is_chosen, strict=True) if is_one == part] for part in (False, True)]
    return parts[0], parts[1]


# --- Records to examples ---


def _text(record: Record, options: LabelledTexts) -> Text:
    where = record.where
    text = check_string(column_value(record, options.text, "text", 0, "text"), f"{where}: the text")
    pair = check_string(column_value(record, options.pair, "", 0, "pair"), f"{where}: the second text") if options.pair else None
    if not text.strip() and not (pair or "").strip():
        raise BadInput(f"{where}: the text is empty; write one, remove the example, or skip it with --labelled.skip-bad")
    value = _label(record, options)
    if options.multi_label:
        return Text(origin=where, text=text, pair=pair, label=_classes(value, where))
    label = _number(value, where) if options.regression else _class(value, where)
    if options.coarse:
        label, colon, _ = str(label).partition(":")
        if not colon or not label:
            raise BadInput(f"{where}: label {json.dumps(value)} has no colon; remove --labelled.coarse")
    return Text(origin=where, text=text, pair=pair, label=label)


def _label(record: Record, options: LabelledTexts) -> Any:
    """Return the value of the column "label", or of "labels" if a text may have several."""
    name, other = ("labels", "label") if options.multi_label else ("label", "labels")
    if not options.label and other in record.values and name not in record.values:
        fix = 'write one name, "label", or add --labelled.multi-label if every text has a list of names'
        raise BadInput(f'{record.where}: it has "{other}", not "{name}"; {LABEL_LISTS if options.multi_label else fix}')
    return column_value(record, options.label, name, -1, "label")


def _pair(record: Record, options: PairTables) -> Example:
    where = record.where
    if not (options.text or options.label or "source" in record.values) and is_dialogue(record):
        return parse_dialogue(record)
    source = check_string(column_value(record, options.text, "source", 0, "text"), f"{where}: the source")
    target = check_string(column_value(record, options.label, "target", -1, "label"), f"{where}: the target")
    return text_pair(where, source, target)


def text_pair(where: str, source: str, target: str) -> Pair:
    """Return a pair of texts.

    Raises:
        BadInput: one of the texts is empty.
    """
    for name, text in (("source", source), ("target", target)):
        if not text.strip():
            raise BadInput(f"{where}: the {name} is empty; write some text, or remove the pair")
    return Pair(origin=where, source=source, target=target)


def _tagged(record: Record, options: TaggedWords) -> Tagged:
    where = record.where
    columns = {
        "words": column_value(record, options.text, "tokens", 0, "text"),
        "tags": column_value(record, options.label, "tags", -1, "label"),
    }
    for name, value in columns.items():
        if not isinstance(value, list):
            raise BadInput(f"{where}: the column of {name} holds {json_type(value)}, not a list; choose another, or write .conll")
    words = tuple(check_string(word, f"{where}: the column of words") for word in columns["words"])
    tags = tuple(_class(tag, where) for tag in columns["tags"])
    if len(words) != len(tags) or not words:
        raise BadInput(f"{where}: {len(words)} words and {len(tags)} tags; every word needs one tag, a sentence a word")
    return Tagged(origin=where, words=words, tags=tags)


def _question(record: Record, options: ExampleFileOptions) -> Question:
    del options
    where, values = record.where, record.values
    answers = get_field(values, "answers", dict, where)
    texts, starts = get_field(answers, "text", list, where), get_field(answers, "answer_start", list, where)
    if len(texts) != len(starts):
        raise BadInput(f"{where}: {len(texts)} answers with {len(starts)} starts; each answer needs one")
    context = check_string(get_field(values, "context", str, where), f"{where}: the context")
    for text, start in zip(texts, starts, strict=True):
        if not check_string(text, f"{where}: an answer").strip():
            raise BadInput(f"{where}: an answer without characters; write an empty list of answers if there is none")
        if not isinstance(start, int) or start < 0 or context[start : start + len(text)] != text:
            raise BadInput(
                f"{where}: the answer {json.dumps(text[:80])} is not at character {start} of the context of {len(context)}; "
                "fix the answer or its start"
            )
    return Question(
        origin=where,
        document=check_string(values.get("title") or context, f"{where}: the title"),
        id=str(values.get("id") or where),
        question=check_string(get_field(values, "question", str, where), f"{where}: the question"),
        context=context,
        answers=tuple(map(Answer, texts, starts)),
    )


def _choice(record: Record, options: ExampleFileOptions) -> Choice:
    del options
    where, values = record.where, record.values
    article, question, letter = (
        check_string(get_field(values, key, str, where), f"{where}: {key}") for key in ("article", "question", "answer")
    )
    choices = tuple(check_string(choice, f"{where}: an option") for choice in get_field(values, "options", list, where))
    letters = characters.ascii_uppercase[: len(choices)]
    if len(choices) < 2 or len(letter) != 1 or letter not in letters:
        raise BadInput(
            f"{where}: the answer {json.dumps(letter)} to {len(choices)} options; write 2 or more options and the letter of the "
            "right one, A for the first"
        )
    return Choice(
        origin=where, document=article, article=article, question=question, options=choices, answer=letters.index(letter)
    )


def _class(value: Any, where: str) -> str:
    """Return a label as a string: it may be a string, an integer or a boolean."""
    name = json.dumps(value) if isinstance(value, int) else value
    if not isinstance(name, str) or not name.strip():
        problem = "an empty string" if isinstance(name, str) else json_type(value)
        others = "for other numbers add --labelled.regression, for lists --labelled.multi-label"
        raise BadInput(f"{where}: the label is {problem}; write a name or an integer ({others})")
    return check_string(name, f"{where}: the label")


def _classes(value: Any, where: str) -> tuple[str, ...]:
    """Return the labels of a text that may have several."""
    if not isinstance(value, list):
        raise BadInput(f"{where}: the labels are {json_type(value)}, not a list; {LABEL_LISTS}")
    names = tuple(_class(name, where) for name in value)
    if len(set(names)) < len(names):
        raise BadInput(f"{where}: labels {json.dumps(value)[:80]} contain a name twice; write each name once")
    return names


def _number(value: Any, where: str) -> float:
    try:
        number = float(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise BadInput(f"{where}: the label {json.dumps(value)} is not a finite number; fix it, or remove --labelled.regression")
    return number


TASKS = {
    "classification": Task(
        {**TABLES, ".txt": dataset_formats.read_trec},
        _text,
        ("tsv", "csv", "jsonl", "label_first"),
    ),
    "tagging": Task(
        {".conll": dataset_formats.read_conll, ".annotated": dataset_formats.read_conll, **ANY}, _tagged, ("conll", "jsonl")
    ),
    "span": Task({".json": dataset_formats.read_squad, **ANY}, _question, ("squad", "jsonl")),
    "text_to_text": Task({**TABLES, **CHAT}, _pair, ("tsv", "csv", "jsonl", "json")),
    **dict.fromkeys(
        ("contrastive", "rerank", "late_interaction"), Task(TABLES, embedding_records.ranked_of_record, ("tsv", "csv", "jsonl"))
    ),
    "ranking": Task(TABLES, embedding_records.scored_texts_of_record, ("tsv", "csv", "jsonl")),
    "sentence_denoising": Task(TABLES, embedding_records.text_of_record, ("tsv", "csv", "jsonl")),
    "similarity": Task(TABLES, embedding_records.scored_pair_of_record, ("tsv", "csv", "jsonl")),
    "instruction": Task(CHAT, lambda record, options: parse_dialogue(record), ("jsonl", "json")),
    **dict.fromkeys(("preference", "dpo"), Task(CHAT, preference_records.preference_of_record, ("jsonl", "json"))),
    "kto": Task(CHAT, preference_records.unpaired_preference, ("jsonl", "json")),
    **dict.fromkeys(("policy_gradient", "ppo"), Task(CHAT, prompt_records.prompt_of_record, ("jsonl", "json"))),
    "choice": Task({".json": dataset_formats.read_race, ".txt": dataset_formats.read_race, **ANY}, _choice, ("race", "jsonl")),
}
"""Tasks by objective."""

ENDINGS = {
    "tsv": ".tsv",
    "csv": ".csv",
    "jsonl": ".jsonl",
    "json": ".json",
    "conll": ".conll",
    "label_first": ".txt",
    "squad": ".json",
    "race": ".json",
}
"""Value of --labelled.format -> suffix of a file of that format."""
