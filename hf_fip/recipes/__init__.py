"""Recipes: experiments written down as YAML, and the runner that turns them into model graphs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .loader import builtin_recipes, load_recipe
from .schema import Recipe, Step


if TYPE_CHECKING:
    from .runner import run

__all__ = ["Recipe", "Step", "builtin_recipes", "load_recipe", "run"]


def __getattr__(name: str):
    # The runner imports torch; listing and reading recipes does not.
    if name == "run":
        from .runner import run

        return run
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
