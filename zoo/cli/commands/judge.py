"""The command `zoo judge`."""

import dataclasses
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from zoo.cli.option_parser import parse
from zoo.errors import BadInput, printable


def judge(args: list[str]) -> int:
    """Run `zoo judge FILE... --claim TEXT [options]`."""
    import tyro

    from eval.experiments.published_tables.harness_results import PATTERN

    @dataclasses.dataclass(frozen=True)
    class Judge:
        """Judge claims about tables that others published, by the rules of experiments, and write a page like theirs.

        A table has the columns row (or model), seed (or run), metric and value, or a column for each metric, and optionally
        item, budget and vocabulary.
        """

        files: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="FILE...")]
        """CSV, TSV or JSON-lines tables, or folders of results of lm-eval or OLMES."""
        claim: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
        """A claim, "a < b on loss margin 0.01" or "a = b, c on accuracy margin 0.005"; can be repeated. < and > state a direction
        and = that rows are equivalent. Add "better lower" or "better higher" to a metric whose name does not say which."""
        claims: str = ""
        """JSON file of claims: a list of objects with the fields of Claim, such as second_metric and pilot_deviation."""
        registration: str = ""
        """Folder of an experiment whose registration has the claims and the control, written before the data."""
        paired: bool = False
        """Compare the rows seed by seed, where the same seed stands for something that the rows share."""
        control: str = ""
        """Row that learned nothing: a seed counts as learned if it is better than this row's mean by more than the margin."""
        columns: tuple[str, ...] = ()
        """Names of columns, as row=system value=score; the meanings are row, seed, metric, value, item, budget and vocabulary."""
        where: tuple[str, ...] = ()
        """Read only the lines of tables that have these values, as task=mmlu step=1000."""
        pattern: str = PATTERN
        """Regular expression that finds row and seed in the name of the model in a folder of results."""
        source: str = ""
        """Where the table is from, for the page."""
        out: str = ""
        """Folder for experiment.json and the page."""

    options = parse(Judge, args=args, prog="zoo judge")
    from eval.experiments.published_tables import claim_statements, table_judge, table_report

    if not options.files:
        raise BadInput("FILE: name a table, as in zoo judge scores.csv --claim 'a < b on loss'")
    if options.registration and (options.claim or options.claims or options.control or options.paired):
        raise BadInput("--registration: it has the claims and the control; leave out --claim, --claims, --control and --paired")
    if options.out:
        table_report.check_folder(Path(options.out))
    claims = [claim_statements.parse_claim(text, paired=options.paired) for text in options.claim]
    claims += claim_statements.read_claims(Path(options.claims), paired=options.paired) if options.claims else []
    paths = {*options.files, options.claims, options.registration, options.out} - {""}
    result = table_judge.judge_tables(
        table_judge.TableOptions(
            files=options.files,
            claims=claims,
            registration=options.registration,
            control=options.control,
            columns=_pairs(options.columns, "columns"),
            where=_pairs(options.where, "where"),
            pattern=options.pattern,
            source=options.source,
            command=shlex.join(["zoo", "judge", *(Path(word).name if word in paths else word for word in args)]),
        )
    )
    for line in table_report.verdict_lines(result):
        print(printable(line))
    if options.out:
        print(printable(f"wrote {table_report.write_table_pages(result, Path(options.out))}"))
    return 0


def _pairs(words: Sequence[str], option: str) -> dict[str, str]:
    """Return name -> value of words NAME=VALUE."""
    pairs = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not (name and equals and value) or name in pairs:
            raise BadInput(f"--{option} {word}: write NAME=VALUE, once for each name")
        pairs[name] = value
    return pairs
