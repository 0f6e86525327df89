"""The command `zoo search`."""

import dataclasses
from pathlib import Path
from typing import Annotated

from zoo.cli import early_checks
from zoo.cli.command_setup import prepare_model_command, require_one_process
from zoo.cli.option_parser import parse
from zoo.errors import BadInput, require


def search(args: list[str]) -> int:
    """Run `zoo search INDEX TEXT --model RUN|DIR|hub:ID [options]`."""
    import tyro

    from eval.commands.model_options import ModelOptions

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class NamedModel(ModelOptions):
        source: Annotated[str, tyro.conf.arg(name="model", metavar="RUN|DIR")]
        """Model that the index was written with: folder of a run or of published weights, or hub:ID."""

    @dataclasses.dataclass(frozen=True)
    class Search:
        """Show the documents of an index (`zoo embed --index`) that are nearest to a text. The search is exact."""

        index: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="INDEX")]
        """Folder of the index."""
        text: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="TEXT")]
        """Query, in quotes."""
        model: Annotated[NamedModel, tyro.conf.arg(name="", prefix_name=False)]
        k: int = 10
        """Number of documents."""
        prompt_text: str | None = None
        """Text that is put before the query. None: the model's prompt `query`, else its default prompt."""
        rerank: Annotated[str, tyro.conf.arg(metavar="RUN|DIR")] = ""
        """Model that orders the nearest documents again, and whose scores are printed: a cross-encoder, or one with a vector for
        each token (ColBERT). Folder of a run or of published weights, or hub:ID."""
        rerank_k: int = 100
        """Number of nearest documents that --rerank orders."""
        truncate: bool = False
        """Cut the end off a query, or with --rerank a pair, that is longer than the model reads; else it is refused."""
        json: bool = False
        """Print one JSON object per document."""

    options = parse(Search, args=args, prog="zoo search")
    require(options.k >= 1, "k", options.k, "choose 1 or more documents")
    fix = f"choose at least --k {options.k}, so that all documents that are shown have a score"
    require(not options.rerank or options.rerank_k >= options.k, "rerank_k", options.rerank_k, fix)
    fix = "it says how many documents --rerank orders; name a model with --rerank, or remove it"
    require(bool(options.rerank) or options.rerank_k == 100, "rerank_k", options.rerank_k, fix)
    if not options.text.strip():
        raise BadInput("the query '': write some text")
    if not (Path(options.index) / "index.json").is_file():
        raise BadInput(
            f"{options.index}: no index.json there; name a folder that `zoo embed MODEL --files ... --index DIR` wrote"
        )
    require_one_process(options.model.machine)
    if options.rerank:
        with early_checks.prefix_option("--rerank", options.rerank):
            early_checks.check_source(options.rerank)
            early_checks.check_encoder(options.rerank)
    if (code := prepare_model_command(options.model, ["search", *args], {}, early_checks.check_encoder)) is not None:
        return code
    from eval.commands import search

    return search.run_search(
        options.model,
        Path(options.index),
        options.text,
        prompt=options.prompt_text,
        k=options.k,
        rerank=options.rerank,
        rerank_k=options.rerank_k,
        truncate=options.truncate,
        as_json=options.json,
    )
