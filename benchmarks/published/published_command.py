"""The command `zoo plan --published`, from its options to the output."""

import fnmatch
import json
from pathlib import Path

from benchmarks.core import result_tables
from benchmarks.published import compare_rows, comparison_page
from benchmarks.published.published_rows import read_published
from train.run.run_dir import replace_atomically
from zoo.errors import BadInput


def run_published(published: Path, *, pattern: str, half: str, minutes: float, fresh: bool, file: str, as_json: bool) -> int:
    """Plan the rows of a file, and print them beside what was measured; return the exit code.

    Args:
        pattern: names of rows, with * and ?.
        half: improve, judge, or "" for both.
        file: path of a page to write, Markdown if it ends in .md, else HTML; "" for none.

    Raises:
        BadInput: see `read_published` and `check_rules`; no row has a matching name; the page cannot be written.
    """
    rows = read_published(published)
    chosen = [row for row in rows if fnmatch.fnmatchcase(row.name, pattern) and half in ("", row.half)]
    if not chosen:
        part = f" in the half {half}" if half else ""
        raise BadInput(f"--rows {pattern}: no row of {published} has such a name{part}; the first is {rows[0].name}")
    comparison = compare_rows.compare_rows(chosen, minutes=minutes, fresh=fresh)
    if file:
        text = comparison_page.render_comparison(comparison, markdown=file.endswith(".md"))
        try:
            with replace_atomically(Path(file)) as stream:
                stream.write(text.encode())
        except OSError as error:
            raise BadInput(f"--page {file}: cannot be written ({error.strerror}); name a file in an existing folder") from None
    if as_json:
        print(json.dumps(comparison.plain(), indent=2))
    else:
        result_tables.print_blocks(comparison_page.comparison_blocks(comparison))
    return 0
