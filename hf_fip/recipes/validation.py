"""From YAML to a [`Recipe`]: every key is checked, and a mistake is named by its file, line and key."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import MISSING, dataclass, fields
from functools import cache
from typing import TYPE_CHECKING, Any, get_type_hints

from ..errors import InputError
from . import checks
from .document import Document, KeyPath, dotted
from .schema import OWN, OWN_SETTINGS, SETTINGS, SHARED, Recipe, Step, methods_of
from .splits import Split
from .sweeps import SWEPT


if TYPE_CHECKING:
    from ..tasks import Task

# The recipe's own keys first, then those that are defaults of its steps.
KEYS = tuple(sorted((option.name for option in fields(Recipe)), key=lambda key: key in SETTINGS))
# Settings for certain values of `model`; the loader applies them, so a checked recipe has none.
VARIANTS = "variants"
# The keys a step of each operator takes before its settings.
_FIRST_KEYS = {
    "ContinualLearning": ("operator", "task", "stream", "method"),
    "Compression": ("operator", "method"),
    "Diversification": ("operator",),
}
OPERATORS = {name: (*first, *SHARED[name], *OWN[name], "training") for name, first in _FIRST_KEYS.items()}
RESERVED_BRANCHES = ("base", "fip")
# `base` and `training` take every field of FIPConfig, and the two settings that all recipes have by a short name.
SHORT_NAMES = {"epochs": float, "batch_size": int}
TRAINING_BOUNDS = {
    "epochs": {"above": 0},
    "num_train_epochs": {"above": 0},
    "batch_size": {"min": 1},
    "per_device_train_batch_size": {"min": 1},
    "learning_rate": {"above": 0},
}
# Of a task that is split.
CLASSES_PER_TASK = "classes_per_task"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


def parse_recipe(document: Document, name: str) -> Recipe:
    """
    Checks a recipe's data and makes a [`Recipe`] of it.

    Args:
        document (`Document`): The YAML, with variants and overrides already applied.
        name (`str`): The recipe's name, unless it gives its own.

    Raises:
        `InputError`: for the first key that is unknown, missing or of the wrong type, with the file, the line, the key
            and what there is.
    """
    # Names that only heavy modules know (fields of tasks, of FIPConfig, methods) come last, so that a slip fails fast.
    data = _mapping(document, ())
    _known_keys(document, (), (*KEYS, VARIANTS))
    for key in ("model", "tasks"):
        if data.get(key) is None:
            raise document.error((), f"key '{key}' is missing; a recipe needs 'model' and 'tasks'")
    values = {key: _value(document, (key,)) for key in data if key in _hints(Recipe) and key not in _STRUCTURED}
    names = _names(document, ("tasks",), "task")
    if not names:
        raise document.error(("tasks",), "'tasks' is empty; name at least the task of the base node")
    base_task = names[0]
    if "task" in _optional_mapping(document, ("base",)):
        base_task = _one_of(document, ("base", "task"), "task", names)
    known = _known_tasks(document, names, base_task)
    path = tuple(
        Step("ContinualLearning", stream=(task,)) if task in known.split else Step("ContinualLearning", task)
        for task in names
        if task != base_task or task in known.split
    )
    if data.get("path") is not None:
        path = _steps(document, ("path",), known)
    branches = {}
    if data.get("branches") is not None:
        for branch in _names(document, ("branches",), "branch", RESERVED_BRANCHES):
            branches[branch] = _steps(document, ("branches", branch), known)
    baselines = _baselines(document, branches)
    tasks = {task: _task(document, task) for task in names}
    base = {"task": base_task, **_training(document, ("base",))}
    training = _training(document, ("training",))
    _registered_names(document, path)
    recipe = Recipe(
        **{"name": name, **values},
        tasks=tasks,
        base=base,
        training=training,
        path=path,
        branches=branches,
        baselines=baselines,
    )
    try:
        recipe.plan()
    except InputError as error:
        raise document.error(_last_list(document), str(error)) from None
    return recipe


_STRUCTURED = ("tasks", "base", "training", "path", "branches", "baselines")


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind, localns={"Task": Any, "Split": Any})


@cache
def _bounds(kind: type) -> dict[str, dict[str, float]]:
    return {option.name: dict(option.metadata) for option in fields(kind)}


def _value(
    document: Document,
    path: KeyPath,
    hint: Any = None,
    bounds: dict[str, float] | None = None,
    kind: type = Recipe,
) -> Any:
    """The value at `path`, of the type and within the bounds that the field of that name of `kind` has."""
    key = path[-1]
    hint = _hints(kind)[key] if hint is None else hint
    bounds = _bounds(kind).get(key, {}) if bounds is None else bounds
    value = document.get(path)
    if key in SWEPT and isinstance(value, list):
        return _swept(document, path, bounds)
    try:
        value = checks.convert(value, hint)
    except TypeError as error:
        raise document.error(path, f"'{dotted(path)}' must be {error}, not {checks.shown(value)}") from None
    wrong = checks.check_bounds(value, bounds)
    if wrong:
        raise document.error(path, f"'{dotted(path)}' must be {wrong}, not {checks.shown(value)}")
    return value


def _swept(document: Document, path: KeyPath, bounds: dict[str, float]) -> list[float]:
    """A list of values, of each of which a branch is made."""
    values = [_value(document, path + (number,), float, bounds) for number in range(len(document.get(path)))]
    if not values:
        raise document.error(path, f"'{dotted(path)}' is an empty list; give its values, or null")
    names = [f"{value:g}" for value in values]
    for number, name in enumerate(names):
        if name in names[:number]:
            raise document.error(path + (number,), f"'{dotted(path)}' holds {name} twice")
    return values


def _mapping(document: Document, path: KeyPath) -> dict[str, Any]:
    value = document.get(path)
    if not isinstance(value, dict):
        what = f"'{dotted(path)}'" if path else "a recipe"
        raise document.error(path, f"{what} must be a mapping of keys to values, not {checks.shown(value)}")
    return value


def _optional_mapping(document: Document, path: KeyPath) -> dict[str, Any]:
    try:
        value = document.get(path)
    except KeyError:
        return {}
    return {} if value is None else _mapping(document, path)


def _known_keys(document: Document, path: KeyPath, known: Iterable[str], listed: str | None = None) -> None:
    for key in document.get(path):
        if key not in known:
            raise document.error(path + (key,), checks.unknown("key", key, known, dotted(path), listed))


def _names(document: Document, path: KeyPath, kind: str, reserved: Iterable[str] = ()) -> list[str]:
    """The keys of a mapping whose keys are names; they become parts of file names and of metric names."""
    names = list(_mapping(document, path))
    for name in names:
        if not _NAME.fullmatch(name):
            message = (
                f"{kind} '{name}': a name has letters, digits, '-', '_' and '.', and begins with a letter or digit"
            )
            raise document.error(path + (name,), message)
        if name in reserved:
            raise document.error(path + (name,), f"{kind} '{name}': this name is taken; choose another")
    return names


def _one_of(document: Document, path: KeyPath, kind: str, known: Iterable[str]) -> str:
    value = _value(document, path, str)
    if value not in known:
        raise document.error(path, checks.unknown(kind, value, known))
    return value


@dataclass(frozen=True)
class _Tasks:
    """Names of a recipe's tasks: all, those that are split, and that of the base node."""

    names: list[str]
    split: list[str]
    base: str


def _known_tasks(document: Document, names: list[str], base: str) -> _Tasks:
    split = [name for name in names if CLASSES_PER_TASK in _optional_mapping(document, ("tasks", name))]
    for name in names:
        whole, _, number = name.rpartition("-")
        if whole in split and number.isdigit():
            message = f"task '{name}' is named like a part of '{whole}', which is split; rename it"
            raise document.error(("tasks", name), message)
    return _Tasks(names, split, base)


def _steps(document: Document, path: KeyPath, tasks: _Tasks) -> tuple[Step, ...]:
    steps = document.get(path)
    if not isinstance(steps, list) or not steps:
        message = (
            f"'{dotted(path)}' must be a list of operators, such as [{{operator: ContinualLearning, task: NAME}}]"
        )
        raise document.error(path, f"{message}, not {checks.shown(steps)}")
    return tuple(_step(document, path + (number,), tasks) for number in range(len(steps)))


def _step(document: Document, path: KeyPath, tasks: _Tasks) -> Step:
    given = _mapping(document, path)
    if "operator" not in given:
        raise document.error(path, f"key 'operator' is missing in '{dotted(path)}'")
    operator = _one_of(document, path + ("operator",), "operator", OPERATORS)
    _known_keys(document, path, OPERATORS[operator])
    if "task" in OPERATORS[operator] and "task" not in given and "stream" not in given:
        message = f"key 'task' is missing in '{dotted(path)}'; name a task, or several in 'stream'"
        raise document.error(path, message)
    own, method = OWN[operator], "fip" if "method" in OPERATORS[operator] else None
    return Step(
        operator,
        task=_single_task(document, path + ("task",), tasks) if "task" in given else None,
        stream=_stream(document, path + ("stream",), tasks) if "stream" in given else (),
        method=_value(document, path + ("method",), str) if "method" in given else method,
        settings={
            key: _value(document, path + (key,), kind=OWN_SETTINGS[operator] if key in own else Recipe)
            for key in given
            if key in own or key in SHARED[operator]
        },
        training=_training(document, path + ("training",)),
    )


def _single_task(document: Document, path: KeyPath, tasks: _Tasks) -> str:
    name = _one_of(document, path, "task", tasks.names)
    if name in tasks.split:
        raise document.error(path, f"task '{name}' is split into several; use stream: [{name}]")
    return name


def _stream(document: Document, path: KeyPath, tasks: _Tasks) -> tuple[str, ...]:
    """The names of tasks that are learned one after another; a single name will do."""
    if "task" in document.get(path[:-1]):
        message = f"'{dotted(path[:-1])}' has a task and a stream; leave one of them out"
        raise document.error(path, message)
    if isinstance(document.get(path), str):
        document.set(path, [document.get(path)], document.where(path))
    given = _value(document, path, list)
    if not given:
        raise document.error(path, f"'{dotted(path)}' is empty; name the tasks to learn, in their order")
    for number in range(len(given)):
        place = path + (number,)
        name = _one_of(document, place, "task", tasks.names)
        if name in given[:number]:
            raise document.error(place, f"'{dotted(path)}' names task '{name}' twice")
        if name == tasks.base and name not in tasks.split:
            raise document.error(place, f"task '{name}' is the base node's; leave it out of '{dotted(path)}'")
    return tuple(given)


def _baselines(document: Document, branches: Iterable[str]) -> tuple[str, ...]:
    try:
        methods = document.get(("baselines",))
    except KeyError:
        methods = None
    if methods is None:
        return ()
    if not isinstance(methods, list):
        raise document.error(("baselines",), f"'baselines' must be a list of methods, not {checks.shown(methods)}")
    for number in range(len(methods)):
        method = _value(document, ("baselines", number), str)
        if method in RESERVED_BRANCHES or method in branches or method in methods[:number]:
            message = f"baseline '{method}': there is a branch of this name already; leave it out or rename the branch"
            raise document.error(("baselines", number), message)
    return tuple(methods)


def _task(document: Document, name: str) -> Task | Split:
    from ..tasks import Task

    path = ("tasks", name)
    given = _mapping(document, path)
    hints = {
        key: hint for key, hint in get_type_hints(Task).items() if key in {option.name for option in fields(Task)}
    }
    hints[CLASSES_PER_TASK] = int
    _known_keys(document, path, [key for key in hints if key != "name"])
    for option in fields(Task):
        is_required = option.default is MISSING and option.default_factory is MISSING
        if is_required and option.name != "name" and option.name not in given:
            raise document.error(path, f"key '{option.name}' is missing in '{dotted(path)}'")
    values = {key: _value(document, path + (key,), hints[key], {"min": 1}) for key in given}
    classes_per_task = values.pop(CLASSES_PER_TASK, None)
    try:
        task = Task(name=name, **values)
    except InputError as error:
        raise document.error(path, str(error)) from None
    return task if classes_per_task is None else Split(task, classes_per_task)


def _last_list(document: Document) -> KeyPath:
    """Where the last list of a setting's values was written."""
    places = [place + (key,) for place in [(), *_step_places(document)] for key in SWEPT if key in document.get(place)]
    return next((place for place in reversed(places) if isinstance(document.get(place), list)), ())


def _step_places(document: Document) -> Iterator[KeyPath]:
    for path in [("path",), *(("branches", branch) for branch in _optional_mapping(document, ("branches",)))]:
        try:
            steps = document.get(path) or []
        except KeyError:
            steps = []
        yield from (path + (number,) for number in range(len(steps)))


def _training(document: Document, path: KeyPath) -> dict[str, Any]:
    given = _optional_mapping(document, path)
    if not given:
        return {}
    hints = {**SHORT_NAMES, **_config_hints()}
    extra = ("task",) if path == ("base",) else ()
    known = [*extra, *hints]
    common = (*extra, *SHORT_NAMES, "learning_rate", "weight_decay", "warmup_steps", "lr_scheduler_type", "max_steps")
    _known_keys(document, path, known, f"{', '.join(common)}, and the other fields of FIPConfig and TrainingArguments")
    return {
        key: _value(document, path + (key,), hints[key], TRAINING_BOUNDS.get(key, {}))
        for key in given
        if key not in extra
    }


@cache
def _config_hints() -> dict[str, Any]:
    """The fields of FIPConfig that are not settings of the recipe itself and do not say where files go."""
    from ..config import FIPConfig

    hints = get_type_hints(FIPConfig)
    taken = {*SETTINGS, "output_dir", "graph_dir", "branch"}
    return {
        option.name: hints[option.name] for option in fields(FIPConfig) if option.init and option.name not in taken
    }


def _registered_names(document: Document, path: tuple[Step, ...]) -> None:
    from ..functional.distances import known_distances

    operators = {step.operator for step in path} or OPERATORS.keys()
    known = [method for operator in operators for method in methods_of(operator)]
    baselines = document.get(()).get("baselines") or []
    if baselines and not known:
        message = "'baselines' are other methods of the operators in 'path', of which none has any; leave them out"
        raise document.error(("baselines",), message)
    for number in range(len(baselines)):
        _one_of(document, ("baselines", number), "method", known)
    for place in [(), *_step_places(document)]:
        given = document.get(place)
        if place and "method" in given:
            _one_of(document, place + ("method",), "method", methods_of(given["operator"]))
        if given.get("functional_distance") is not None:
            _one_of(document, place + ("functional_distance",), "functional distance", known_distances())
