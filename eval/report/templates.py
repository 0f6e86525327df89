"""Jinja templates of pages, which escape text as the other parts of a report do."""

from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from eval.report import html_elements


def page_template(folder: Path) -> jinja2.Template:
    """Return the template `page.html.j2` of a folder; every value that is not `Markup` is escaped, and none may be undefined.

    Filters: `number` formats a number, and `svg` marks a drawing as HTML.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        autoescape=True,
        finalize=lambda value: value if isinstance(value, Markup) else Markup(html_elements.escape_text(value)),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters: dict[str, Any] = {"number": lambda value: "" if value == "" else html_elements.format_number(value), "svg": Markup}
    environment.filters.update(filters)
    return environment.get_template("page.html.j2")
