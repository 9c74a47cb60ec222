"""Pages of HTML that need no network: a frame, tables and pictures."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from html import escape
from io import BytesIO
from itertools import chain, repeat

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

# Okabe and Ito's palette, told apart with every kind of colour vision.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""For lines."""

_STYLE = """
:root { color-scheme: light dark }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
div, figure { overflow-x: auto; margin: 1rem 0 }
table { border-collapse: collapse }
th, td { padding: .3rem .8rem; text-align: right; border-bottom: 1px solid #8884 }
td { white-space: nowrap }
th:first-child, td:first-child { text-align: left }
img { max-width: 100%; min-width: 40rem; background: white; border-radius: 4px }
.row { display: flex; flex-wrap: wrap; gap: .5rem }
.row figure { flex: 1 1 18rem; margin: 0 }
.row img { width: 100%; min-width: 0 }
"""


def as_page(title: str, parts: Sequence[str]) -> str:
    """A page of these parts, which are HTML."""
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title><style>{_STYLE}</style></head><body>
<h1>{escape(title)}</h1>
{chr(10).join(parts)}
</body></html>
"""


def as_table(rows: Sequence[Sequence[str]]) -> str:
    """Cells, those of the first row as titles."""
    written = [
        "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in row) + "</tr>"
        for tag, row in zip(chain(["th"], repeat("td")), rows, strict=False)
    ]
    return f"<div><table>{''.join(written)}</table></div>"


def as_picture(png: bytes, description: str) -> str:
    """A picture, scrolled on a narrow screen rather than made small."""
    image = f'alt="{escape(description)}" src="data:image/png;base64,{b64encode(png).decode()}"'
    return f"<figure><img {image}></figure>"


def as_row(figures: Sequence[Figure], description: str) -> str:
    """Pictures side by side, or one below the other on a narrow screen."""
    return f'<div class="row">{"".join(as_picture(as_png(f), description) for f in figures)}</div>'


def new_figure(width: float, height: float) -> Figure:
    """A figure of inches that leaves pyplot's global state to the caller."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def count_steps(axes: Axes) -> None:
    """Let environment steps run from left to right, such as 20k."""
    axes.set_xlabel("environment steps")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))


def unframe(axes: Axes) -> None:
    """Leave out what frames axes at the top and the right, and show a grid."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.3)


def as_png(figure: Figure) -> bytes:
    """The pixels of a figure, 130 to the inch."""
    file = BytesIO()
    figure.savefig(file, dpi=130, format="png")
    return file.getvalue()
