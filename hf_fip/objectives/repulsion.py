"""Repulsion: away from weights that are known already, in angle or in length."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from .displacement import Displacement, copied, dot
from .schedules import Schedule, get_schedule, schedule_name, segments


KINDS = ("cosine", "distance")
FROM = ("start", "points")
# At the weights it is repelled from, the repulsion has no direction: the path leaves them by a random step of this
# length, in units of each layer's norm.
FIRST_STEP = 1e-3


class Repulsion(Displacement):
    """
    The secondary objective of isofunctional paths: go where the weights are others.

    `"cosine"`: every layer is turned away from its start at an angle that rises from 0 to `angle` along the path,

        L(w) = strength * mean over layers of ½ max(0, cos(w_l, r_l) − cos(angle))²,

    so that the points are evenly spread, the force is no larger than what is missing, and growth, which changes
    no direction, is no way out. `"distance"`: L(w) = −strength * mean over layers of ‖w_l − r_l‖ / ‖r_l‖, which has no
    end and is best served by growth: for comparison.

    The analytic gradient is added to `p.grad`, once an optimizer step and in full precision.

    Args:
        kind (`str`, *optional*, defaults to `"cosine"`): `"cosine"` or `"distance"`.
        points (sequence of `int`): Optimizer steps done at each point of the path.
        strength (`float`, *optional*, defaults to 2.0): Factor of L.
        angle (`float`, *optional*, defaults to 90.0): Angle in degrees of each layer at the end of the path.
        away_from (`str`, *optional*, defaults to `"start"`):
            What is repelled from: the `"start"` of the path, or it and all recorded `"points"` alike, so that every
            point lies at `angle` from the start and from every other one. Keeps a copy of the layers for each.
        ramp (`float`, *optional*, defaults to 0.7): Share of each segment in which the angle rises.
        schedule (`str`, sequence of `float` or `Callable`, *optional*, defaults to `"linear"`):
            How it rises; see [`~hf_fip.objectives.schedules.get_schedule`].
        seed (`int`, *optional*, defaults to 0): Of the first step off the start: other seeds go elsewhere.
        include, exclude (sequence of `str`, *optional*): Which layers; see [`layer_weights`].

    Raises:
        [`InputError`]: values that cannot work; at the start of the path also what does not fit the model.
    """

    name = "repulsion"
    is_objective = True

    def __init__(
        self,
        kind: str = "cosine",
        *,
        points: Sequence[int],
        strength: float = 2.0,
        angle: float = 90.0,
        away_from: str = "start",
        ramp: float = 0.7,
        schedule: Schedule = "linear",
        seed: int = 0,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
    ):
        super().__init__(include=include, exclude=exclude)
        for name, value, known in (("repulsion", kind, KINDS), ("away_from", away_from, FROM)):
            if value not in known:
                raise InputError(f"{name}={value!r} is unknown; choose one of: {', '.join(known)}")
        if not 0 < strength < math.inf:
            raise InputError(f"strength={strength!r} of the repulsion has to be above 0, and finite")
        if not 0 < angle < 180:
            raise InputError(f"angle={angle!r} has to lie between 0 and 180 degrees; 90 is as unlike as weights get")
        if not 0 <= ramp <= 1:
            raise InputError(f"ramp={ramp!r} has to be a share of the segment, from 0 to 1")
        self.kind, self.strength, self.angle, self.away_from = kind, strength, angle, away_from
        self.seed = seed
        self.schedule = get_schedule(schedule)
        # In units of `angle`: from the start it rises along the whole path, from all points in each segment anew.
        self._segments = segments([(i + 1) / len(points) for i in range(len(points))], points, start=0.0, ramp=ramp)
        if away_from == "points":
            self._segments = [replace(segment, start=0.0, target=1.0) for segment in self._segments]
        self._settings = {"strength": strength, "angle": angle, "away_from": away_from, "ramp": ramp}
        self._settings["schedule"] = schedule_name(schedule)
        self._step = 0
        # The weights that are repelled from, by layer; those of the start come first.
        self.references: list[dict[str, Tensor]] = []

    # ---- Along the path ----------------------------------------------------------------------------------------

    def begin_segment(self, model: nn.Module) -> None:
        if not self.trained:
            super().begin_segment(model)
            # A resumed path has its points already; the start comes before them.
            self.references.insert(0, {name: self._start[id(p)] for name, p in self.layers.items()})
        elif self.away_from == "points" and self._step < self._segments[-1].end:
            self.references.append({name: copied(p) for name, p in self.layers.items()})

    def _goal(self, reference: int) -> float:
        """The largest cosine that the layers may have with a reference after the step that is being made."""
        step = self._step + 1
        if self.away_from == "points":
            segment = self._segments[reference]
        else:
            segment = next((s for s in self._segments if step <= s.end), self._segments[-1])
        return math.cos(math.radians(self.angle * segment.level(step, self.schedule)))

    @torch.no_grad()
    def add_gradient_(self, parameters: list[nn.Parameter]) -> None:
        for weight in self.layers.values():
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight)
        gradients = [weight.grad for weight in self.layers.values()]
        weights = [weight.detach().float() for weight in self.layers.values()]
        push = self._push_in_angle if self.kind == "cosine" else self._push_in_length
        push(gradients, weights)

    def _push_in_angle(self, gradients: list[Tensor], weights: list[Tensor]) -> None:
        norms = _norms(weights)
        along_weights = torch.zeros_like(norms)
        for index, reference in enumerate(self._reference_lists()):
            scale = norms * _norms(reference)
            cosines = torch.stack([dot(w, r) for w, r in zip(weights, reference, strict=True)]) / scale
            force = self.strength / len(weights) * (cosines - self._goal(index)).clamp(min=0)
            # ∂cos/∂w = r / (‖w‖ ‖r‖) − cos w / ‖w‖²
            torch._foreach_addcmul_(gradients, reference, list((force / scale).unbind()))
            along_weights -= force * cosines / norms.square()
        torch._foreach_addcmul_(gradients, weights, list(along_weights.unbind()))

    def _push_in_length(self, gradients: list[Tensor], weights: list[Tensor]) -> None:
        for reference in self._reference_lists():
            apart, scale = torch._foreach_sub(weights, reference), _norms(reference)
            # At the reference itself the length has no gradient.
            lengths = torch.maximum(_norms(apart), FIRST_STEP / 1000 * scale)
            force = -self.strength / len(weights) / (lengths * scale)
            torch._foreach_addcmul_(gradients, apart, list(force.unbind()))

    def _reference_lists(self) -> list[list[Tensor]]:
        return [[reference[name] for name in self.layers] for reference in self.references]

    def move_weights_(self, parameters: list[nn.Parameter], step: int) -> None:
        leaves = step == 1 or (self.away_from == "points" and any(step == s.begin + 1 for s in self._segments))
        self._step = step
        if leaves:
            self._leave(step)

    def _leave(self, step: int) -> None:
        weights = list(self.layers.values())
        # On the CPU, so that the path is the same on every device.
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        for weight, norm in zip(weights, torch._foreach_norm([w.detach() for w in weights]), strict=True):
            noise = torch.randn(weight.shape, generator=generator).to(weight)
            weight.add_(noise * (FIRST_STEP * norm / noise.norm()))

    # ---- What is said of it ------------------------------------------------------------------------------------

    def report(self) -> dict[str, Any]:
        """The node's `displacement` and `repulsion` records."""
        displacement = super().report()
        return displacement and {**displacement, "repulsion": {"kind": self.kind, **self._settings}}

    @torch.no_grad()
    def logs(self) -> dict[str, float | Tensor]:
        goal = {"cosine_asked": self._goal(0)} if self.kind == "cosine" else {}
        return {**super().logs(), **goal}

    def state_dict(self) -> dict[str, Any]:
        later = enumerate(self.references[1:], start=1)
        points = {f"point/{number}/{name}": w for number, weights in later for name, w in weights.items()}
        return {"step": self._step, "points": len(self.references) - 1, **points}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._step = state["step"]
        self.references = []
        for number in range(1, state["points"] + 1):
            prefix = f"point/{number}/"
            saved = {key.removeprefix(prefix): w for key, w in state.items() if key.startswith(prefix)}
            # Tensors in a mapped file are aligned otherwise, by which the last bit of an inner product may differ.
            self.references.append({name: weight.clone() for name, weight in saved.items()})


def _norms(weights: list[Tensor]) -> Tensor:
    """Norm of each, `[layers]`; never zero."""
    return torch.stack(torch._foreach_norm(weights)).clamp(min=torch.finfo(torch.float32).tiny)
