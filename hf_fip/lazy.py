"""Packages that import a module when one of its names is first asked for: `hf-fip --help` does not wait for torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def attributes_of(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """
    What a package sets as its `__getattr__`.

    Args:
        package (`str`): Its `__name__`.
        homes (`dict[str, str]`): For each public name the module of the package that defines it.
    """

    def attribute(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f".{homes[name]}", package), name)

    return attribute
