"""Small checks of plain data against type hints, with messages for people who write YAML."""

from __future__ import annotations

import difflib
import math
import types
from collections.abc import Iterable
from typing import Any, Literal, Union, get_args, get_origin


_WORDS = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    list: "a list",
    dict: "a mapping of keys to values",
    type(None): "null",
}


def convert(value: Any, hint: Any) -> Any:
    """
    The value as the type a hint asks for: `3` is a `float`, `1e4` an `int`; nothing else is converted.

    Args:
        value (`Any`): A YAML value.
        hint (`Any`):
            `str`, `int`, `float`, `bool`, `list`, `dict`, `None`, `Literal[…]`, and unions of these. What a union or a
            hint of another kind means is left to the class behind it: any value passes.

    Raises:
        `TypeError`: with what was expected, in words.
    """
    options = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    options = tuple(type(None) if option is None else option for option in options)
    if any(_is_open(option) for option in options):
        return value
    for option in options:
        matches, converted = _match(value, option)
        if matches:
            return converted
    raise TypeError(" or ".join(_words(option) for option in options))


def check_bounds(value: Any, bounds: dict[str, float]) -> str | None:
    """What is wrong with a number outside `bounds` (`min`, `above`, `max`, `below`), or `None`."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return None
    if "min" in bounds and not value >= bounds["min"]:
        return f"at least {bounds['min']}"
    if "above" in bounds and not value > bounds["above"]:
        return f"more than {bounds['above']}"
    if "below" in bounds and not value < bounds["below"]:
        return f"less than {bounds['below']}"
    return None


def unknown(kind: str, value: str, known: Iterable[str], place: str = "", listed: str | None = None) -> str:
    """
    The message for a name that is not one of `known`: what was given, the closest match, and what there is.

    Args:
        kind (`str`): What the name is: "key", "method" ….
        value (`str`): The name received.
        known (iterable of `str`): The names there are.
        place (`str`, *optional*): What it is a part of, for example `base`.
        listed (`str`, *optional*): What to say there is, where `known` is too long to print.
    """
    known = list(known)
    close = difflib.get_close_matches(value, known, n=1)
    hint = f" (did you mean '{close[0]}'?)" if close else ""
    of = f" in '{place}'" if place else ""
    return f"unknown {kind} '{value}'{of}{hint}; known: {listed or ', '.join(known)}"


def shown(value: Any) -> str:
    """A value as messages print it, cut where it is long."""
    text = {"True": "true", "False": "false", "None": "null"}.get(repr(value), repr(value))
    return text if len(text) <= 60 else f"{text[:57]}…"


def _is_open(hint: Any) -> bool:
    return get_origin(hint) is not Literal and (get_origin(hint) or hint) not in _WORDS


def _match(value: Any, hint: Any) -> tuple[bool, Any]:
    if get_origin(hint) is Literal:
        return any(value == option and type(value) is type(option) for option in get_args(hint)), value
    kind = get_origin(hint) or hint
    if kind is float:
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        return is_number, float(value) if is_number else value
    if kind is int and isinstance(value, float) and value.is_integer():
        return True, int(value)
    return isinstance(value, kind) and not (kind is int and isinstance(value, bool)), value


def _words(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return " or ".join(f"'{option}'" for option in get_args(hint))
    return _WORDS[get_origin(hint) or hint]
