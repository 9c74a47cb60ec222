"""Options of a run: made from what other code states already, listed, and looked for by name.

A class's docstring says what each argument is ("Args:" or "Attributes:"); its signature says how
it is called, of what type it is and what it is by default.
"""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import Field, fields, is_dataclass, make_dataclass
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from esper_rl.policy.config import option

_PLAIN = (bool, int, float, str, type(None))
"""Types that a command line can write."""

_SECTION = re.compile(r"^(?:Args|Attributes):\n(.*?)(?:\n\n|\Z)", re.M | re.S)
_ENTRY = re.compile(r"^    ([\w, ]+): (.*?)(?=^    \w|\Z)", re.M | re.S)
_END = re.compile(r"[.;](?:\s|$)")
_MARKUP = re.compile(r":\w+:|`")


def from_signature(
    name: str, function: Callable, doc: str | None, leave_out: Collection[str]
) -> type:
    """Make a dataclass with a field for each parameter of a function.

    Args:
        name: of the dataclass.
        function: with a default for every parameter that isn't left out.
        doc: docstring that describes the parameters.
        leave_out: parameters that get no field.
    """
    hints, texts = get_type_hints(function), descriptions(doc)
    made = [
        (each.name, _plain(hints[each.name]), option(each.default, texts[each.name]))
        for each in inspect.signature(function).parameters.values()
        if each.name not in leave_out
    ]
    return make_dataclass(name, made)


def overriding(name: str, config: type, leave_out: Collection[str]) -> type:
    """Make a dataclass with the fields of another one, each None: what isn't said otherwise.

    A dictionary is empty instead: each of its entries can be said otherwise.

    Args:
        name: of the dataclass.
        config: a dataclass whose docstring describes its fields.
        leave_out: fields that are not taken over.
    """
    hints, texts = get_type_hints(config), descriptions(config.__doc__)
    made = []
    for each in fields(config):
        if each.name in leave_out:
            continue
        hint, default = hints[each.name] | None, None
        if get_origin(hints[each.name]) is dict:
            hint, default = hints[each.name], dict
        made.append((each.name, hint, option(default, f"{texts[each.name]} ({_shown(each)})")))
    return make_dataclass(name, made)


def descriptions(doc: str | None) -> dict[str, str]:
    """Find the first sentence on each argument or attribute in a Google-style docstring.

    An argument's text goes before that of an attribute of the same name.

    Examples:
        >>> descriptions("Add.\\n\\n    Args:\\n        a, b: what to add. Both.\\n")
        {'a': 'what to add', 'b': 'what to add'}
    """
    found: dict[str, str] = {}
    for section in _SECTION.findall(inspect.cleandoc(doc or "")):
        for names, text in _ENTRY.findall(section):
            sentence = _END.split(" ".join(text.split()))[0]
            for name in names.split(", "):
                found.setdefault(name, _MARKUP.sub("", sentence))
    return found


def _plain(hint: Any) -> Any:
    """The part of a type that a command line can write."""
    if get_origin(hint) not in (Union, UnionType):
        return hint
    plain = tuple(each for each in get_args(hint) if each in _PLAIN)
    return Union[plain]  # noqa: UP007 - of a tuple


def _shown(entry: Field) -> str:
    """Describe a default."""
    default = entry.default_factory() if callable(entry.default_factory) else entry.default
    if isinstance(default, dict):
        default = ", ".join(f"{key.name} {value}" for key, value in default.items())
    return f"mostly {default}"


ANY_KEYS = "{}"
"""Default of an option that is a dictionary: ``OPTION.KEY=VALUE`` sets an entry."""


def walk_options(config: Any, prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """Key, default (in YAML) and help text of every field of a dataclass, and of those in it."""
    for entry in fields(config):
        value, key = getattr(config, entry.name), prefix + entry.name
        if is_dataclass(value):
            yield from walk_options(value, key + ".")
        elif isinstance(value, dict) and value:
            yield from (
                (f"{key}.{name}", str(v), entry.metadata["help"]) for name, v in value.items()
            )
        elif isinstance(value, dict):
            yield key, ANY_KEYS, entry.metadata["help"]
        else:
            written = "null" if value is None else str(value).replace("'", "")
            yield key, written, entry.metadata["help"]


def nearest_option(key: str, options: Sequence[tuple[str, str, str]]) -> str:
    """The known key that ``key`` names in words, or the one that is written most like it."""
    *_, group, name = f".{key}".split(".")
    if name in (known for known, _, _ in options):
        return name
    start = name.replace("_", " ") + " "
    described = [known for known, _, text in options if f"{text} ".startswith(start)]
    same_group = [known for known in described if known.split(".")[0] == group]
    if described:
        return (same_group or described)[0]
    known = [known for known, _, _ in options]
    return difflib.get_close_matches(key, known, n=1, cutoff=0.0)[0]
