"""Pages of HTML that need no network: a frame, tables and pictures."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from html import escape
from itertools import chain, repeat

from matplotlib.figure import Figure

from esper_rl.figures import as_png

_STYLE = """
:root { color-scheme: light dark }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
div, figure { overflow-x: auto; margin: 1rem 0 }
table { border-collapse: collapse }
pre { overflow-x: auto }
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
