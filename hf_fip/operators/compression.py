"""The operator Co: a network becomes sparse, structured or quantised while its outputs hardly change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from datasets import concatenate_datasets

from ..baselines.compression import get_compression_method
from ..errors import InputError
from ..forward import function_mode_, logits_of
from ..functional.budget import Budget
from ..objectives import Pull, TaskLoss, get_projection
from ..objectives.keep_zeros import kept_zeros
from ..objectives.projections import Projection
from ..objectives.prunable import pattern_list
from ..objectives.schedules import Schedule, schedule_name
from ..objectives.scores import get_score, metric_diagonal
from ..task_data import HELD_OUT
from ..trainer import FIPTrainer
from .path_operator import PathOperator, Start, check_held_out
from .travel import SegmentedTrainer, evenly_spaced, training_arguments


# Never far from the best on LeNet at 99.4 % zeros: 4 gained 0.1 points over it where the network had learned its data
# by heart, and lost 0.4 to 1 where it had not; 1 lost 0.4 where it had, and gained up to 0.3 where it had not.
TEMPERATURE = 2.0
# On LeNet at 99 % zeros it keeps 0.6 points more than magnitudes, in BERT's masked words it is ahead from 60 % on.
SCORE = "fisher"
# Batches of anchors from which the metric's diagonal is estimated.
DIAGONAL_BATCHES = 64


class Compression(PathOperator):
    """
    The paper's operator Co: from a network to a sparse (structured, quantised) one, along a path on which the outputs
    on samples of *all* its tasks hardly change. No label is needed. Every recorded point lies exactly in its set:
    zeros are zeros.

    Args:
        sparsity (`float` or sequence of `float`, *optional*):
            Share of zeros among the weights that may be pruned, from 0 to below 1; several, which rise, give one path
            with a point at each. Projections that prescribe it themselves (2:4, int8) need none.
        projection (`str`, `dict` or [`Projection`], *optional*, defaults to `"unstructured"`):
            The target set: `"unstructured"`, `"2:4"` (any n:m), `"block"`, `"structured"`, `"int8"`, `"int4"`,
            `"low_rank"`, or one you registered; a dictionary gives its `name` and parameters. Nodes of `"structured"`
            have really lost their heads, neurons and filters, unless `training` gives another `sparse_format`.
        method (`str`, *optional*, defaults to `"fip"`):
            How: the functionally invariant path, or a baseline of [`COMPRESSION_METHODS`] in the same trainer.
        steps (`int` or sequence of `int`, *optional*, defaults to 2000):
            Optimizer steps of the whole path, or of each of its segments.
        schedule (`str`, sequence of `float` or `Callable`, *optional*):
            How the level rises to each target: `"cubic"` (default), `"linear"`, `"constant"` (one target), shares, or
            a function of the share of the ramp that is done.
        ramp, strength, decoupled, refresh (*optional*): As in [`~hf_fip.objectives.Pull`].
        score (`str`, *optional*): Which weights go first: those of least `"magnitude"`, `"saliency"`, `"fisher"` or
            `"second_order"`; see [`~hf_fip.objectives.scores`]. By default `"fisher"` for single weights along the
            invariant path, otherwise the method's own, mostly `"magnitude"`.
        include, exclude (sequence of `str`, *optional*):
            Patterns of weight names to prune besides, and to leave alone besides. Biases, norms, embeddings and heads
            are left alone by default.
        labels (`bool`, *optional*, defaults to `False`): Train on the tasks' labelled training data too.
        keep_zeros (`bool`, *optional*, defaults to `True`): Zeros that the node has already stay zero.
        anchors (`int`, *optional*, defaults to 20000):
            Number of training inputs of the tasks, split evenly between them, on which the function is kept.
        anchor_shift (`int`, *optional*, defaults to 0):
            Images: keep the function on copies of each anchor too, shifted by up to so many pixels.
        anchor_mix (`int`, *optional*, defaults to 0):
            Images: keep the function on so many mixtures of each anchor with others too; see
            [`~hf_fip.data.augment.mixed_copies`].
        held_out (`int`, *optional*, defaults to 1000):
            Number of test inputs of each of the node's tasks on which budgets are certified.
        functional_distance, distance_temperature, beta, distance_budget, disagreement_budget, anchor_batch_size:
            As in [`FIPConfig`], where they may stand in `training` too; the distance is `"kl"` at temperature 2 by
            default, beta (which only matters beside labels) 1.
        branch (`str`, *optional*): Name of the path in the graph; defaults to `"sparse"`, or the method's name.
        training (`dict`, *optional*):
            Further [`FIPConfig`] fields; `batch_size` is short for the Trainer's long name. `max_steps` and
            `path_points` are those of `steps` and `sparsity`, whatever it says.
        seed (`int`, *optional*, defaults to 0): Seed of anchors and order of the data.
        data_root (`str`, *optional*): Local folder with the data sets, instead of the Hub.
        max_length (`int`, *optional*): Tokens kept of a text.

    Raises:
        [`InputError`]: for arguments that cannot work, or do not fit the node's model.

    Example:

    ```python
    path = Compression(sparsity=[0.5, 0.8, 0.9], disagreement_budget=0.02)(graph["base"])
    [(node.sparsity, node.metrics) for node in path]
    ```
    """

    def __init__(
        self,
        sparsity: float | Sequence[float] | None = None,
        *,
        projection: str | Mapping[str, Any] | Projection = "unstructured",
        method: str = "fip",
        steps: int | Sequence[int] = 2000,
        schedule: Schedule | None = None,
        ramp: float | None = None,
        strength: float | None = None,
        decoupled: bool = True,
        refresh: int = 5,
        score: str | None = None,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        labels: bool = False,
        keep_zeros: bool = True,
        anchors: int = 20000,
        anchor_shift: int = 0,
        anchor_mix: int = 0,
        held_out: int = HELD_OUT,
        functional_distance: str | None = None,
        distance_temperature: float | None = None,
        beta: float | None = None,
        distance_budget: float | None = None,
        disagreement_budget: float | None = None,
        anchor_batch_size: int | None = None,
        branch: str | None = None,
        training: dict[str, Any] | None = None,
        seed: int = 0,
        data_root: str | None = None,
        max_length: int | None = None,
    ):
        self.method = get_compression_method(method)
        self.projection = get_projection(projection)
        self.targets = _targets(sparsity, self.projection)
        self.points = _points(steps, len(self.targets))
        if anchors < 2:
            raise InputError(f"anchors={anchors} are too few to keep a function on; give at least 2, better thousands")
        check_held_out(held_out)
        given = {
            "functional_distance": functional_distance,
            "distance_temperature": distance_temperature,
            "beta": beta,
            "distance_budget": distance_budget,
            "disagreement_budget": disagreement_budget,
            "anchor_batch_size": anchor_batch_size,
        }
        self.arguments = self._arguments(training_arguments(training), given)
        if _budget(self.arguments) and not self.method.preserve:
            raise InputError(f"method={method!r} keeps no function, so it can hold no budget; leave the budget out")
        self.data_root = data_root
        self.branch = branch or ("sparse" if method == "fip" else method)
        self.labels = labels or self.method.uses_labels
        self.schedule = schedule
        if score is None and method == "fip" and self.projection.name == "unstructured":
            score = SCORE
        pulling = {"schedule": schedule, "ramp": ramp, "strength": strength, "score": score}
        self.pulling = {
            **self.method.pulling,
            **{name: value for name, value in pulling.items() if value is not None},
            "decoupled": decoupled,
            "refresh": refresh,
            "include": pattern_list("include", include),
            "exclude": pattern_list("exclude", exclude),
        }
        self._pull(None)
        self.parameters = {
            "sparsity": self.targets,
            "projection": self.projection.to_dict(),
            "method": method,
            "points": self.points,
            **self.pulling,
            "schedule": schedule_name(self.pulling["schedule"]),
            "labels": self.labels,
            "keep_zeros": keep_zeros,
            "anchors": anchors,
            "anchor_shift": anchor_shift,
            "anchor_mix": anchor_mix,
            "held_out": held_out,
            "seed": seed,
            "max_length": max_length,
            **self.arguments,
        }

    def _arguments(self, training: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
        """[`FIPConfig`] fields: those given go before those of `training`, these before the operator's defaults."""
        chosen = {"functional_distance": "kl", **training} | {k: v for k, v in given.items() if v is not None}
        defaults = {
            "sparse_format": "structured" if self.projection.name == "structured" else None,
            "distance_temperature": TEMPERATURE if chosen["functional_distance"] == "kl" else None,
            "beta": None if _budget(chosen) else 1.0,
        }
        arguments = {**defaults, **chosen, "path_points": len(self.targets), "max_steps": self.points[-1]}
        return {name: value for name, value in arguments.items() if value is not None}

    def _trainer(self, start: Start) -> FIPTrainer:
        train = None
        if self.labels:
            train = [start.data.features(task, start.spaces[task.name], "train") for task in start.tasks]
            train = concatenate_datasets(train).shuffle(seed=self.parameters["seed"])
        pull = self._pull(lambda: _diagonal(trainer))
        protocol = {"method": self.method.summary, "training_labels_used": self.labels}
        trainer = SegmentedTrainer(
            **self._shared(start, protocol, points=tuple(self.points)),
            train_dataset=train,
            objective=[TaskLoss(), pull] if self.labels else pull,
            terms=kept_zeros(start.node, self.parameters["keep_zeros"]),
            preserve=self.method.preserve,
        )
        trainer.falls_along_segments = "lr_scheduler_type" not in self.arguments
        return trainer

    def _pull(self, diagonal) -> Pull:
        options = dict(self.pulling)
        score = get_score(options.pop("score"), diagonal or dict)
        return self.method.pull(self.projection, self.targets, self.points, score=score, **options)


def _targets(sparsity: float | Sequence[float] | None, projection: Projection) -> list[float]:
    if projection.target is not None:
        targets = [projection.target] if sparsity is None else _listed(sparsity)
        if targets != [projection.target]:
            raise InputError(
                f"sparsity={sparsity!r}: projection {projection.to_dict()} prescribes {projection.target:g}; leave "
                "sparsity out"
            )
        return targets
    if sparsity is None:
        raise InputError(f"sparsity=None: projection {projection.name!r} needs the share of zeros, from 0 to below 1")
    targets = _listed(sparsity)
    if not targets or not all(isinstance(t, (int, float)) and not isinstance(t, bool) and 0 <= t < 1 for t in targets):
        raise InputError(f"sparsity={sparsity!r}: shares of zeros are numbers from 0 to below 1, 0.9 for 90 %")
    if targets != sorted(set(targets)):
        raise InputError(
            f"sparsity={sparsity!r}: along one path the shares have to rise; sort them, or make several paths"
        )
    return targets


def _points(steps: int | Sequence[int], number: int) -> list[int]:
    given = _listed(steps)
    if not all(isinstance(count, int) and count > 0 for count in given):
        raise InputError(f"steps={steps!r}: give a whole number of optimizer steps, at least 1")
    if len(given) == 1:
        return evenly_spaced(given[0], number)
    if len(given) != number:
        raise InputError(
            f"steps={steps!r} has {len(given)} segments for {number} values of sparsity; give one for each"
        )
    return [sum(given[: i + 1]) for i in range(number)]


def _budget(arguments: Mapping[str, Any]) -> Budget:
    return Budget(arguments.get("distance_budget"), arguments.get("disagreement_budget"))


def _listed(value) -> list:
    return list(value) if isinstance(value, Sequence) else [value]


def _diagonal(trainer: FIPTrainer) -> dict[str, torch.Tensor]:
    """The metric's diagonal on anchors, at the network the trainer holds now."""
    preservation = trainer.preservation
    size = preservation.anchors_per_step

    def outputs_of(number: int) -> torch.Tensor | None:
        first = number * size
        if number >= DIAGONAL_BATCHES or first >= len(preservation.anchors):
            return None
        indices = range(first, min(first + size, len(preservation.anchors)))
        logits = logits_of(trainer.unwrapped(**trainer.to_device(preservation.anchors.inputs(indices))))
        return preservation.anchors.select(logits, indices)[0]

    probabilities = preservation.distance.distance.compares == "probabilities"
    with torch.random.fork_rng(), torch.enable_grad():
        function_mode_(trainer.unwrapped)
        return metric_diagonal(trainer.unwrapped, outputs_of, probabilities=probabilities, seed=trainer.data_seed)
