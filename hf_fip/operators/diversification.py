"""The operator Diversification: networks that compute the same with other weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..errors import InputError
from ..functional.budget import Budget
from ..objectives import Displacement, Repulsion
from ..objectives.keep_zeros import kept_zeros
from ..objectives.random_steps import RandomSteps
from ..objectives.schedules import Schedule, schedule_name
from ..task_data import HELD_OUT
from ..trainer import FIPTrainer
from .path_operator import PathOperator, Start, check_held_out
from .travel import SegmentedTrainer, evenly_spaced, training_arguments


class Diversification(PathOperator):
    """
    The paper's isofunctional paths: from a network to others whose outputs on samples of *all* its tasks are the same
    and whose weights are not. Nothing is learned (L = 0, or a repulsion of the weights), no label is used. Every point
    is a complete model, for ensembles, for pictures of the set of equal functions, or as a start for other operators.

    Batch norms keep their running statistics, dropout is off: the networks are compared in the mode they are used in.

    Args:
        repulsion (`str`, *optional*, defaults to `"cosine"`):
            What drives the path: `"cosine"` turns every layer away from its start, to `angle`; `"distance"` moves the
            weights away, mostly by growth; `None` is L = 0, where nothing but the optimizer's noise does, or a
            `random_step`.
        random_step (`float`, *optional*):
            With `repulsion=None`: every segment begins with a random step of this length, a share of each layer's
            norm, and its other steps bring the outputs back; see [`~hf_fip.objectives.random_steps.RandomSteps`]. A
            repulsion goes far in directions that change little and leaves the points sensitive to attacked inputs;
            random steps do not choose, and the points have to find the function again: for ensembles.
        path_points (`int`, *optional*, defaults to 5): Number of points, evenly spread along the path.
        steps (`int`, *optional*, defaults to 1000): Optimizer steps of the whole path.
        strength, angle, away_from, ramp, schedule (*optional*):
            As in [`~hf_fip.objectives.Repulsion`]: at `away_from="points"` every point is repelled from the start and
            from all points before it, which makes the members of an ensemble, and wants more steps.
        include, exclude (sequence of `str`, *optional*):
            Patterns of names of weights to turn besides, and to leave alone besides. Matrices and filters are turned;
            embeddings, biases and norms are not by default, though they may move.
        keep_zeros (`bool`, *optional*, defaults to `True`): Zeros of a compressed node stay zero.
        anchors (`int`, *optional*, defaults to 5000):
            Number of training inputs of the tasks, split evenly between them, on which the function is kept.
        anchor_shift (`int`, *optional*, defaults to 0):
            Images: keep the function on copies of each anchor too, shifted by up to so many pixels.
        anchor_mix (`int`, *optional*, defaults to 0):
            Images: keep the function on so many mixtures of each anchor with others too; see
            [`~hf_fip.data.augment.mixed_copies`].
        held_out (`int`, *optional*, defaults to 1000):
            Number of test inputs of each of the node's tasks on which budgets are certified.
        functional_distance, distance_temperature, beta, distance_budget, disagreement_budget, anchor_batch_size:
            As in [`FIPConfig`]; beta is 1 by default. A budget is met at each point, and certified on held-out inputs.
        branch (`str`, *optional*, defaults to `"diverse"`): Name of the path in the graph.
        training (`dict`, *optional*): Further [`FIPConfig`] fields; `batch_size` is short for the Trainer's long name.
        seed (`int`, *optional*, defaults to 0): Seed of anchors, their order, and the direction of the path.
        data_root (`str`, *optional*): Local folder with the data sets, instead of the Hub.
        max_length (`int`, *optional*): Tokens kept of a text.

    Raises:
        [`InputError`]: for arguments that cannot work, or do not fit the node's model.

    Example:

    ```python
    path = Diversification(path_points=5, disagreement_budget=0.005)(graph["base"])
    [node.protocol["displacement"]["cosine"] for node in path]
    small = (Compression(0.9) @ Diversification())(graph["base"]).end
    ensemble = Ensemble.from_nodes(Diversification(repulsion=None, random_step=0.6, path_points=10)(graph["base"]))
    ```
    """

    def __init__(
        self,
        *,
        repulsion: str | None = "cosine",
        random_step: float | None = None,
        path_points: int = 5,
        steps: int = 1000,
        strength: float | None = None,
        angle: float | None = None,
        away_from: str | None = None,
        ramp: float | None = None,
        schedule: Schedule | None = None,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        keep_zeros: bool = True,
        anchors: int = 5000,
        anchor_shift: int = 0,
        anchor_mix: int = 0,
        held_out: int = HELD_OUT,
        functional_distance: str = "l2",
        distance_temperature: float | None = None,
        beta: float | None = None,
        distance_budget: float | None = None,
        disagreement_budget: float | None = None,
        anchor_batch_size: int | None = None,
        branch: str = "diverse",
        training: dict[str, Any] | None = None,
        seed: int = 0,
        data_root: str | None = None,
        max_length: int | None = None,
    ):
        for name, value in (("path_points", path_points), ("steps", steps)):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise InputError(f"{name}={value!r} has to be a whole number, at least 1")
        if anchors < 2:
            raise InputError(f"anchors={anchors} are too few to keep a function on; give at least 2, better thousands")
        check_held_out(held_out)
        Budget(distance_budget, disagreement_budget)
        options = {"strength": strength, "angle": angle, "away_from": away_from, "ramp": ramp, "schedule": schedule}
        self.repelling = {name: value for name, value in options.items() if value is not None}
        if repulsion is None and self.repelling:
            raise InputError(f"repulsion=None repels nothing; leave {', '.join(self.repelling)} out, or name one")
        turning = [name for name in ("angle", "ramp", "schedule") if name in self.repelling]
        if repulsion == "distance" and turning:
            raise InputError(f"repulsion='distance' knows no {', '.join(turning)}: leave it out, or use 'cosine'")
        if repulsion is not None and random_step is not None:
            raise InputError(f"random_step={random_step!r} takes the place of a repulsion: give repulsion=None too")
        self.repulsion, self.random_step = repulsion, random_step
        self.data_root = data_root
        self.branch = branch
        self.layers = {"include": list(include), "exclude": list(exclude)}
        self.points = evenly_spaced(steps, path_points)
        arguments = {
            **training_arguments(training),
            "functional_distance": functional_distance,
            "distance_temperature": distance_temperature,
            "beta": 1.0 if beta is None else beta,
            "distance_budget": distance_budget,
            "disagreement_budget": disagreement_budget,
            "anchor_batch_size": anchor_batch_size,
            "path_points": path_points,
            "max_steps": steps,
        }
        self.arguments = {name: value for name, value in arguments.items() if value is not None}
        described = {**self.repelling, "schedule": schedule_name(schedule)} if schedule is not None else self.repelling
        self.parameters = {
            "repulsion": repulsion,
            **({} if random_step is None else {"random_step": random_step}),
            **described,
            **self.layers,
            "keep_zeros": keep_zeros,
            "anchors": anchors,
            "anchor_shift": anchor_shift,
            "anchor_mix": anchor_mix,
            "held_out": held_out,
            "seed": seed,
            "max_length": max_length,
            **self.arguments,
        }
        self._displacement(seed)

    def _trainer(self, start: Start) -> FIPTrainer:
        moving = self._displacement(self.parameters["seed"])
        kept = kept_zeros(start.node, self.parameters["keep_zeros"])
        random_step = self.random_step
        driven = f"repulsion: {self.repulsion}" if random_step is None else f"random steps of {random_step:g}"
        protocol = {"method": f"isofunctional path, {driven}", "training_labels_used": False}
        trainer = SegmentedTrainer(
            **self._shared(start, protocol, points=tuple(self.points)),
            objective=moving if moving.is_objective else None,
            terms=kept if moving.is_objective else [moving, *kept],
        )
        trainer.falls_along_segments = "lr_scheduler_type" not in self.arguments
        return trainer

    def _displacement(self, seed: int) -> Displacement:
        if self.random_step is not None:
            return RandomSteps(self.random_step, points=self.points, seed=seed, **self.layers)
        if self.repulsion is None:
            return Displacement(**self.layers)
        return Repulsion(self.repulsion, points=self.points, seed=seed, **self.repelling, **self.layers)
