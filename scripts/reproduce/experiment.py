"""
What every script of this folder shares: its arguments, one file per seed so that an interrupted script goes on where
it stopped, and the results as JSON, as a Markdown table and as pictures.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any


# What the functionally invariant path is compared with, in the order of the tables.
RIVALS = (
    *("naive", "joint", "l2", "lwf", "ewc", "online_ewc"),
    *("er", "gem", "agem", "fdr", "bhattacharyya", "der", "derpp"),
)
# They see anchors of the earlier tasks in no step.
WITHOUT_ANCHORS = ("naive", "joint", "l2", "lwf")
# Weight of the anchors' labels, where the path uses them.
LABEL_WEIGHT = 0.5
GRID = (
    "each rival at the best of 3 to 6 weights (l2 .3-100, ewc 1-1e4, online_ewc .03-3, lwf .25-30, er .3-100, gem "
    "0-10, der .05-1, derpp .1-.5 with labels .5-1, fdr .01-1, bhattacharyya .003-.3; osf .1-.97, the task known), "
    "found once on MNIST then Fashion-MNIST at 14 x 14, on validation images and other seeds: docs/measurements.md"
)


@dataclass(frozen=True)
class Options:
    """
    What a script was asked for.

    Args:
        scale (`str`): `"small"` (minutes, to see that it works) or `"full"` (the figures in the documentation).
        data_root (`str`, *optional*): local folder with the data sets, instead of the Hub.
        output_dir (`Path`): where graphs and results go.
    """

    scale: str
    data_root: str | None
    output_dir: Path

    @property
    def is_full(self) -> bool:
        return self.scale == "full"


@dataclass(frozen=True)
class Measurement:
    """One number of one seed: `setting` tells apart what has the same method and metric."""

    method: str
    metric: str
    value: float
    setting: dict[str, Any]

    @property
    def key(self) -> str:
        return json.dumps([self.method, self.setting, self.metric], sort_keys=True)


def reproduce(
    name: str,
    *,
    measure: Callable[[int, Options], list[Measurement]],
    protocol: Callable[[Options], dict[str, Any]],
    paper: list[dict[str, Any]],
    description: str,
    pictures: Callable[[list[dict[str, Any]]], dict[str, Any]] | None = None,
    argv: list[str] | None = None,
) -> dict[str, Any]:
    """
    Runs an experiment over its seeds and writes `results.json`, `results.md` and, with `pictures`, `results.html` and
    a PNG file of each.

    Args:
        name (`str`): of the experiment.
        measure (`Callable`): from a seed and the options to the numbers of that seed.
        protocol (`Callable`): what a number needs beside it, from the options.
        paper (`list[dict]`): what the paper reports.
        description (`str`): for `--help`.
        pictures (`Callable`, *optional*): from the rows to plotly figures by their names.
        argv (`list[str]`, *optional*): the arguments; by default the process's.

    Returns:
        `dict`: what `results.json` holds.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", choices=("small", "full"), default="small")
    parser.add_argument("--full", dest="scale", action="store_const", const="full", help="as --scale full")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--data_root", help="local folder with the data sets, instead of the Hub")
    parser.add_argument("--output_dir", type=Path, help=f"default: outputs/reproduce/{name}")
    parser.add_argument("--json", action="store_true", help="print results.json instead of the table")
    arguments = parser.parse_args(argv)
    folder = arguments.output_dir or Path("outputs") / "reproduce" / name
    options = Options(arguments.scale, arguments.data_root, folder)
    folder.mkdir(parents=True, exist_ok=True)
    by_seed = {}
    for seed in arguments.seeds:
        with redirect_stdout(sys.stderr):
            by_seed[seed] = _measured_once(folder / f"{options.scale}-seed-{seed}.json", seed, options, measure)
    rows = summarize(by_seed)
    results = {
        "experiment": name,
        "protocol": {"scale": options.scale, "seeds": arguments.seeds, **protocol(options)},
        "rows": rows,
        "paper": paper,
    }
    _write(folder / "results.json", json.dumps(results, indent=1))
    table = markdown(results)
    _write(folder / "results.md", table)
    if pictures is not None:
        from drawing import save

        save(pictures(rows), folder)
    print(json.dumps(results) if arguments.json else table)
    return results


def _measured_once(file: Path, seed: int, options: Options, measure: Callable) -> list[Measurement]:
    if file.is_file():
        return [Measurement(**entry) for entry in json.loads(file.read_text("utf-8"))]
    found = measure(seed, options)
    _write(file, json.dumps([vars(measurement) for measurement in found], indent=1))
    return found


def _write(file: Path, text: str) -> None:
    temporary = file.with_name(f".{file.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, file)


def summarize(by_seed: dict[int, list[Measurement]]) -> list[dict[str, Any]]:
    """Mean, standard deviation and number of seeds of each method, setting and metric, in order of appearance."""
    values: dict[str, list[Measurement]] = {}
    for measurements in by_seed.values():
        for measurement in measurements:
            values.setdefault(measurement.key, []).append(measurement)
    return [
        {
            "method": found[0].method,
            "setting": found[0].setting,
            "metric": found[0].metric,
            "mean": statistics.fmean(m.value for m in found),
            "std": statistics.stdev(m.value for m in found) if len(found) > 1 else None,
            "n": len(found),
        }
        for found in values.values()
    ]


def markdown(results: dict[str, Any]) -> str:
    """The results as a Markdown table: a row for each method and setting, a column for each metric."""
    rows = results["rows"]
    metrics = list(dict.fromkeys(row["metric"] for row in rows))
    lines: dict[str, dict[str, str]] = {}
    for row in rows:
        setting = ", ".join(f"{key} {value}" for key, value in row["setting"].items())
        cells = lines.setdefault(f"{row['method']} | {setting}", {})
        spread = "" if row["std"] is None else f" ± {row['std']:.3g}"
        cells[row["metric"]] = f"{row['mean']:.4g}{spread}"
    settled = "; ".join(f"{key}: {value}" for key, value in results["protocol"].items())
    table = [f"**{results['experiment']}**: {settled}", "", f"| method | setting | {' | '.join(metrics)} |"]
    table.append("|---|---|" + "---|" * len(metrics))
    table += [f"| {line} | {' | '.join(cells.get(m, '–') for m in metrics)} |" for line, cells in lines.items()]
    if results["paper"]:
        table += ["", "Paper:", *(f"- {json.dumps(entry, ensure_ascii=False)}" for entry in results["paper"])]
    return "\n".join(table) + "\n"


def run_recipe(recipe: str, overrides: list[str], folder: Path, data_root: str | None) -> dict[str, Any]:
    """Runs a recipe, or continues it, as `hf-fip run` does."""
    from hf_fip.recipes.loader import load_recipe
    from hf_fip.recipes.runner import run

    root = [f"data_root={data_root}"] if data_root else []
    return run(load_recipe(recipe, [*overrides, *root, "report=false"]), folder)


class Branches:
    """
    Branches that a recipe gets beside its path, each under the method and the setting that tables show.

    Args:
        learns (`dict`): what the step of each does: `{"task": NAME}` or `{"stream": [NAME, …]}`.
        path (`dict`, *optional*): the setting of the recipe's own path, the branch `fip`.
    """

    def __init__(self, learns: dict[str, Any], path: dict[str, Any] | None = None):
        self.learns = {"operator": "ContinualLearning", **learns}
        self.steps: dict[str, list[dict[str, Any]]] = {}
        self.shown = {"fip": ("fip", path or {})}

    def add(self, name: str, setting: dict[str, Any] | None = None, **step: Any) -> None:
        """
        Adds a branch.

        Args:
            name (`str`): what tables call it; a method of the package, unless `step` names one.
            setting (`dict`, *optional*): what tables tell it by from others of the name.
            step (`Any`): further keys of its step.
        """
        branch = "-".join([name.replace("+", "-"), *map(str, (setting or {}).values())])
        self.steps[branch] = [{**self.learns, "method": name, **step}]
        self.shown[branch] = (name, setting or {})

    @property
    def override(self) -> str:
        """The recipe's key `branches`."""
        return f"branches={json.dumps(self.steps)}"

    def measurements(self, result: dict[str, Any], setting: dict[str, Any] | None = None) -> list[Measurement]:
        """As [`endpoint_measurements`], with the mean accuracy over all tasks, in the order of the tables."""
        found = endpoint_measurements(result, {})
        order = {branch: place for place, branch in enumerate(["base", *self.steps, "fip"])}
        found.sort(key=lambda measurement: order.get(measurement.method, 0))
        listed = []
        for branch in dict.fromkeys(measurement.method for measurement in found):
            method, own = self.shown.get(branch, (branch, {}))
            entries = [entry for entry in found if entry.method == branch]
            listed += [Measurement(method, entry.metric, entry.value, {**(setting or {}), **own}) for entry in entries]
            accuracies = [entry.value for entry in entries if entry.metric.endswith("accuracy")]
            if branch != "base" and accuracies:
                mean = statistics.fmean(accuracies)
                listed.append(Measurement(method, "mean accuracy", mean, {**(setting or {}), **own}))
        return listed


def endpoint_measurements(result: dict[str, Any], setting: dict[str, Any]) -> list[Measurement]:
    """The metrics of each branch's last node; accuracies in per cent."""
    found = []
    for branch, node in result["endpoints"].items():
        for name, value in result["metrics"][node].items():
            if value is not None and not name.endswith("/loss"):
                scale = 100 if name.endswith("accuracy") else 1
                found.append(Measurement(branch, name, scale * value, setting))
    return found
