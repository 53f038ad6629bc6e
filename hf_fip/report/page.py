"""The report's page: one HTML file that needs nothing else, no network either."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module, resources
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from hf_fip.errors import InputError
from hf_fip.graph.files import replace_text
from hf_fip.version import __version__


if TYPE_CHECKING:
    import plotly.graph_objects as go

    from hf_fip.graph import ModelGraph
    from hf_fip.report.sections import Section

REPORT_FILE = "report.html"
# Modules with a list SECTIONS and a dictionary FIGURES, which only some graphs have: in the order of the page.
CAPABILITIES = ("streams", "pareto", "sparsity", "connectivity", "spectrum", "ensemble", "queries")


class MissingExtraError(InputError, ImportError):
    """The packages that draw are not installed; the message says how to install them."""


def _require(*packages: str) -> None:
    for package in packages:
        try:
            __import__(package)
        except ImportError as error:
            raise MissingExtraError(f'{package} is not installed; run: pip install "hf_fip[report]"') from error


def all_sections() -> list[Callable[[ModelGraph], Section | None]]:
    """The functions that make the sections, in order: those of capabilities stand before the table of nodes."""
    from hf_fip.report.sections import SECTIONS, nodes

    place = SECTIONS.index(nodes)
    return [*SECTIONS[:place], *(make for module in _capabilities() for make in module.SECTIONS), *SECTIONS[place:]]


def all_figures() -> dict[str, Callable[[ModelGraph], go.Figure | None]]:
    """The functions that draw the pictures, by the names of their files."""
    from hf_fip.report.figures import FIGURES

    return FIGURES | {name: make for module in _capabilities() for name, make in module.FIGURES.items()}


def _capabilities() -> list[ModuleType]:
    return [import_module(f"hf_fip.report.{name}") for name in CAPABILITIES]


def script_text(text: str) -> str:
    """`text`, JavaScript or JSON, without anything that ends an HTML `<script>` element early."""
    return text.replace("</", "<\\/").replace("<!--", "<\\!--")


def script_json(text: str) -> str:
    """JSON `text` for an HTML `<script>` element: no character in it has a meaning in HTML."""
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def render(graph: ModelGraph, sections: Sequence[Section], recipe: str | None = None) -> str:
    """
    The page as text.

    Args:
        graph (`ModelGraph`): The graph the header tells about.
        sections (`Sequence[Section]`): The sections in order; see `hf_fip.report.sections`.
        recipe (`str`, *optional*): The recipe's YAML text.

    Returns:
        `str`: A complete HTML document.
    """
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    from hf_fip.report.header import facts, title_and_description, versions
    from hf_fip.report.style import legend, without_legend

    files = {name: resources.files("hf_fip.report").joinpath(name).read_text("utf-8") for name in _PAGE_FILES}
    template = Environment(autoescape=True, undefined=StrictUndefined).from_string(files["page.html"])
    title, description = title_and_description(graph, recipe)
    return template.render(
        title=title,
        description=description,
        facts=facts(graph),
        sections=sections,
        recipe=recipe,
        versions=versions(graph),
        version=__version__,
        css=Markup(files["page.css"]),
        js=Markup(script_text(files["page.js"])),
        plotly_js=Markup(script_text(get_plotlyjs())),
        legend=legend,
        without_legend=without_legend,
        figure_json=lambda figure: Markup(script_json(figure.to_json())),
    )


_PAGE_FILES = ("page.html", "page.css", "page.js")


def write_report(graph: ModelGraph, output: str | Path | None = None, *, recipe: str | None = None) -> Path:
    """
    Writes the report of a graph: one self-contained HTML file that opens without a network.

    Args:
        graph (`ModelGraph`): The graph to report on; it may be empty.
        output (`str` or `Path`, *optional*): The file to write. Defaults to `report.html` beside the graph's folder.
        recipe (`str`, *optional*): The YAML text of the recipe that made the graph.

    Returns:
        `Path`: The file written.

    Raises:
        `MissingExtraError`: if Plotly or Jinja2 is not installed.
    """
    _require("plotly", "jinja2")
    sections = [section for make in all_sections() if (section := make(graph)) is not None]
    output = Path(graph.folder).parent / REPORT_FILE if output is None else Path(output)
    replace_text(output, render(graph, sections, recipe))
    return output


def save_pictures(graph: ModelGraph, folder: str | Path, formats: Sequence[str] = ("png", "svg")) -> list[Path]:
    """
    Saves each picture of the report as a file, through Kaleido and an installed Chrome or Chromium.

    Args:
        graph (`ModelGraph`): The graph to draw.
        folder (`str` or `Path`): Where to write `lineage.png`, `paths.png`, ….
        formats (`Sequence[str]`, *optional*, defaults to `("png", "svg")`): Of `png`, `svg`, `pdf`, `jpeg`, `webp`.

    Returns:
        `list[Path]`: The files written; a picture that the graph has no data for is left out.

    Raises:
        `MissingExtraError`: if Plotly, Kaleido or Chrome is not installed.
    """
    _require("plotly", "kaleido")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    makers = all_figures() if len(graph) else {}
    drawn = {name: figure for name, make in makers.items() if (figure := make(graph)) is not None}
    for figure in drawn.values():
        figure.update_layout(paper_bgcolor="white", plot_bgcolor="white")
    files = {folder / f"{name}.{kind}": figure for name, figure in drawn.items() for kind in formats}
    _write_images(list(files.values()), list(files))
    return list(files)


def _write_images(drawn: list[Any], files: list[Path]) -> None:
    from plotly.io import write_images

    from hf_fip.report.style import PICTURE_WIDTH

    if not files:
        return
    try:
        write_images(drawn, files, width=PICTURE_WIDTH, height=[figure.layout.height for figure in drawn], scale=2)
    except RuntimeError as error:
        if "chrome" not in str(error).lower():
            raise
        raise MissingExtraError(
            "static pictures need Chrome or Chromium, and none was found; install one, or run: plotly_get_chrome"
        ) from error
