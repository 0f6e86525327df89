"""The command `zoo mine`."""

import dataclasses
from pathlib import Path
from typing import Annotated

from zoo.cli import early_checks
from zoo.cli.command_setup import prepare_model_command, require_one_process
from zoo.cli.option_parser import parse
from zoo.errors import BadInput, require
from zoo.file_access import check_output_file, real_path


def mine(args: list[str]) -> int:
    """Run `zoo mine RUN|DIR|hub:ID --queries FILE --out FILE [options]`."""
    import tyro

    from eval.commands.model_options import ModelOptions
    from eval.inference.encoder_inputs import Mining, TaskVectors
    from train.config.embedding_options import RankedTexts

    @dataclasses.dataclass(frozen=True)
    class Mine:
        """Find hard negatives of queries: the texts that a model finds most similar and that do not belong to them."""

        model: Annotated[ModelOptions, tyro.conf.arg(name="", prefix_name=False)]
        mining: Annotated[Mining, tyro.conf.arg(name="", prefix_name=False)] = Mining()
        queries: tuple[str, ...] = ()
        """Files of queries with positives, as `zoo train embed-contrastive` reads them: .jsonl, .tsv, .csv or .parquet."""
        corpus: tuple[str, ...] = ()
        """Files of further candidates: .jsonl with _id, text and perhaps title, or .txt, one a line. No files = the positives of
        all queries alone."""
        out: str = ""
        """File to write (.jsonl): a line for each query and positive, with "negatives" and "scores", the similarities of the
        positive and of each negative."""
        vectors: TaskVectors = TaskVectors()
        labelled: RankedTexts = RankedTexts()

    options = parse(Mine, args=args, prog="zoo mine", unlisted={RankedTexts: ("negatives", "truncate")})
    if not options.queries:
        raise BadInput("--queries: is not given; name files of queries with their positives")
    require(options.out.endswith(".jsonl"), "out", options.out, "name a file that ends in .jsonl")
    check_output_file(Path(options.out), "out")
    inputs = {real_path(Path(name)) for name in (*options.queries, *options.corpus)}
    fix = "it is one of the files that are read, and would be replaced; name another"
    require(real_path(Path(options.out)) not in inputs, "out", options.out, fix)
    require_one_process(options.model.machine)
    files = {"--queries": options.queries, "--corpus": options.corpus}
    if (code := prepare_model_command(options.model, ["mine", *args], files, early_checks.check_encoder)) is not None:
        return code
    from eval.commands import mine

    return mine.run_mine(
        options.model,
        options.queries,
        options.corpus,
        Path(options.out),
        labelled=options.labelled,
        vectors=options.vectors,
        mining=options.mining,
    )
