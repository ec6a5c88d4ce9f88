"""The HTML of the report: escaped text, numbers, tables, figures, legends, and the page around them.

One file that asks nothing of the network: the script that draws the figures is part of it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from phenoscape_tune.search.figures import WIDE, Figure, Table, finite
from phenoscape_tune.search.marks import MARKS, tell_value

# No request to any host, whatever is written into a name. Parallel coordinates compile their shaders' code (eval).
_POLICY = "default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; style-src 'unsafe-inline'; img-src data: blob:"
_CONFIG = {"responsive": True, "displaylogo": False, "modeBarButtonsToRemove": ["lasso2d", "select2d", "autoScale2d"]}
LONG = 24  # characters of a cell that must not be squeezed into a narrow column
_DRAW = """
// On a touch screen a finger that scrolls the page must not zoom a figure.
const hovers = matchMedia("(hover: hover)").matches;
const given = JSON.parse(document.getElementById("figures").textContent);
for (const [id, figure] of Object.entries(given.figures)) {
  const place = document.getElementById(id);
  const fail = error => {
    console.error(error);
    place.textContent = "This browser could not draw the figure; its numbers are in the table.";
  };
  const layout = hovers ? figure.layout : {...figure.layout, dragmode: false};
  const config = hovers ? given.config : {...given.config, displayModeBar: false};
  try { Plotly.newPlot(place, figure.data, layout, config).catch(fail); } catch (error) { fail(error); }
}
"""


def text(value: object) -> str:
    """Any text, so that the page shows it as it is."""
    return escape(str(value), quote=True)


def number(value: float | None, digits: int = 3, sign: bool = False) -> str:
    """A number for people, with the exact one for programs."""
    return "–" if value is None else f'<data value="{value!r}">{value:{"+" if sign else ""}.{digits}f}</data>'


def paragraphs(lines: Iterable[str]) -> str:
    return "".join(f"<p>{text(line)}</p>" for line in lines)


def bullets(lines: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{text(line)}</li>' for line in lines)}</ul>" if lines else ""


def table(content: Table, caption: str = "") -> str:
    """A table; numbers stand to the right and carry their exact value."""
    columns = list(zip(*content.rows, strict=True)) or [()] * len(content.header)
    styles = [' class="number"' if any(map(_is_number, column)) else "" for column in columns]
    head = _row('th scope="col"', content.header, styles)
    rows = "".join(_row("td", row, styles) for row in content.rows)
    title = f"<caption>{text(caption)}</caption>" if caption else ""
    inner = f"<table>{title}<thead>{head}</thead><tbody>{rows}</tbody></table>"
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{text(caption or "table")}">{inner}</div>'


def _row(tag: str, values: Sequence[Any], styles: Sequence[str]) -> str:
    name = tag.split()[0]
    cells = []
    for value, style in zip(values, styles, strict=True):
        long = ' class="long"' if name == "td" and isinstance(value, str) and len(value) > LONG else style
        cells.append(f"<{tag}{long}>{_cell(value)}</{name}>")
    return f"<tr>{''.join(cells)}</tr>"


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        shown = f"{value:.4f}" if abs(value) >= 0.01 or value == 0 else f"{value:.3g}"
        return f'<data value="{value!r}">{shown}</data>'
    return text(tell_value(value))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def folded(summary: str, content: str) -> str:
    """Content that a click opens."""
    return f"<details><summary>{text(summary)}</summary>{content}</details>"


def legend(marks: Sequence[str]) -> str:
    """The marks of a figure with their meaning."""
    items = []
    for name in marks:
        mark = MARKS[name]
        fill = mark.colour if mark.filled else "none"
        style = f'fill="{fill}" stroke="{mark.colour}" stroke-width="1.8"'
        shape = f'<path d="{mark.path}" {style}/>'
        icon = f'<svg viewBox="-8 -8 16 16" width="15" height="15" aria-hidden="true">{shape}</svg>'
        items.append(f"<li>{icon} {text(mark.words)}</li>")
    return f'<ul class="legend" aria-label="marks">{"".join(items)}</ul>' if items else ""


class Page:
    """Collects the sections and figures of a page."""

    def __init__(self) -> None:
        self._figures: dict[str, Any] = {}
        self._sections: list[tuple[str, str, str]] = []

    def section(self, name: str, title: str, content: str) -> None:
        self._sections.append((name, title, content))

    def figures(self, figures: Sequence[Figure]) -> str:
        """Figures side by side where there is room."""
        return f'<div class="figures">{"".join(map(self._figure, figures))}</div>' if figures else ""

    def beside(self, words: str, figures: Sequence[Figure]) -> str:
        """Words with their figure beside them; with several, above them."""
        kind = "beside" if len(figures) == 1 else "above"
        return f'<div class="{kind}"><div>{words}</div>{self.figures(figures)}</div>'

    def _figure(self, figure: Figure) -> str:
        name = f"figure-{len(self._figures) + 1}"
        self._figures[name] = {"data": figure.data, "layout": figure.layout}
        size = f"height:{figure.layout['height']}px" + (
            f";min-width:{figure.least_width}px" if figure.least_width else ""
        )
        plot = f'<div class="plot" id="{name}" role="img" aria-label="{text(figure.alt)}" style="{size}"></div>'
        numbers = "" if figure.table is None else folded("The numbers", table(figure.table, figure.title))
        kind = ' class="wide"' if figure.width == WIDE else ""
        title = f"<figcaption>{text(figure.title)}</figcaption>"
        return f'<figure{kind}>{title}<div class="scroll">{plot}</div>{numbers}</figure>'

    def render(self, title: str, lead: str, script: str) -> str:
        """The whole page; `script` is plotly's, which is inlined."""
        links = "".join(f'<li><a href="#{name}">{text(shown)}</a></li>' for name, shown, _ in self._sections)
        body = "".join(
            f'<section id="{name}" aria-labelledby="{name}-title">'
            f'<h2 id="{name}-title">{text(shown)}</h2>{content}</section>'
            for name, shown, content in self._sections
        )
        style = Path(__file__).with_name("report_page.css").read_text(encoding="utf-8")
        given = _script_json({"figures": self._figures, "config": _CONFIG})
        page = (
            f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
            f'<meta name="viewport" content="width=device-width, initial-scale=1">'
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
            f'<link rel="icon" href="data:,"><title>{text(title)}</title><style>{style}</style></head>'
            f'<body><header><h1>{text(title)}</h1><p>{text(lead)}</p><nav aria-label="sections"><ul>{links}</ul></nav>'
            f"</header><main>{body}</main>"
            f"<noscript><p>The figures need JavaScript; their numbers are in the tables.</p></noscript>"
            f'<script type="application/json" id="figures">{given}</script>'
            f"<script>{script}</script><script>{_DRAW}</script></body></html>\n"
        )
        # A file name that is not UTF-8 must not keep the page from being written, nor a NUL from being read.
        return page.encode("utf-8", "replace").decode("utf-8").replace("\0", "\N{REPLACEMENT CHARACTER}")


def _script_json(value: Mapping[str, Any]) -> str:
    """JSON that may stand within a script element."""
    return json.dumps(finite(dict(value)), allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
