"""One check of types for the fields of dataclasses and the arguments of constructors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from enum import Enum
from functools import cache, wraps
from inspect import Signature, signature
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import (
    Any,
    Literal,
    ParamSpec,
    TypeGuard,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

import numpy as np

P = ParamSpec("P")
R = TypeVar("R")

_SCALARS: Mapping[Any, tuple[Any, str]] = {
    bool: ((bool, np.bool_), "True or False"),
    int: (Integral, "an integer"),
    float: (Real, "a number"),
    str: (str, "a string"),
    NoneType: (NoneType, "None"),
}
"""Kinds that count as each, and its name in messages: NumPy's numbers do, True is no number."""


def check_types(config: Any, prefix: str = "") -> None:
    """Refuse fields of a dataclass that aren't of the type that they say.

    Args:
        config: the dataclass.
        prefix: for the fields' names in messages.

    Raises:
        TypeError: naming the field, what it must be and what it is.

    Examples:
        >>> from envs.batched.optimizers import SGD
        >>> SGD(momentum=True)
        Traceback (most recent call last):
        TypeError: momentum must be a number, got True
    """
    hints = _hints(type(config))
    for each in fields(config):
        check_type(prefix + each.name, getattr(config, each.name), hints[each.name])


def typed(function: Callable[P, R]) -> Callable[P, R]:
    """Let a constructor refuse arguments that aren't of the type that it says.

    Raises:
        TypeError: naming the argument, what it must be and what it is.
    """

    @wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        hints = _hints(function)
        for name, value in _signature(function).bind(*args, **kwargs).arguments.items():
            if name in hints:
                check_type(name, value, hints[name])
        return function(*args, **kwargs)

    return checked


def check_type(name: str, value: object, hint: Any) -> None:
    """Refuse a value that isn't of a type.

    Raises:
        TypeError: naming what it must be and what it is.

    Examples:
        >>> check_type("slots", "layer1", Sequence[str])
        Traceback (most recent call last):
        TypeError: slots must be a list of a string each, got 'layer1'
    """
    if not _fits(value, hint):
        shown = repr(value)
        raise TypeError(
            f"{name} must be {_called(hint)}, got {shown if len(shown) <= 200 else type(value)}"
        )


_hints: Callable[[Any], dict[str, Any]] = cache(get_type_hints)
_signature: Callable[[Any], Signature] = cache(signature)


def _fits(value: object, hint: Any) -> bool:
    origin, parts = get_origin(hint) or hint, get_args(hint)
    if origin in (Union, UnionType):
        return any(_fits(value, part) for part in parts)
    if origin is Literal:
        return value in parts
    if hint in _SCALARS:
        no_number = isinstance(value, bool | np.bool_) and hint is not bool
        return isinstance(value, _SCALARS[hint][0]) and not no_number
    if hint is Any or not isinstance(origin, type):
        return True
    if origin is Callable:
        return callable(value)
    if issubclass(origin, Enum):
        return isinstance(value, origin) or value in [member.value for member in origin]
    if issubclass(origin, Mapping):
        keys, values = parts or (Any, Any)
        return isinstance(value, Mapping) and all(
            _fits(key, keys) and _fits(each, values) for key, each in value.items()
        )
    if issubclass(origin, tuple) and parts and ... not in parts:
        return _is_list(value) and len(value) == len(parts) and all(map(_fits, value, parts))
    if issubclass(origin, Sequence):
        return _is_list(value) and all(_fits(each, (*parts, Any)[0]) for each in value)
    return isinstance(value, origin)


def _is_list(value: object) -> TypeGuard[Sequence[object]]:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def _called(hint: Any) -> str:
    """A type in words."""
    origin, parts = get_origin(hint) or hint, get_args(hint)
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(map(_called, parts)))
    if origin is Literal:
        return f"one of {', '.join(map(repr, parts))}"
    if hint in _SCALARS:
        return _SCALARS[hint][1]
    if origin is Callable:
        return "a function"
    if issubclass(origin, Mapping) and parts:
        return f"a dictionary of {_called(parts[0])} and {_called(parts[1])} each"
    if issubclass(origin, tuple) and parts and ... not in parts:
        return f"a list of {len(parts)}, {' and '.join(dict.fromkeys(map(_called, parts)))} each"
    if issubclass(origin, Sequence) and parts:
        return f"a list of {_called(parts[0])} each"
    return f"a {origin.__name__}"
