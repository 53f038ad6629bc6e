"""What a recipe is: the model, the tasks, and the branches that lead from one to the next."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import MISSING, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Literal

from ..errors import InputError
from .document import dump
from .splits import Split
from .sweeps import sweep


if TYPE_CHECKING:
    from ..tasks import Task


@dataclass(frozen=True, kw_only=True)
class Settings:
    """
    What every operator of a recipe reads. Given at the top of the recipe, these are the defaults of all steps; each
    step may give its own.

    Args:
        label_space (`str`, *optional*, defaults to `"append"`):
            `"append"`: a new task adds output nodes; `"shared"`: all tasks have the same labels; `"per_task"`: a new
            task adds output nodes, and the task of an input is known.
        anchors (`int`, *optional*, defaults to 2000): Number of inputs on which the function is kept.
        anchor_memory (`str`, *optional*, defaults to `"even"`):
            How they are shared by the earlier tasks: `even`, `class_balanced` or `reservoir`.
        anchor_batch_size (`int`, *optional*): Anchors in each step; by default the task's batch size.
        anchor_shift (`int`, *optional*, defaults to 0): Images: shifted copies of each anchor, up to so many pixels.
        anchor_mix (`int`, *optional*, defaults to 0): Images: mixtures of each anchor with others.
        held_out (`int`, *optional*, defaults to 1000): Test inputs of each earlier task that certify budgets.
        anchor_label_weight (`float`, *optional*, defaults to 0.0): Weight of the anchors' labels; 0 uses none.
        anchor_prediction_weight (`float`, *optional*):
            Weight of the reference's predictions on the anchors, where a classifier grows; by default the trainer's.
        functional_distance (`str`, *optional*): Distance between outputs; by default the operator's own.
        beta (`float` or `list`, *optional*): Weight of the secondary objective (eq. 4), where there is no budget.
        distance_budget (`float` or `list`, *optional*):
            Largest functional distance, as a share of the outputs' variance.
        disagreement_budget (`float` or `list`, *optional*):
            Largest share of inputs whose prediction may change. A list, of these or of `beta`, makes a branch for each
            value.
        calibration_share (`float`, *optional*, defaults to 0.0):
            Share of the held-out inputs by which restoration is controlled; the certificate rests on the others.
        reference (`str`, *optional*, defaults to `"origin"`):
            What the distance is taken to: `origin`, `previous` or `learned`.
        path_points (`int`, *optional*, defaults to 5): Number of nodes recorded after the starting one.
        max_length (`int`, *optional*): Tokens kept of each text; by default what the model takes.
        seed (`int`, *optional*, defaults to 0): Seed of initialization, order, and choice of anchors.
    """

    label_space: Literal["append", "shared", "per_task"] = "append"
    anchors: int = field(default=2000, metadata={"min": 2})
    anchor_memory: Literal["even", "class_balanced", "reservoir"] = "even"
    anchor_batch_size: int | None = field(default=None, metadata={"min": 1})
    anchor_shift: int = field(default=0, metadata={"min": 0})
    anchor_mix: int = field(default=0, metadata={"min": 0})
    held_out: int = field(default=1000, metadata={"min": 2})
    anchor_label_weight: float = field(default=0.0, metadata={"min": 0})
    anchor_prediction_weight: float | None = field(default=None, metadata={"min": 0})
    functional_distance: str | None = None
    beta: float | list[float] | None = field(default=None, metadata={"above": 0})
    distance_budget: float | list[float] | None = field(default=None, metadata={"above": 0})
    disagreement_budget: float | list[float] | None = field(default=None, metadata={"above": 0, "below": 1})
    calibration_share: float | None = field(default=None, metadata={"min": 0, "below": 1})
    reference: Literal["origin", "previous", "learned"] = "origin"
    path_points: int = field(default=5, metadata={"min": 1})
    max_length: int | None = field(default=None, metadata={"min": 1})
    seed: int = field(default=0, metadata={"min": 0})


@dataclass(frozen=True, kw_only=True)
class ContinualLearningSettings:
    """
    What a step of [`~hf_fip.ContinualLearning`] reads beside the settings that all operators share.

    Args:
        adapter (`dict`, *optional*): Train a low-rank adapter, `{rank: 8, alpha: 16}`, and not the weights.
        method_options (`dict`, *optional*): What can be tuned of the method, such as `{weight: 100}` of `ewc`.
        keep_zeros (`bool`, *optional*): Whether zeros of a compressed node stay zero.
    """

    adapter: dict[str, Any] | None = None
    method_options: dict[str, Any] | None = None
    keep_zeros: bool | None = None


@dataclass(frozen=True, kw_only=True)
class CompressionSettings:
    """
    What a step of [`~hf_fip.Compression`] reads beside the settings that all operators share; what it is not given is
    the operator's own default.

    Args:
        sparsity (`float` or `list`, *optional*): Share of zeros, or the shares of the path's points.
        projection (`str` or `dict`, *optional*): The target set: `unstructured`, `2:4`, `structured`, `int8`, ….
        steps (`int` or `list`, *optional*): Optimizer steps of the path, or of each of its segments.
        schedule (`str` or `list`, *optional*): How the share rises: `cubic`, `linear`, `constant`, or shares.
        ramp (`float`, *optional*): Share of a segment's steps in which it rises.
        strength (`float`, *optional*): Of the pull towards the target set.
        score (`str`, *optional*): Which weights go first: `magnitude`, `saliency`, `fisher` or `second_order`.
        include (`list`, *optional*): Patterns of weight names to prune besides.
        exclude (`list`, *optional*): Patterns of weight names to leave alone besides.
        labels (`bool`, *optional*): Whether to train on the tasks' labels too.
        keep_zeros (`bool`, *optional*): Whether zeros stay zero.
    """

    sparsity: float | list[float] | None = None
    projection: str | dict[str, Any] | None = None
    steps: int | list[int] | None = None
    schedule: str | list[float] | None = None
    ramp: float | None = field(default=None, metadata={"min": 0})
    strength: float | None = field(default=None, metadata={"min": 0})
    score: str | None = None
    include: list[str] | None = None
    exclude: list[str] | None = None
    labels: bool | None = None
    keep_zeros: bool | None = None


@dataclass(frozen=True, kw_only=True)
class DiversificationSettings:
    """
    What a step of [`~hf_fip.Diversification`] reads beside the settings that all operators share; what it is not given
    is the operator's own default.

    Args:
        repulsion (`str`, *optional*): What drives the path: `cosine`, `distance`, or null for L = 0.
        random_step (`float`, *optional*): In place of a repulsion: length of the random step of each segment.
        steps (`int`, *optional*): Optimizer steps of the path.
        strength (`float`, *optional*): Of the repulsion.
        angle (`float`, *optional*): Angle in degrees of each layer at the end of the path.
        away_from (`str`, *optional*): `start`, or `points`: the start and every point before.
        ramp (`float`, *optional*): Share of a segment's steps in which the angle rises.
        schedule (`str` or `list`, *optional*): How it rises: `linear`, `cubic`, `constant`, or shares.
        include (`list`, *optional*): Patterns of weight names to turn besides.
        exclude (`list`, *optional*): Patterns of weight names to leave alone besides.
        keep_zeros (`bool`, *optional*): Whether zeros stay zero.
    """

    repulsion: Literal["cosine", "distance"] | None = None
    random_step: float | None = field(default=None, metadata={"above": 0})
    steps: int | None = field(default=None, metadata={"min": 1})
    strength: float | None = field(default=None, metadata={"above": 0})
    angle: float | None = field(default=None, metadata={"above": 0, "below": 180})
    away_from: Literal["start", "points"] | None = None
    ramp: float | None = field(default=None, metadata={"min": 0})
    schedule: str | list[float] | None = None
    include: list[str] | None = None
    exclude: list[str] | None = None
    keep_zeros: bool | None = None


SETTINGS = tuple(setting.name for setting in fields(Settings))
# Of each operator: the settings it takes from the recipe, and those that only a step gives.
SHARED = {
    "ContinualLearning": SETTINGS,
    "Compression": (
        "anchors anchor_batch_size anchor_shift anchor_mix held_out functional_distance beta distance_budget "
        "disagreement_budget max_length seed"
    ).split(),
    "Diversification": (
        "anchors anchor_batch_size anchor_shift anchor_mix held_out functional_distance beta distance_budget "
        "disagreement_budget path_points max_length seed"
    ).split(),
}
OWN_SETTINGS = {
    "ContinualLearning": ContinualLearningSettings,
    "Compression": CompressionSettings,
    "Diversification": DiversificationSettings,
}
# What shapes `fip` alone. Its rivals have weights of their own, and none can hold a budget.
_BUDGETS = ("distance_budget", "disagreement_budget", "calibration_share")
FIP_ONLY = {
    "ContinualLearning": (
        *("functional_distance", "beta", *_BUDGETS),
        *("anchor_label_weight", "anchor_prediction_weight"),
    ),
    "Compression": _BUDGETS,
    "Diversification": (),
}
OWN = {operator: tuple(setting.name for setting in fields(kind)) for operator, kind in OWN_SETTINGS.items()}


@dataclass(frozen=True)
class Step:
    """
    One operator of a branch.

    Args:
        operator (`str`): Name of the operator.
        task (`str`, *optional*): Name of the task it learns, where it learns one.
        stream (`tuple[str]`, *optional*): Names of the tasks it learns one after another, where it learns several.
        method (`str`, *optional*, defaults to `"fip"`): How; `None` where the operator knows one way only.
        settings (`dict[str, Any]`, *optional*):
            The fields of [`Settings`] and of the operator's own settings this step gives itself.
        training (`dict[str, Any]`, *optional*): What it changes of the recipe's `training`.
    """

    operator: str
    task: str | None = None
    stream: tuple[str, ...] = ()
    method: str | None = "fip"
    settings: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)

    @property
    def purpose(self) -> str:
        """What it does, in words."""
        if self.task is not None:
            return f"learns {self.task}"
        if self.stream:
            return f"learns {', '.join(self.stream)}"
        if self.operator == "Diversification":
            return "changes its weights but not its outputs"
        goal = self.settings.get("sparsity", self.settings.get("projection"))
        return f"is compressed{'' if goal is None else f' to {goal}'}"

    def to_dict(self) -> dict[str, Any]:
        task = {} if self.task is None else {"task": self.task}
        if self.stream:
            task = {"stream": list(self.stream)}
        method = {} if self.method is None else {"method": self.method}
        data = {"operator": self.operator, **task, **method, **self.settings}
        return {**data, "training": dict(self.training)} if self.training else data


@dataclass(frozen=True, kw_only=True)
class Recipe(Settings):
    """
    A whole experiment: the model, the tasks in the order they are learned, and the branches of the graph.

    Args:
        name (`str`): Name of the recipe; by default its file's.
        model (`str`): Hub id, folder or `embedded:NAME`.
        tasks (`dict[str, Task | Split]`): The tasks by name; the first is the base node's.
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
    tasks: dict[str, Task | Split]
    path: tuple[Step, ...]
    description: str = ""
    data_root: str | None = None
    base: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    branches: dict[str, tuple[Step, ...]] = field(default_factory=dict)
    baselines: tuple[str, ...] = ()
    report: bool = True

    @property
    def base_name(self) -> str:
        """The name that the recipe gives the task of the base node."""
        return self.base.get("task", next(iter(self.tasks)))

    @property
    def base_task(self) -> Task | Split:
        return self.tasks[self.base_name]

    @property
    def base_training(self) -> dict[str, Any]:
        return {key: value for key, value in self.base.items() if key != "task"}

    def plan(self) -> dict[str, tuple[Step, ...]]:
        """
        Every branch but the base, in the order they are made, each step with all its settings filled in.

        Raises:
            `InputError`: lists of settings make several sweeps of one branch, or branches of one name.
        """
        branches = {"fip": self.path} if self.path else {}
        for method in self.baselines:
            branches[method] = tuple(
                _by_method(step, method) if method in methods_of(step.operator) else step for step in self.path
            )
        branches |= self.branches
        plan: dict[str, tuple[Step, ...]] = {}
        for name, steps in branches.items():
            for branch, complete in sweep(name, tuple(map(self._complete, steps))).items():
                if branch in plan:
                    raise InputError(f"branch '{branch}' is made twice: by a list of values and by name; rename it")
                plan[branch] = complete
        return plan

    def _complete(self, step: Step) -> Step:
        is_rival = step.method not in ("fip", None)
        left_out = FIP_ONLY[step.operator] if is_rival else ()
        shared = {
            name: step.settings.get(name, getattr(self, name))
            for name in SHARED[step.operator]
            if name in step.settings or name not in left_out
        }
        if step.operator != "ContinualLearning":
            # Other operators have defaults of their own, which those of the recipe are not meant to change.
            shared = {
                name: value
                for name, value in shared.items()
                if name in step.settings or name == "seed" or value != getattr(Settings, name)
            }
        own = {name: step.settings[name] for name in OWN[step.operator] if name in step.settings}
        return replace(step, settings={**shared, **own}, training={**self.training, **step.training})

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


def methods_of(operator: str) -> Container[str]:
    """The methods an operator knows."""
    from ..baselines import METHODS
    from ..baselines.compression import COMPRESSION_METHODS

    return {"ContinualLearning": METHODS, "Compression": COMPRESSION_METHODS, "Diversification": ()}[operator]


def _by_method(step: Step, method: str) -> Step:
    """The step by another method, to which nothing applies that shapes the step's own."""
    dropped = (*FIP_ONLY[step.operator], "method_options")
    kept = {name: value for name, value in step.settings.items() if name not in dropped}
    return replace(step, method=method, settings=kept)


def _task_to_dict(task: Task | Split) -> dict[str, Any]:
    """What the recipe said of the task: the fields that differ from their defaults, without the name."""
    if isinstance(task, Split):
        return {**_task_to_dict(task.task), "classes_per_task": task.classes_per_task}
    given = {}
    for option in fields(task):
        value = getattr(task, option.name)
        default = option.default_factory() if option.default_factory is not MISSING else option.default
        if option.name != "name" and value != default:
            given[option.name] = list(value) if isinstance(value, tuple) else value
    return given
