"""`zoo bench embed`: measure the vectors of texts, ours and those of peers, and show them in a table."""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.core import bench_command
from benchmarks.core.guarded_trials import Group
from benchmarks.core.options import EmbedOptions
from benchmarks.embed import embed_report, measure_embed
from benchmarks.step.programs import OURS
from zoo.errors import BadInput, require

DEFAULTS = {"full": (512, 20.0), "quick": (64, 5.0)}
"""Texts, and seconds of the rounds of each program."""


def resolve_embed_options(options: EmbedOptions, backend: str) -> EmbedOptions:
    """Return the options with all omitted fields filled in.

    Raises:
        BadInput: no folder, a file that does not exist, a number that is too small, or options that exclude each other.
    """
    if not options.folder:
        raise BadInput("bench embed: name the folder of an encoder, such as models/minilm")
    if not Path(options.folder).is_dir():
        raise BadInput(f"bench embed {options.folder}: is no folder; zoo import or zoo export writes one")
    for name in options.files:
        require(Path(name).is_file(), "files", name, "there is no such file; name a file with a text in each line")
    both = bool(options.files) and options.texts is not None
    require(not both, "texts", options.texts, "is the number of random texts, and there are --files; give only one of the two")
    bench_command.check_numbers(options, "texts", "batch", "rounds", "budget", "repeats")
    fewest = measure_embed.FEWEST_WORDS
    require(options.words >= fewest, "words", options.words, f"the shortest text has {fewest} words; choose at least as many")
    texts, budget = DEFAULTS["quick" if options.quick else "full"]
    texts = None if options.files else options.texts or texts
    return dataclasses.replace(options, texts=texts, budget=None if options.rounds else options.budget or budget)


def _groups(options: EmbedOptions, environment: Mapping[str, Any]) -> list[Group]:
    programs = [OURS, *(measure_embed.PEERS if options.peers else ())]
    keys = [{"model": Path(options.folder).resolve().name, "program": program} for program in programs]
    measure = functools.partial(measure_embed.measure_embed, options)
    return [Group(f"vectors of {keys[0]['model']}", keys, measure)]


BENCHMARK = bench_command.Benchmark(
    "embed",
    "Vectors of texts",
    resolve_embed_options,
    _groups,
    embed_report.embed_report,
    embed_report.embed_cells_text,
    unit=lambda options: {"program": OURS},
)
main = BENCHMARK.main
