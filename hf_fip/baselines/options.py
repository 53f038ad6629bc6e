"""What can be tuned of a method."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any


def options_of(terms: Callable[..., Any]) -> list[str]:
    """
    Names of the keyword arguments a method's `terms` or `prepare` takes, or hands on to the one term it makes.

    Args:
        terms (`Callable`): Of a [`~hf_fip.baselines.Method`].
    """
    if terms is list:
        return []
    names, hands_on = _keywords(terms)
    for term in terms() if hands_on else ():
        names += _keywords(type(term))[0]
    return names


def _keywords(function: Callable) -> tuple[list[str], bool]:
    parameters = inspect.signature(function).parameters.values()
    kinds = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    named = [p.name for p in parameters if p.kind in kinds and p.default is not p.empty]
    return named, any(p.kind is p.VAR_KEYWORD for p in parameters)
