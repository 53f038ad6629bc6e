"""A setting that is given as a list: one branch for each of its values."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ..errors import InputError


if TYPE_CHECKING:
    from .schema import Step

# The settings that say how much of the function is kept.
SWEPT = ("beta", "distance_budget", "disagreement_budget")


def sweep(branch: str, steps: tuple[Step, ...]) -> dict[str, tuple[Step, ...]]:
    """
    The branches that a branch stands for: `NAME-VALUE` for each value of the setting that is a list, or itself.

    Args:
        branch (`str`): Its name.
        steps (`tuple[Step]`): Its steps, with all settings filled in.

    Raises:
        `InputError`: several settings are lists, or one list here and another there.
    """
    lists = {(key, tuple(step.settings[key])) for step in steps for key in SWEPT if _is_list(step, key)}
    if not lists:
        return {branch: steps}
    if len(lists) > 1:
        named = ", ".join(f"'{key}' {list(values)}" for key, values in sorted(lists))
        raise InputError(f"branch '{branch}' would go through several lists: {named}; leave one of them")
    ((key, values),) = lists
    return {
        f"{branch}-{value:g}": tuple(
            replace(step, settings={**step.settings, key: value}) if _is_list(step, key) else step for step in steps
        )
        for value in values
    }


def _is_list(step: Step, key: str) -> bool:
    return isinstance(step.settings.get(key), (list, tuple))
