"""The pull towards a sparse, structured or quantised network: the secondary objective of compression."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..terms import Term
from .codes import CODES, Code, Masks
from .projections import Projection
from .prunable import pattern_list, prunable_weights
from .schedules import Schedule, Segment, get_schedule, schedule_name, segments
from .scores import Magnitude


# By how much the last target may be missed without a look at how far the projection can go.
ENOUGH = 1e-3


class Pull(Term):
    """
    L(w) = ½ ‖w − proj_p(w)‖² of the paper's compression (eq. 4), while p rises; then its set is entered, and held.

    Before each path point the level p rises to the point's target (the *ramp*); proj_p is taken anew every `refresh`
    steps, so a weight that comes back may be kept after all. At the end of the ramp the weights are projected, and
    from there to the point the code (where the zeros are) is fixed: the recorded network lies exactly in the set.

    The analytic gradient w − proj_p(w) is followed beside the optimizer, as AdamW's decay is: Adam would divide it by
    the size of the loss's gradients.

    Args:
        projection (`Projection`): On which set.
        targets (sequence of `float`): Level of each point; from 0 to below 1 for sets of zeros.
        points (sequence of `int`): Optimizer steps done at each point.
        schedule (`str`, sequence of `float` or `Callable`, *optional*, defaults to `"cubic"`):
            How the level rises; see [`~hf_fip.objectives.schedules.get_schedule`].
        ramp (`float`, *optional*, defaults to 0.7): Share of each segment in which it rises.
        strength (`float`, *optional*, defaults to 0.3):
            Share of the way to the projection that the weights go in each step (at most 1: hard pruning); with
            `decoupled=False` the factor of the gradient.
        decoupled (`bool`, *optional*, defaults to `True`):
            Follow the gradient beside the optimizer instead of adding it to `p.grad`.
        refresh (`int`, *optional*, defaults to 5): Optimizer steps between two projections.
        score ([`Magnitude`], *optional*): What losing a weight costs.
        include, exclude (sequence of `str`, *optional*): See [`~hf_fip.objectives.prunable.prunable_weights`].

    Raises:
        [`InputError`]: values that cannot work; at the start of the path also what does not fit the model.
    """

    name = "pull"
    is_objective = True
    uses_anchors = False

    def __init__(
        self,
        projection: Projection,
        targets: Sequence[float],
        points: Sequence[int],
        *,
        schedule: Schedule = "cubic",
        ramp: float = 0.7,
        strength: float = 0.3,
        decoupled: bool = True,
        refresh: int = 5,
        score: Magnitude | None = None,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
    ):
        if not _is_number(ramp) or not 0 <= ramp <= 1:
            raise InputError(f"ramp={ramp!r} has to be a share of the segment, from 0 to 1")
        if not _is_number(strength) or not strength > 0 or (decoupled and strength > 1):
            limit = " and at most 1" if decoupled else ""
            raise InputError(f"strength={strength!r} has to be a number above 0{limit}")
        if not isinstance(refresh, int) or refresh < 1:
            raise InputError(f"refresh={refresh!r} has to be a whole number of optimizer steps, at least 1")
        self.projection = projection
        self.targets = list(targets)
        self.points = list(points)
        self.schedule = get_schedule(schedule)
        self.ramp = ramp
        self.strength = strength
        self.decoupled = decoupled
        self.refresh = refresh
        self.score = score or Magnitude()
        self.include = pattern_list("include", include)
        self.exclude = pattern_list("exclude", exclude)
        self.weights: dict[str, nn.Parameter] = {}
        self.code: Code | None = None
        self.frozen = False
        self._segments: list[Segment] = []
        self._step = 0
        self._settings = {
            "projection": projection.to_dict(),
            "score": self.score.name,
            "schedule": schedule_name(schedule),
            "ramp": ramp,
            "strength": strength,
            "decoupled": decoupled,
            "refresh": refresh,
            "include": self.include,
            "exclude": self.exclude,
        }

    # ---- Along the path ----------------------------------------------------------------------------------------

    def begin_segment(self, model: nn.Module) -> None:
        if self.weights:
            self.frozen = False
            return
        weights = prunable_weights(model, self.include, self.exclude)
        self.projection = self.projection.for_model(model, list(weights))
        goal = self.projection.code(weights, self.targets[-1])
        self.weights = {name: weights[name] for name in goal.names()}
        zeros = self._zeros() if self.projection.name == "unstructured" else 0.0
        if not self.weights or self.targets[0] <= zeros > 0 or not goal.distance(self.weights) > 0:
            raise InputError(
                "nothing is left to compress: the network is in the target set already (asked for "
                f"{self.targets[0]:g}, {self._zeros():.4g} of its weights are zero); ask for more"
            )
        if self.projection.name == "structured":
            self._check_reach(goal)
        if self.code is not None:
            self.code.check(self.weights)
        self._segments = segments(self.targets, self.points, start=zeros, ramp=self.ramp)
        self.score.begin(self.weights)

    def _check_reach(self, goal: Masks) -> None:
        """Whether there are so many units to lose, of which each layer keeps one."""
        target = self.targets[-1]
        if goal.share() > target - ENOUGH:
            return
        most = self.projection.code(self.weights, 1.0).share()
        if most <= goal.share():
            raise InputError(
                f"sparsity={target:g} is out of reach: projection 'structured' leaves each layer a unit, so that at "
                f"most {most:.4g} of its weights become zero; ask for less"
            )

    def _zeros(self) -> float:
        size = sum(weight.numel() for weight in self.weights.values())
        nonzero = sum(int(torch.count_nonzero(weight.detach())) for weight in self.weights.values())
        return 1 - nonzero / max(1, size)

    def _segment(self) -> Segment:
        return next((s for s in self._segments if self._step <= s.end), self._segments[-1])

    def _level(self) -> float:
        return self._segment().level(self._step, self.schedule)

    def _project(self) -> Code:
        return self.projection.code(self.weights, self._level(), self.score.values(self.weights))

    @torch.no_grad()
    def add_gradient_(self, parameters: list[nn.Parameter]) -> None:
        if self.frozen:
            return
        if self.score.needs_gradients:
            self.score.observe(self.weights)
        if self.code is not None and not self.decoupled:
            for weight in self.weights.values():
                if weight.grad is None:
                    weight.grad = torch.zeros_like(weight)
            gradients = {name: weight.grad for name, weight in self.weights.items()}
            self.code.add_gradient_(gradients, self.weights, self.strength)

    def move_weights_(self, parameters: list[nn.Parameter], step: int) -> None:
        self._step = step
        segment = self._segment()
        if step >= segment.freeze:
            if not self.frozen:
                self.code, self.frozen = self._project(), True
            return
        if self.code is None or (step - segment.begin - 1) % self.refresh == 0:
            self.code = self._project()
        if self.decoupled:
            self.code.pull_(self.weights, self.strength)

    def constrain_weights_(self, parameters: list[nn.Parameter]) -> None:
        if self.frozen:
            self.code.pull_(self.weights, 1.0)

    def end_segment(self, model: nn.Module) -> None:
        # A run may be stopped within a ramp: its end lies in the set too, at the level reached.
        if not self.frozen:
            self.code, self.frozen = self._project(), True
        self.constrain_weights_([])

    # ---- What is said of it ------------------------------------------------------------------------------------

    def report(self) -> dict[str, Any]:
        """The node's `compression` record; sparsity counts the weights the projection may change."""
        if not self.frozen:
            return {}
        over = {"weights": sum(weight.numel() for weight in self.weights.values()), "tensors": len(self.weights)}
        reached = {"target": self._level(), "sparsity": self._zeros(), "over": over, **self.code.record()}
        return {"compression": {**self._settings, **reached}}

    @torch.no_grad()
    def logs(self) -> dict[str, float | Tensor]:
        if self.code is None:
            return {}
        return {"pull": self.code.distance(self.weights).square() / 2, "level": self._level()}

    def state_dict(self) -> dict[str, Any]:
        state = {"step": self._step, "frozen": self.frozen, "code": None if self.code is None else self.code.kind}
        if self.code is not None:
            state |= {f"code/{name}": tensor for name, tensor in self.code.tensors().items()}
        return state | {f"score/{name}": tensor for name, tensor in self.score.tensors().items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._step, self.frozen = state["step"], state["frozen"]
        parts: dict[str, dict[str, Tensor]] = {"code/": {}, "score/": {}}
        for key, tensor in state.items():
            for prefix, part in parts.items():
                if key.startswith(prefix):
                    part[key.removeprefix(prefix)] = tensor
        self.code = None if state["code"] is None else CODES[state["code"]].from_tensors(parts["code/"])
        self.score.load(parts["score/"])


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
