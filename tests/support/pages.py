"""Pages of HTML, as a browser would read them."""

from __future__ import annotations

from html.parser import HTMLParser


class Page(HTMLParser):
    """What a page would load, its text, and what its pictures show in words."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.cells: list[str] = []
        self.pictures: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]
        self.pictures += [value or "" for name, value in attrs if name == "alt"]

    def handle_data(self, data: str) -> None:
        self.cells.append(data.strip())

    def stands_alone(self) -> bool:
        """True if it loads nothing that isn't in it."""
        return all(link.startswith("data:") for link in self.links)
