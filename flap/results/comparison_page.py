"""The page of a comparison: one self-contained file that a browser opens from disk."""

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from flap.results.comparison import Comparison
from flap.results.comparison_plot import draw
from flap.results.series import COLOURS
from flap.results.study_page import inline
from flap.storage import write_text


def write_page(comparison: Comparison, path: Path) -> Path:
    """Write the page of a comparison as a file, whose folder is made if it is missing, and return its path.

    Raises:
        ValueError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, page(comparison))
    except OSError as error:
        raise ValueError(
            f"--page={path}: cannot be written ({error.strerror}); expected a file as page.html"
        ) from error
    return path


def page(comparison: Comparison) -> str:
    """Return the whole HTML of the page; all text from the data is escaped."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    letters = [subject.letter for subject in comparison.subjects]
    return environment.get_template("comparison.html.j2").render(
        comparison=comparison,
        letters=letters,
        colours=[COLOURS[i % len(COLOURS)] for i in range(len(letters))],
        picture=inline(draw(comparison.layers, letters)),
    )
