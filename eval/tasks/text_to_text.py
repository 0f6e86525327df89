"""Scores of the texts that a model generates: translations, summaries, answers, responses to instructions.

An encoder-decoder reads each source; a decoder continues it as a prompt until its end mark, as `sft` trains it.

Format: pairs of texts, as training reads them. Two files are parallel, --files SOURCE TARGET, line n of the second the reference
for line n of the first; or tables (.tsv, .csv, .jsonl, .parquet, folders of `datasets`), their columns named by --labelled.text
and --labelled.label, or `prompt` and `completion`; or conversations (`messages`), whose last turns are the references. A run adds
its own prefix before each source, unless --prefix is given.

Texts are decoded greedily or by beam search (--beams), with at most --tokens. Of the settings in the model's
generation_config.json, those that exclude or force tokens are used, and the ids that begin and end a text. White space around a
decoder's text does not count.

Metrics, all of them or those named after the colon, as in text_to_text:bleu,chrf:
- bleu: BLEU of detokenized texts, 0 to 100; chrf: chrF2, 0 to 100, both sacrebleu's with its signature in the details;
- rouge: F of words (rouge1), of pairs of words (rouge2) and of the longest common subsequence (rougeL), stemmed, 0 to 1;
- exact: exact match and F1 of words, normalized as SQuAD's answers, 0 to 1.
Examples are pairs. Details: beams, tokens, signatures, and some of the texts.
"""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from eval.generation.folder_settings import changed_fields, folder_processors, make_generator
from eval.generation.generation_options import Decoding
from eval.inference.batch_loop import Progress
from eval.metrics import squad, text_overlap
from eval.tasks.task import Result, Settings, Task, first, shown_numbers
from train.config.data_options import Data
from train.config.find_objective import from_labelled
from train.config.objectives import TextToTextOptions
from train.data import labelled_reader
from train.data.example_types import Dialogue, Pair
from train.inputs.seq2seq_inputs import encode_texts, parallel
from train.run.item_outcomes import Outcomes
from train.tokenizers.chat_template import ChatTemplate, chat_template
from train.tokenizers.chat_token_ids import end_mark, rendered_pairs
from train.weights.load import Loaded
from zoo.errors import BadInput, require
from zoo.generation.decoding_settings import GREEDY, UNCHANGED

LIMIT = 128
"""Default maximum number of tokens of a text."""
TABLES = (".tsv", ".csv", ".jsonl", ".parquet")


def read_text_pairs(names: Sequence[str], settings: Settings) -> list[Pair | Dialogue]:
    """Read the pairs of parallel files or of tables, or conversations, whose last turns are the references.

    Raises:
        BadInput: an unknown measure, no such file, or files without pairs; see `train.inputs.seq2seq_inputs` and
        `train.data.labelled_reader`.
    """
    _measures(settings.argument)
    require(settings.tokens >= 0, "tokens", settings.tokens, f"choose 0 ({LIMIT} tokens) or a limit of 1 or more")
    options = from_labelled("text_to_text", settings.labelled).labelled
    tables = options.format != "auto"
    if tables or any(Path(name).is_dir() or Path(name).suffix.lower() in TABLES or ":" in name for name in names):
        pairs = labelled_reader.read_labelled_examples("text_to_text", tuple(names), Data(), options)[0]
        return first(pairs, settings.limit)  # pyright: ignore[reportReturnType]
    require(len(names) == 2, "files", " ".join(names), "give two parallel files, SOURCE TARGET, or tables")
    return first(list(parallel(names[:1], names[1:], options, "--files")), settings.limit)


def score_texts(subject: Loaded, items: list[Pair | Dialogue], settings: Settings, progress: Progress) -> Result:
    """Generate a text for every source and compare it with the reference.

    Raises:
        BadInput: neither an encoder-decoder nor a GPT, or a measure that is not installed.
    """
    model, tokenizer, run = subject.model, subject.tokenizer, subject.run
    if not (model.is_encoder_decoder or model.task == "causal"):
        raise BadInput(f"--task text_to_text: {subject.where} is a {model.family}; choose an encoder-decoder or a GPT")
    template = functools.cache(lambda: chat_template(tokenizer, subject.where))
    pairs = rendered_pairs(items, tokenizer, template, "last")
    measures, references = _measures(settings.argument), [pair.target for pair in pairs]
    # A missing package is reported before the work, not after it.
    for name in measures:
        text_overlap.MEASURES[name](references[:1], references[:1])
    own_prefix = run.options.pairs.prefix if run is not None and isinstance(run.options, TextToTextOptions) else ""
    prefix = settings.prefix or own_prefix
    inputs = [(f"{prefix} {pair.source}" if prefix else pair.source, pair.rendered) for pair in pairs]
    tokens, processors = settings.tokens or LIMIT, folder_processors(subject.generation)
    texts = generate_texts(subject, inputs, settings, progress, template)
    if not model.is_encoder_decoder:
        references = [text.strip() for text in references]
    metrics: dict[str, float] = {}
    details: dict[str, Any] = {"beams": settings.search.beams, "tokens": tokens}
    if processors != UNCHANGED:
        details["processors"] = changed_fields(processors)
    for name in measures:
        numbers, signatures = text_overlap.MEASURES[name](texts, references)
        metrics |= numbers
        details |= signatures
    details["texts"] = {
        str(number + 1): {"source": pairs[number].source, "wanted": references[number], "written": texts[number]}
        for number in shown_numbers(len(pairs))
    }
    right = [squad.exact_match(text, [reference]) for text, reference in zip(texts, references, strict=True)]
    by_text = text_overlap.bleu_contributions(texts, references) if "bleu" in measures else None
    outcomes = Outcomes.of((pair.origin for pair in pairs), np.array(right), np.full(len(pairs), np.nan), bleu=by_text)
    return Result(metrics, len(pairs), details, outcomes=outcomes)


def generate_texts(
    subject: Loaded,
    inputs: Sequence[tuple[str, bool]],
    settings: Settings,
    progress: Progress,
    template: Callable[[], ChatTemplate] | None = None,
) -> list[str]:
    """Return the text that a model generates for each source; a decoder's without white space around it.

    Args:
        inputs: (source, whether a chat template has rendered it).
        template: returns that template; None: no source is rendered.
    """
    tokenizer = subject.tokenizer
    sources = list(encode_texts(tokenizer, inputs))
    processors = folder_processors(subject.generation)
    decoding = Decoding(limit=settings.tokens or LIMIT, sampling=GREEDY, search=settings.search, processors=processors)
    options = {"dtype": settings.dtype, "batch": settings.batch, "option": "--tokens"}
    if subject.model.is_encoder_decoder:
        sources = [np.append(ids, tokenizer.end_of_text).astype(np.int32) for ids in sources]
        return [generated.text for generated in make_generator(subject, **options).generate(sources, decoding, progress=progress)]
    texts = [""] * len(inputs)
    # A template may end its turns with another token than end-of-text.
    for rendered in sorted({rendered for _, rendered in inputs}):
        chosen = [number for number, (_, is_rendered) in enumerate(inputs) if is_rendered == rendered]
        end = end_mark(tokenizer, template()) if rendered and template is not None else None
        generator = make_generator(subject, end, **options)
        for generated in generator.generate([sources[number] for number in chosen], decoding, progress=progress):
            texts[chosen[generated.prompt]] = generated.text.strip()
    return texts


def _measures(argument: str) -> list[str]:
    """Return the names of the requested metrics."""
    names = argument.split(",") if argument else list(text_overlap.MEASURES)
    for name in names:
        if name not in text_overlap.MEASURES:
            all_names = ", ".join(text_overlap.MEASURES)
            raise BadInput(f"--task text_to_text:{argument}: there is no measure {name!r}; choose from {all_names}")
    return names


TASK = Task(
    read=read_text_pairs,
    score=score_texts,
    metrics=("bleu", "chrf", *text_overlap.ROUGE, "exact", "f1"),
    options=("labelled", "limit", "tokens", "prefix", "search"),
    argument="optional",
)
