"""What a recipe is: the model, the tasks, and the branches that lead from one to the next."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal

from .document import dump


if TYPE_CHECKING:
    from ..tasks import Task


@dataclass(frozen=True, kw_only=True)
class Settings:
    """
    What every operator of a recipe reads. Given at the top of the recipe, these are the defaults of all steps; each
    step may give its own.

    Args:
        label_space (`str`, *optional*, defaults to `"append"`):
            `"append"`: a new task adds output nodes; `"shared"`: all tasks have the same labels.
        anchors (`int`, *optional*, defaults to 2000): Number of inputs on which the function is kept.
        anchor_batch_size (`int`, *optional*): Anchors in each step; by default the task's batch size.
        anchor_shift (`int`, *optional*, defaults to 0): Images: shifted copies of each anchor, up to so many pixels.
        anchor_label_weight (`float`, *optional*, defaults to 0.0): Weight of the anchors' labels; 0 uses none.
        functional_distance (`str`, *optional*): Distance between outputs; by default the operator's own.
        beta (`float`, *optional*): Weight of the secondary objective (eq. 4), where there is no budget.
        distance_budget (`float`, *optional*): Largest functional distance, as a share of the outputs' variance.
        disagreement_budget (`float`, *optional*): Largest share of inputs whose prediction may change.
        reference (`str`, *optional*, defaults to `"origin"`): What the distance is taken to: `origin` or `previous`.
        path_points (`int`, *optional*, defaults to 5): Number of nodes recorded after the starting one.
        max_length (`int`, *optional*): Tokens kept of each text; by default what the model takes.
        seed (`int`, *optional*, defaults to 0): Seed of initialization, order, and choice of anchors.
    """

    label_space: Literal["append", "shared"] = "append"
    anchors: int = field(default=2000, metadata={"min": 2})
    anchor_batch_size: int | None = field(default=None, metadata={"min": 1})
    anchor_shift: int = field(default=0, metadata={"min": 0})
    anchor_label_weight: float = field(default=0.0, metadata={"min": 0})
    functional_distance: str | None = None
    beta: float | None = field(default=None, metadata={"above": 0})
    distance_budget: float | None = field(default=None, metadata={"above": 0})
    disagreement_budget: float | None = field(default=None, metadata={"above": 0, "below": 1})
    reference: Literal["origin", "previous"] = "origin"
    path_points: int = field(default=5, metadata={"min": 1})
    max_length: int | None = field(default=None, metadata={"min": 1})
    seed: int = field(default=0, metadata={"min": 0})


SETTINGS = tuple(setting.name for setting in fields(Settings))


@dataclass(frozen=True)
class Step:
    """
    One operator of a branch.

    Args:
        operator (`str`): Name of the operator.
        task (`str`): Name of the task it learns.
        method (`str`, *optional*, defaults to `"fip"`): How.
        settings (`dict[str, Any]`, *optional*): The fields of [`Settings`] this step gives itself.
        training (`dict[str, Any]`, *optional*): What it changes of the recipe's `training`.
    """

    operator: str
    task: str
    method: str = "fip"
    settings: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        data = {"operator": self.operator, "task": self.task, "method": self.method, **self.settings}
        return {**data, "training": dict(self.training)} if self.training else data


@dataclass(frozen=True, kw_only=True)
class Recipe(Settings):
    """
    A whole experiment: the model, the tasks in the order they are learned, and the branches of the graph.

    Args:
        name (`str`): Name of the recipe; by default its file's.
        model (`str`): Hub id, folder or `embedded:NAME`.
        tasks (`dict[str, Task]`): The tasks by name; the first is the base node's.
        path (`tuple[Step]`): The steps of the branch `fip`; by default each later task in turn.
        description (`str`, *optional*): One line for people.
        data_root (`str`, *optional*): Folder that holds the data sets; by default they come from the Hub.
        base (`dict[str, Any]`, *optional*): The base node's `task` and training settings.
        training (`dict[str, Any]`, *optional*): Training settings of all other branches.
        branches (`dict[str, tuple[Step]]`, *optional*): Further branches.
        baselines (`tuple[str]`, *optional*): Methods; each becomes a branch that does what `path` does by that method.
        report (`bool`, *optional*, defaults to `True`): Whether the run ends with the HTML report.
    """

    name: str
    model: str
    tasks: dict[str, Task]
    path: tuple[Step, ...]
    description: str = ""
    data_root: str | None = None
    base: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    branches: dict[str, tuple[Step, ...]] = field(default_factory=dict)
    baselines: tuple[str, ...] = ()
    report: bool = True

    @property
    def base_task(self) -> Task:
        return self.tasks[self.base.get("task", next(iter(self.tasks)))]

    @property
    def base_training(self) -> dict[str, Any]:
        return {key: value for key, value in self.base.items() if key != "task"}

    def plan(self) -> dict[str, tuple[Step, ...]]:
        """Every branch but the base, in the order they are made, each step with all its settings filled in."""
        branches = {"fip": self.path} if self.path else {}
        for method in self.baselines:
            branches[method] = tuple(
                Step(step.operator, step.task, method, step.settings, step.training)
                for step in self.path
                if step.operator == "ContinualLearning"
            )
        branches |= self.branches
        return {name: tuple(self._complete(step) for step in steps) for name, steps in branches.items()}

    def _complete(self, step: Step) -> Step:
        settings = {name: step.settings.get(name, getattr(self, name)) for name in SETTINGS}
        return Step(step.operator, step.task, step.method, settings, {**self.training, **step.training})

    def to_dict(self) -> dict[str, Any]:
        """The recipe as plain data: every key, with its defaults."""
        data = {setting.name: getattr(self, setting.name) for setting in fields(self)}
        data["tasks"] = {name: _task_to_dict(task) for name, task in self.tasks.items()}
        data["path"] = [step.to_dict() for step in self.path]
        data["branches"] = {name: [step.to_dict() for step in steps] for name, steps in self.branches.items()}
        data["baselines"] = list(self.baselines)
        order = ("name", "description", "model", "data_root", "tasks", "base", "training")
        return {key: data[key] for key in (*order, *(key for key in data if key not in order))}

    def to_yaml(self) -> str:
        """The recipe as YAML that gives the same recipe when it is loaded."""
        return dump(self.to_dict())


def _task_to_dict(task: Task) -> dict[str, Any]:
    """What the recipe said of the task: the fields that differ from their defaults, without the name."""
    given = {}
    for option in fields(task):
        value = getattr(task, option.name)
        default = option.default_factory() if option.default_factory is not MISSING else option.default
        if option.name != "name" and value != default:
            given[option.name] = list(value) if isinstance(value, tuple) else value
    return given
