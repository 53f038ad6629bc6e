"""Runs a recipe: the base node, the path, the baselines, the further branches, the report."""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from transformers.utils import logging

from .. import operators
from ..errors import InputError
from ..graph import ModelGraph
from .checks import shown
from .document import read
from .schema import Recipe, Step
from .splits import expand
from .validation import parse_recipe


logger = logging.get_logger(__name__)

RECIPE_FILE = "recipe.yaml"
REPORT_FILE = "report.html"
CHECKPOINTS = "checkpoints"
# What may differ between two runs on one folder: nothing here changes a weight.
_FREE = ("name", "description", "data_root", "report", "baselines", "branches")


def default_output_dir(recipe: Recipe) -> Path:
    """Where a run goes that was not told where: `outputs/NAME`, with the seed where it is not 0."""
    return Path("outputs") / (f"{recipe.name}-seed{recipe.seed}" if recipe.seed else recipe.name)


def run(recipe: Recipe, output_dir: str | os.PathLike[str] | None = None) -> dict[str, Any]:
    """
    Makes everything a recipe describes. Run again on the same folder, it continues where it stopped: what is recorded
    is not made again.

    Args:
        recipe (`Recipe`): The experiment.
        output_dir (`str` or `Path`, *optional*):
            Folder for the graph, the recipe, the report and, while a branch is trained, its checkpoints. Defaults to
            `outputs/NAME`, with the seed where it is not 0.

    Returns:
        `dict`: `graph` (its folder), `endpoints` (branch name → id of its last node), `metrics` (node id → metrics),
        `functional_distance` (node id → distances to parent and root), `scenario` (branch name → what is known at test
        time, for branches that learned a further task), `report` (its file or `None`), `recipe` (as plain data) and
        `seconds`.

    Raises:
        `InputError`: the folder holds the graph of another recipe, is used by another run, or the data do not exist.
    """
    began = time.perf_counter()
    folder = default_output_dir(recipe) if output_dir is None else Path(output_dir).expanduser()
    _check_data_root(recipe)
    with _claimed(folder):
        written = _settle_recipe(recipe, folder)
        recipe = expand(written)
        graph = ModelGraph(folder / "graph")
        plan = recipe.plan()
        # What an operator refuses is told before the base is trained, not after it.
        made = {branch: [_operator(branch, step, recipe) for step in steps] for branch, steps in plan.items()}
        if not len(graph):
            # A data set that does not exist is told before the first hour of training, not after it.
            for task in recipe.tasks.values():
                task.modality(recipe.data_root)
        logger.info(f"[1/{len(plan) + 1}] base: {recipe.model} learns {recipe.base_task.name}")
        base = operators.begin_graph(
            graph,
            model=recipe.model,
            task=recipe.base_task,
            training=recipe.base_training,
            seed=recipe.seed,
            data_root=recipe.data_root,
            max_length=recipe.max_length,
        )
        for number, (branch, steps) in enumerate(plan.items(), start=2):
            purpose = ", then ".join(step.purpose for step in steps)
            logger.info(f"[{number}/{len(plan) + 1}] {branch}: {base.id} {purpose}")
            node = base
            for operator in made[branch]:
                node = operator(node).end
        graph.refresh()
        report = _write_report(graph, folder, written) if recipe.report else None
        shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
    return {
        "graph": str(graph.folder),
        "endpoints": graph.endpoints,
        "metrics": {node.id: _json_numbers(node.metrics) for node in graph},
        "functional_distance": {node.id: node.functional_distance for node in graph},
        "scenario": {
            branch: scenario
            for branch, end in graph.endpoints.items()
            if (scenario := graph[end].protocol.get("scenario")) is not None
        },
        "report": None if report is None else str(report),
        "recipe": recipe.to_dict(),
        "seconds": round(time.perf_counter() - began, 1),
    }


def _operator(branch: str, step: Step, recipe: Recipe) -> operators.Operator:
    return getattr(operators, step.operator)(
        *([] if step.task is None else [recipe.tasks[step.task]]),
        **({"stream": [recipe.tasks[name] for name in step.stream]} if step.stream else {}),
        **({} if step.method is None else {"method": step.method}),
        branch=branch,
        training=step.training,
        data_root=recipe.data_root,
        **step.settings,
    )


def _write_report(graph: ModelGraph, folder: Path, recipe: Recipe) -> Path | None:
    from ..report import MissingExtraError, write_report

    logger.info(f"writing {folder / REPORT_FILE}")
    try:
        return write_report(graph, folder / REPORT_FILE, recipe=recipe.to_yaml())
    except MissingExtraError as error:
        # Hours of training are not failed by a missing plotting package: `hf-fip report` makes it up.
        logger.warning(f"no report: {error}")
        return None


def _check_data_root(recipe: Recipe) -> None:
    if recipe.data_root is not None and not Path(recipe.data_root).expanduser().is_dir():
        raise InputError(f"data_root '{recipe.data_root}' is not a folder; give the folder that holds the data sets")


@contextmanager
def _claimed(folder: Path) -> Iterator[None]:
    """Holds the folder for this process; the lock goes with the process, however it ends."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"output_dir '{folder}' is a file; give a folder")
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise InputError(
            f"output_dir '{folder}' is in use by another run; wait for it or give another folder"
        ) from None
    try:
        yield
    finally:
        lock.release()


def _settle_recipe(recipe: Recipe, folder: Path) -> Recipe:
    """
    The recipe of the folder: the given one and the branches that earlier runs made there. It is written down before
    anything is trained; one that came to nothing binds nobody.
    """
    path = folder / RECIPE_FILE
    begun = (folder / "graph").exists() and any((folder / "graph").iterdir())
    if path.is_file() and begun:
        earlier = parse_recipe(read(path), recipe.name)
        recipe = replace(
            recipe,
            baselines=tuple(dict.fromkeys((*earlier.baselines, *recipe.baselines))),
            branches={**earlier.branches, **recipe.branches},
        )
        for name in recipe.baselines:
            if name in recipe.branches:
                raise InputError(
                    f"output_dir '{folder}' has a branch '{name}' of another kind; give another --output_dir"
                )
        _check_same(earlier, recipe, folder)
    elif begun:
        raise InputError(f"output_dir '{folder}' holds a graph that no recipe made; give another --output_dir")
    temporary = path.with_suffix(".tmp")
    temporary.write_text(recipe.to_yaml(), encoding="utf-8")
    os.replace(temporary, path)
    return recipe


def _check_same(earlier: Recipe, recipe: Recipe, folder: Path) -> None:
    """Refuses to continue what was begun with other settings, and names them."""
    before, now = _binding(earlier, earlier.branches), _binding(recipe, earlier.branches)
    differing = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    if differing:
        changes = [f"{key} was {shown(before.get(key))}, is {shown(now.get(key))}" for key in differing[:5]]
        more = f"; {len(differing) - 5} more" if len(differing) > 5 else ""
        raise InputError(
            f"output_dir '{folder}' holds a run of another recipe: {'; '.join(changes)}{more}; "
            "give another --output_dir, or the same recipe to continue"
        )


def _binding(recipe: Recipe, branches: Iterable[str]) -> dict[str, Any]:
    """What a run on the same folder has to share with the earlier one, by dotted key."""
    data = recipe.to_dict()
    binding = {key: value for key, value in data.items() if key not in _FREE}
    return dict(_flat({**binding, "branches": {name: data["branches"][name] for name in branches}}))


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if items is None:
        yield path, value
        return
    for key, item in items:
        yield from _flat(item, f"{path}.{key}" if path else str(key))


def _json_numbers(metrics: dict[str, float]) -> dict[str, float | None]:
    return {key: value if math.isfinite(value) else None for key, value in metrics.items()}
