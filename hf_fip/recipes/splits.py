"""Tasks that are cut by their classes into several: `classes_per_task` of a recipe's task."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..errors import InputError


if TYPE_CHECKING:
    from ..tasks import Task
    from .schema import Recipe, Step


@dataclass(frozen=True)
class Split:
    """
    A data set whose classes are learned a few at a time. Its tasks are called after it: `NAME-01`, `NAME-02`, ….

    Args:
        task (`Task`): All of its classes.
        classes_per_task (`int`): Number of classes of each of its tasks.
    """

    task: Task
    classes_per_task: int

    def tasks(self, data_root: str | None = None) -> list[Task]:
        """
        The tasks, in the order of the classes.

        Raises:
            `InputError`: the classes do not make two tasks or more.
        """
        from ..data.splits import class_splits

        found = class_splits(self.task, self.classes_per_task, data_root)
        if len(found) < 2:
            raise InputError(
                f"tasks.{self.task.name}.classes_per_task={self.classes_per_task}: the data set has no more classes, "
                "so there is nothing to split; give fewer"
            )
        return found


def expand(recipe: Recipe) -> Recipe:
    """
    The recipe with the tasks of its splits in their place. A split that the base node begins with gives it the first
    of its tasks, and streams the others; any other gives all to the streams that name it.

    Args:
        recipe (`Recipe`): A recipe, whose data sets are looked at if it has splits.

    Raises:
        `InputError`: a data set does not exist, or its classes make no two tasks.
    """
    splits = {name: task.tasks(recipe.data_root) for name, task in recipe.tasks.items() if isinstance(task, Split)}
    if not splits:
        return recipe
    base = recipe.base_name
    streamed = {name: [task.name for task in parts[name == base :]] for name, parts in splits.items()}

    def expanded(step: Step) -> Step:
        return replace(step, stream=tuple(part for name in step.stream for part in streamed.get(name, [name])))

    return replace(
        recipe,
        tasks={task.name: task for name, given in recipe.tasks.items() for task in splits.get(name, [given])},
        base={**recipe.base, "task": splits[base][0].name if base in splits else base},
        path=tuple(map(expanded, recipe.path)),
        branches={name: tuple(map(expanded, steps)) for name, steps in recipe.branches.items()},
    )
