"""
`solver="trust_region"`: eq. 4 solved exactly, in every optimizer step.

The optimizer on L + D / beta, the default, travels much farther at equal time and at equal numbers of samples
(docs/measurements.md): a step here costs some twenty forward-backward passes over its anchors, and few products
resolve the stiff directions of the metric only. It is for small faithful moves, for analysis, and to verify what the
optimizer does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from .errors import InputError
from .forward import OutputKind
from .functional.anchors import IGNORED_LABEL, Anchors
from .functional.distances import Distance
from .geometry import MetricTensor
from .geometry.correction import conjugate_gradients
from .geometry.metric_tensor import METRICS
from .geometry.steps import ExactStep, fip_step, isofunctional_step
from .preservation import RESTORATION_STREAM, Preservation
from .terms import OutputBatch, Term


if TYPE_CHECKING:
    from .trainer import FIPTrainer

# Of a step, and of the way back into a budget: as many as cost less than 30 forward-backward passes.
STEP_PRODUCTS = 14
RESTORATION_PRODUCTS = 8
RESTORATION_HALVINGS = 6
TOLERANCE = 1e-4
# Of walks with L = 0: a step of unit length may change the outputs so much, relative to the stiffest one.
FLATNESS = 1e-5
# Where the loss does not say which flat direction to take, how much of the last one is kept: fresh directions at every
# step make a random walk, which stays near where it began.
PERSISTENCE = 0.9


class DistanceMetric:
    """
    The metric of a trainer's functional distance D on some anchors: `D(w + theta) - D(w)` is `theta^T g theta` and the
    linear part, to second order in the outputs (Gauss-Newton). It is `J^T J / N` for `l2` and half the Fisher
    information for `kl`, in the unit in which D is logged.

    Args:
        jacobian ([`MetricTensor`]): the metric `"l2"` on these anchors, for its products with J.
        distance (`Distance`): `l2` or `kl`.
        unit (`float`): D is the distance divided by it.
        number (`int`): of anchors.
        examples (`torch.Tensor`, *optional*):
            For rows that are scored positions: the anchor of each, `[rows]`. D is a mean over anchors, each of them
            a mean over its positions.
    """

    def __init__(
        self,
        jacobian: MetricTensor,
        distance: Distance,
        unit: float,
        *,
        number: int,
        examples: Tensor | None = None,
    ):
        self.jacobian = jacobian
        self.shape, self.dtype, self.device = jacobian.shape, jacobian.dtype, jacobian.device
        self._distance = distance
        self._unit = unit
        self._rows: Tensor | None = None
        if examples is not None:
            positions = torch.bincount(examples)
            self._rows = (len(examples) / number / positions[examples]).to(self.device, self.dtype).unsqueeze(1)

    def jvp(self, vectors: Tensor) -> Tensor:
        """`J v`."""
        return self.jacobian.jvp(vectors)

    def vjp(self, changes: Tensor) -> Tensor:
        """`J^T u`."""
        return self.jacobian.vjp(changes)

    def weighting(self, changes: Tensor) -> Tensor:
        """`H u`."""
        if self._distance.name == "kl":
            temperature = self._distance.parameters["temperature"]
            changes = METRICS["fisher"].weight(self.jacobian.outputs / temperature, changes) / 2
        return (changes if self._rows is None else changes * self._rows) / self._unit

    def __matmul__(self, vector: Tensor) -> Tensor:
        return self.vjp(self.weighting(self.jvp(vector))) / self.jacobian.num_rows


class TrustRegion(Term):
    """
    Replaces the gradient by the step of eq. 4, to which plain gradient descent then does nothing but add it: the
    gradient handed on is `-theta / epsilon`, and the learning rate is epsilon.

    The gradient that comes in, of L + D / beta, holds the drift term: `theta^T g theta + beta theta^T grad(L + D /
    beta)` is what L and the distance to the reference outputs become, to second order in the outputs.

    Args:
        metric (`Callable[[], DistanceMetric]`): the metric on the anchors of the step.
        radius (`Callable[[], float]`): epsilon, the length of the step.
        beta (`float`): weight of L.
        seed (`Callable[[], int]`): of the step's random direction; equal on all processes.
        walks (`bool`, *optional*, defaults to `False`):
            Whether L = 0: the step then goes back along the stiff directions, and on along the flat ones (eq. 3).
        max_products (`int`, *optional*, defaults to 14): most products with the metric.
    """

    name = "trust_region"
    uses_anchors = False

    def __init__(
        self,
        metric: Callable[[], DistanceMetric],
        radius: Callable[[], float],
        *,
        beta: float,
        seed: Callable[[], int],
        walks: bool = False,
        max_products: int = STEP_PRODUCTS,
    ):
        self.metric = metric
        self.radius = radius
        self.beta = beta
        self.seed = seed
        self.walks = walks
        self.max_products = max_products
        self.last: ExactStep | None = None
        self._cost = 0.0
        self._direction: Tensor | None = None

    def constrain_gradient_(self, parameters: list[nn.Parameter]) -> None:
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        radius = self.radius()
        if radius == 0.0:
            # A warm-up begins, and some schedules end, with a step of no length.
            torch._foreach_zero_([parameter.grad for parameter in parameters])
            return
        metric = self.metric()
        gradient = torch.cat([parameter.grad.reshape(-1) for parameter in parameters]).to(metric.dtype)
        if not torch.isfinite(gradient).all():
            raise FloatingPointError("the loss's gradient is not finite; lower learning_rate or check the data")
        options = {
            "start": self._start(len(gradient)),
            "tolerance": TOLERANCE,
            "max_products": self.max_products,
        }
        if gradient.any():
            flatness = FLATNESS if self.walks else 0.0
            self.last = fip_step(metric, gradient, radius, beta=self.beta, flatness=flatness, **options)
        else:
            # At the reference itself, where every walk begins, D has no gradient: eq. 3.
            self.last = isofunctional_step(metric, radius, **options)
        self._cost = metric.jacobian.cost.forward_backwards
        self._direction = self.last.theta / radius
        parts = self._direction.neg().split([parameter.numel() for parameter in parameters])
        for parameter, part in zip(parameters, parts, strict=True):
            parameter.grad.copy_(part.view_as(parameter))

    def _start(self, size: int) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed())
        fresh = torch.randn(size, generator=generator)
        fresh = fresh / fresh.norm()
        if self._direction is None:
            return fresh
        return PERSISTENCE * self._direction.cpu() + (1 - PERSISTENCE**2) ** 0.5 * fresh

    def logs(self) -> dict[str, float | Tensor]:
        """
        Of the last step: λ, the predicted change of D's quadratic part, the residual of its equation, products with
        the metric, and their cost in forward-backward passes over the step's anchors.
        """
        if self.last is None:
            return {}
        return {
            "step_multiplier": self.last.multiplier,
            "step_output_change": self.last.output_change,
            "step_residual": self.last.residual,
            "step_products": float(self.last.products),
            "step_forward_backwards": self._cost,
        }

    def report(self) -> dict[str, Any]:
        """How eq. 4 was solved."""
        return {"solver": {"name": self.name, "max_products": self.max_products}}

    def state_dict(self) -> dict[str, Any]:
        return {} if self._direction is None else {"direction": self._direction}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._direction = state.get("direction")


class ExactPreservation(Preservation):
    """
    Keeping the function by exact steps: the term that takes them, and Gauss-Newton steps back into the budget.

    Args:
        trainer (`FIPTrainer`): The trainer, whose model holds the reference weights now.

    Raises:
        [`InputError`]: where the trainer does not preserve anything, its steps would have no length, or an optimizer
            was passed to it that would change them.
    """

    def __init__(self, trainer: FIPTrainer):
        super().__init__(trainer)
        if not trainer.preserve:
            raise InputError("preserve=False: solver='trust_region' needs the functional distance; use 'penalty'")
        if not trainer.args.learning_rate > 0:
            raise InputError(
                f"learning_rate={trainer.args.learning_rate!r} has to be above 0: it is the length of the steps of "
                "solver='trust_region'"
            )
        self._step = TrustRegion(
            lambda: self.metric(self.draw(trainer.state.global_step, 0, 1)),
            self._radius,
            beta=1.0 / self.distance.weight,
            walks=not (trainer._objective or trainer._given_terms or self.args.anchor_label_weight),
            seed=lambda: trainer.data_seed * 1_000_003 + trainer.state.global_step,
        )

    def terms(self) -> list[Term]:
        return [*super().terms(), self._step]

    def metric(self, indices: list[int]) -> DistanceMetric:
        """The metric of the functional distance on some anchors, the same on every process."""
        kind = self.trainer.kind
        inputs = self.anchors.inputs(indices)
        if kind.per_token:
            inputs |= _scored_labels(self.anchors, indices, inputs, shifted=kind is OutputKind.NEXT_TOKEN)
        jacobian = MetricTensor(self.trainer.unwrapped, self.trainer.to_device(inputs))
        return DistanceMetric(
            jacobian,
            self.distance.distance,
            self.distance.unit,
            number=len(indices),
            examples=self.anchors.example_index(indices),
        )

    def _radius(self) -> float:
        groups = self.trainer.optimizer.param_groups
        rates = {group["lr"] for group in groups}
        moved = any(group.get("momentum") or group.get("weight_decay") for group in groups)
        if moved or len(rates) > 1 or not isinstance(_plain(self.trainer.optimizer), torch.optim.SGD):
            raise InputError(
                f"optimizers: {type(_plain(self.trainer.optimizer)).__name__} would change the steps of "
                "solver='trust_region'; pass none, or torch.optim.SGD without momentum and decay"
            )
        return float(rates.pop())

    def _restoration_step(self, optimizer: torch.optim.Optimizer, number: int) -> None:
        trainer = self.trainer
        indices = self.draw(trainer.state.global_step * RESTORATION_STREAM + number, 0, 1)
        metric = self.metric(indices)
        before, change = self._distance_on(metric.jacobian.outputs, indices)
        theta, _, _ = conjugate_gradients(metric, metric.vjp(change) / -2, max_products=RESTORATION_PRODUCTS)
        weights = metric.jacobian.weights
        # To first order the whole step is best; where it overshoots, a shorter one is taken.
        for _ in range(RESTORATION_HALVINGS):
            after, _ = self._distance_on(metric.jacobian.at(weights + theta).outputs, indices)
            if after < before:
                break
            theta = theta / 2
        else:
            return
        with torch.no_grad():
            own = dict(trainer.unwrapped.named_parameters())
            for name, value in metric.jacobian.unflatten(weights + theta).items():
                own[name].copy_(value)
        trainer.change_weights()

    def _distance_on(self, outputs: Tensor, indices: list[int]) -> tuple[float, Tensor]:
        """Mean distance to the reference of these outputs, and its gradient with respect to them."""
        outputs = outputs.detach().requires_grad_()
        examples = self.anchors.example_index(indices)
        batch = OutputBatch(
            outputs, example_index=None if examples is None else examples.to(outputs.device), examples=len(indices)
        )
        with torch.enable_grad():
            reference = self.anchors.reference(indices).to(outputs.device)
            distance = self.distance.per_example(outputs, reference, batch).mean()
            (gradient,) = torch.autograd.grad(distance, outputs)
        return float(distance.detach()), gradient


def preservation_for(trainer: FIPTrainer) -> Preservation:
    """How this trainer keeps the function: by its `solver`."""
    return (ExactPreservation if trainer.args.solver == "trust_region" else Preservation)(trainer)


def _plain(optimizer: Any) -> torch.optim.Optimizer:
    return getattr(optimizer, "optimizer", optimizer)


def _scored_labels(
    anchors: Anchors, indices: list[int], inputs: dict[str, Tensor], *, shifted: bool
) -> dict[str, Tensor]:
    """Labels that mark the anchors' scored outputs; of a model whose outputs score the next token, one token on."""
    found = {key: pad(value, (0, 1), value=anchors.padding.get(key, 0)) for key, value in inputs.items() if shifted}
    labels = torch.full_like(inputs["input_ids"], IGNORED_LABEL)
    labels = pad(labels, (0, int(shifted)), value=IGNORED_LABEL)
    for row, index in enumerate(indices):
        labels[row, anchors.positions[index] + int(shifted)] = 0
    return {**found, "labels": labels}
