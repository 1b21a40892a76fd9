"""Load the templates in this folder for the HTML page of a study and for the model card."""

from collections.abc import Callable
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template


def template(name: str, **filters: Callable[..., str]) -> Template:
    """Return the Jinja template in the file `name`.

    In an HTML template, the inserted values are escaped.

    filters: functions that the template can use as Jinja filters.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=name.endswith(".html.j2"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= filters
    return environment.get_template(name)
