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
@media (prefers-color-scheme: dark) { img { filter: invert(.93) hue-rotate(180deg) } }
@media (max-width: 44rem) {
  .wide::before { content: "↔ wider than the screen"; position: sticky; left: 0; font-size: small }
}
"""


def as_page(title: str, parts: Sequence[str], reload_seconds: int | None = None) -> str:
    """A page of these parts, which are HTML; it may load itself again and again."""
    again = f'<meta http-equiv="refresh" content="{reload_seconds}">' if reload_seconds else ""
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">{again}
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
    return f'<div class="wide"><table>{"".join(written)}</table></div>'


def as_picture(png: bytes, description: str) -> str:
    """A picture, scrolled on a narrow screen rather than made small."""
    return f'<figure class="wide">{_image(png, description)}</figure>'


def as_row(figures: Sequence[Figure], description: str) -> str:
    """Pictures side by side, or one below the other on a narrow screen."""
    pictures = (f"<figure>{_image(as_png(figure), description)}</figure>" for figure in figures)
    return f'<div class="row">{"".join(pictures)}</div>'


def _image(png: bytes, description: str) -> str:
    source = f"data:image/png;base64,{b64encode(png).decode()}"
    return f'<img alt="{escape(description)}" src="{source}">'
