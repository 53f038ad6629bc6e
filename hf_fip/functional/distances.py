"""
Functional distances: how far a network's outputs lie from reference outputs on the same inputs.

A distance is a pure function of two tensors of raw outputs (logits, or regression values). Every built-in distance is
exactly zero, with an exactly zero gradient, where both are equal, and its second-order expansion in the weights is a
metric tensor of the paper "Engineering flexible machine learning systems by traversing functionally invariant paths"
(eq. 2): `D(w + dw) = dw^T g dw` with `g = J^T J` for `l2`, `F/2` for `kl` and `F/8` for `hellinger` and
`bhattacharyya`, where `J` is the Jacobian of the outputs and `F` the Fisher information.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError


# A logit that gives probability zero even after division by a temperature, yet stays finite in float32: with -inf,
# `0 * log 0` would be NaN.
_LOGIT_OF_PROBABILITY_ZERO = -1e20


@dataclass(frozen=True)
class Distance:
    """
    A named functional distance with its parameters. Made by [`get_distance`].

    Args:
        name (`str`):
            The name it is registered under.
        function (`Callable[..., Tensor]`):
            `(outputs, reference, **parameters)`, both `[..., nodes]`, to the distance `[...]` over the last dimension.
        compares (`str`):
            `"outputs"` or `"probabilities"` (see [`register_distance`]).
        unit (`str`):
            What a value of 1 means after division by [`~Distance.scale`].
        unit_of (`Callable[[Tensor], Tensor]`, *optional*):
            The scale as a function of reference outputs `[examples, nodes]`; `None` for a scale of 1.
        parameters (`dict`):
            Keyword arguments of `function`, for example `{"temperature": 2.0}`.
    """

    name: str
    function: Callable[..., Tensor]
    compares: str
    unit: str
    unit_of: Callable[[Tensor], Tensor] | None = None
    parameters: dict = field(default_factory=dict, hash=False)

    def per_example(self, outputs: Tensor, reference: Tensor, mask: Tensor | None = None) -> Tensor:
        """
        The distance of each example.

        Computed in float32, or in float64 where an input is float64. `reference` is taken as a constant.

        If the head has grown since the reference was taken (`outputs` has more nodes than `reference`), the new nodes
        are compared too: ignoring them lets them win on old inputs, which forgets everything. For probabilities the
        reference gives the new nodes probability zero; for outputs their reference is each example's mean
        reference output.

        Args:
            outputs (`Tensor`):
                `[batch]` or `[batch, k]` for regression, `[batch, classes]` class logits, `[batch, tokens,
                vocabulary]` token logits. Token logits of the scored positions alone, `[positions, vocabulary]`, give
                one distance per position.
            reference (`Tensor`):
                The outputs to compare with, of the same shape; its last dimension may be narrower.
            mask (`Tensor`, *optional*):
                `[batch, tokens]`, true at scored positions; the distance of an example is the mean over them, and 0
                if it has none. Outputs elsewhere are never read, so they may be anything. All count by default.

        Returns:
            `Tensor`: the distances, `[batch]`.

        Raises:
            InputError: if shapes do not fit, if `outputs` has fewer nodes than `reference`, or if a distance of
                probabilities is asked of a single output.
        """
        _check_shapes(outputs, reference, mask)
        dtype = torch.promote_types(torch.promote_types(outputs.dtype, reference.dtype), torch.float32)
        outputs, reference = outputs.to(dtype), reference.detach().to(dtype)
        if outputs.ndim == 1:
            outputs, reference = outputs.unsqueeze(-1), reference.unsqueeze(-1)
        if mask is not None:
            mask = mask.bool()
            unscored = ~mask.unsqueeze(-1)
            outputs, reference = outputs.masked_fill(unscored, 0.0), reference.masked_fill(unscored, 0.0)

        distances = self.function(outputs, self.extend(reference, outputs.shape[-1]), **self.parameters)
        if distances.ndim == 1:
            return distances
        if mask is None:
            return distances.mean(dim=1)
        return distances.masked_fill(~mask, 0.0).sum(dim=1) / mask.sum(dim=1).clamp(min=1)

    def scale(self, reference: Tensor, mask: Tensor | None = None) -> Tensor:
        """
        The unit in which the distance is measured: divide [`~Distance.per_example`] by it to compare with a budget.

        For `l2` it is the total variance of the reference outputs: the variance over the examples (token logits: over
        the scored positions), summed over the output nodes. It is 0 where the outputs do not vary, as with a single
        example: a share of it is then undefined. For distances of probabilities it is 1.

        Args:
            reference (`Tensor`): reference outputs, in a shape that [`~Distance.per_example`] takes.
            mask (`Tensor`, *optional*): `[batch, tokens]`, true at scored positions.

        Returns:
            `Tensor`: a scalar, at least float32.
        """
        dtype = torch.promote_types(reference.dtype, torch.float32)
        if self.unit_of is None:
            return torch.ones((), dtype=dtype, device=reference.device)
        if mask is not None:
            reference = reference[mask.bool()]
        rows = reference.unsqueeze(-1) if reference.ndim == 1 else reference.flatten(0, -2)
        return self.unit_of(rows.detach())

    def extend(self, reference: Tensor, nodes: int) -> Tensor:
        """
        The reference of a network whose head has grown since: see [`~Distance.per_example`].

        Args:
            reference (`Tensor`): `[..., known]`.
            nodes (`int`): Number of output nodes now.

        Returns:
            `Tensor`: `[..., nodes]`.
        """
        if self.compares == "probabilities" and min(nodes, reference.shape[-1]) < 2:
            raise InputError(
                f"functional_distance={self.name!r} compares probabilities, but the model has a single output "
                "(regression): use 'l2'"
            )
        extra = nodes - reference.shape[-1]
        if extra == 0:
            return reference
        if self.compares == "probabilities":
            return F.pad(reference, (0, extra), value=_LOGIT_OF_PROBABILITY_ZERO)
        return torch.cat([reference, _reference_for_new_nodes(reference, extra)], dim=-1)


_REGISTRY: dict[str, Distance] = {}


def register_distance(
    name: str,
    *,
    compares: str = "probabilities",
    unit: str = "",
    unit_of: Callable[[Tensor], Tensor] | None = None,
) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    """
    Decorator that registers a functional distance of your own.

    The function takes `outputs` and `reference`, both `[..., nodes]` raw outputs in float32 or float64 and of equal
    shape, and returns the distance over the last dimension, `[...]`. Its keyword-only arguments, each with a default,
    become the distance's parameters. Masks, means over positions and heads that have grown are seen to outside it.

    Args:
        name (`str`): the name to register.
        compares (`str`, *optional*, defaults to `"probabilities"`):
            How the reference is extended to nodes that were added after it was taken: `"probabilities"` gives them a
            logit whose softmax is exactly zero, `"outputs"` each example's mean reference output.
        unit (`str`, *optional*, defaults to `""`): the unit's name, for reports.
        unit_of (`Callable[[Tensor], Tensor]`, *optional*):
            The unit as a function of the reference outputs `[examples, nodes]`, defaults to 1.

    Raises:
        InputError: if the name is taken by another function, or `compares` is unknown.

    Example:

    ```python
    >>> from hf_fip.functional import register_distance

    >>> @register_distance("total_variation", unit="probability")
    ... def total_variation(outputs, reference):
    ...     return (outputs.softmax(-1) - reference.softmax(-1)).abs().sum(-1) / 2
    ```
    """
    if compares not in ("outputs", "probabilities"):
        raise InputError(f"compares={compares!r} is unknown: use 'outputs' or 'probabilities'")

    def register(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        taken = _REGISTRY.get(name)
        # A notebook cell that runs twice defines the same function anew.
        if taken is not None and _origin(taken.function) != _origin(function):
            raise InputError(f"name={name!r} is already a functional distance: register it under another name")
        parameters = {
            key: parameter.default
            for key, parameter in inspect.signature(function).parameters.items()
            if parameter.kind is inspect.Parameter.KEYWORD_ONLY
        }
        _REGISTRY[name] = Distance(name, function, compares, unit, unit_of, parameters)
        return function

    return register


def get_distance(name: str | Distance, **parameters) -> Distance:
    """
    The functional distance of that name.

    Args:
        name (`str` or [`Distance`]): a registered name; a [`Distance`] is taken as it is.
        parameters: replace the distance's own, for example `temperature=4.0`.

    Raises:
        InputError: if the name or a parameter is unknown; the message lists the known ones.
    """
    distance = name if isinstance(name, Distance) else _REGISTRY.get(name)
    if distance is None:
        raise InputError(f"functional_distance={name!r} is unknown: use one of {', '.join(known_distances())}")
    unknown = sorted(set(parameters) - set(distance.parameters))
    if unknown:
        known = ", ".join(sorted(distance.parameters)) or "none"
        raise InputError(f"functional_distance={distance.name!r} has no parameter {unknown[0]!r} (it has: {known})")
    return replace(distance, parameters={**distance.parameters, **parameters})


def known_distances() -> list[str]:
    """The registered names, sorted."""
    return sorted(_REGISTRY)


def functional_distance(
    name: str | Distance,
    outputs: Tensor,
    reference: Tensor,
    mask: Tensor | None = None,
    **parameters,
) -> Tensor:
    """
    The functional distance of each example, `[batch]`; see [`Distance.per_example`] for shapes and errors.

    Args:
        name (`str` or [`Distance`]): a registered name or a distance.
        outputs (`Tensor`): the network's outputs.
        reference (`Tensor`): the outputs to compare with.
        mask (`Tensor`, *optional*): `[batch, tokens]`, true at scored positions.
        parameters: of the distance, for example `temperature=4.0`.
    """
    return get_distance(name, **parameters).per_example(outputs, reference, mask)


def total_variance(reference: Tensor) -> Tensor:
    """
    Variance of reference outputs `[examples, nodes]` over the examples, summed over the nodes (a scalar; 0 for fewer
    than two examples).
    """
    dtype = torch.promote_types(reference.dtype, torch.float32)
    total = torch.zeros((), dtype=dtype, device=reference.device)
    if len(reference) < 2:
        return total
    # In blocks of nodes: a float32 copy of a whole cache of token logits would not fit.
    for block in reference.split(1024, dim=-1):
        total = total + block.to(dtype).var(dim=0, correction=0).sum()
    return total


@register_distance("l2", compares="outputs", unit="share of output variance", unit_of=total_variance)
def l2(outputs: Tensor, reference: Tensor) -> Tensor:
    """Squared distance of the raw outputs, summed over the nodes (eq. 2 of the paper). Metric tensor: `J^T J`."""
    return (outputs - reference).square().sum(dim=-1)


@register_distance("kl", unit="nats")
def kl(outputs: Tensor, reference: Tensor, *, temperature: float = 2.0) -> Tensor:
    """
    Kullback-Leibler divergence of the outputs' distribution from the reference's, `KL(reference || outputs)`, both at
    `temperature` and multiplied by its square, so that the weight of the term does not depend on it (Hinton et al.,
    "Distilling the knowledge in a neural network", 2015). Metric tensor: half the Fisher information at that
    temperature, times its square.

    In float32, values below 1e-6 are rounding; their gradients are accurate all the same.

    Args:
        temperature (`float`, *optional*, defaults to 2.0): divides the logits; 4 suits sparsification.
    """
    if not 0 < temperature < math.inf:
        raise InputError(f"temperature={temperature} must be a positive number, for example 2.0")
    log_p = F.log_softmax(reference / temperature, dim=-1)
    log_q = F.log_softmax(outputs / temperature, dim=-1)
    # Adding q - p, which sums to zero over the nodes, makes the gradient vanish node by node at equality: without it
    # the rounding of softmax's sum remains.
    divergence = (log_p.exp() * (log_p - log_q - 1) + log_q.exp()).sum(dim=-1)
    # Rounding (1e-7) can leave it below zero; lifting the value alone keeps the gradient.
    return temperature**2 * (divergence + (-divergence.detach()).clamp(min=0.0))


@register_distance("hellinger", unit="squared Hellinger distance")
def hellinger(outputs: Tensor, reference: Tensor) -> Tensor:
    """
    Squared Hellinger distance of the two distributions, `1 - sum sqrt(p q)`, between 0 and 1. Metric tensor: one
    eighth of the Fisher information.
    """
    # The same as sum (sqrt p - sqrt q)^2 / 2, which does not cancel; halved logarithms avoid sqrt's infinite slope.
    root_p = (F.log_softmax(reference, dim=-1) / 2).exp()
    root_q = (F.log_softmax(outputs, dim=-1) / 2).exp()
    return (root_p - root_q).square().sum(dim=-1) / 2


@register_distance("bhattacharyya", unit="nats")
def bhattacharyya(outputs: Tensor, reference: Tensor) -> Tensor:
    """
    Bhattacharyya distance of the two distributions, `-log sum sqrt(p q)`. Metric tensor: one eighth of the Fisher
    information.
    """
    log_p, log_q = F.log_softmax(reference, dim=-1), F.log_softmax(outputs, dim=-1)
    squared_hellinger = ((log_p / 2).exp() - (log_q / 2).exp()).square().sum(dim=-1) / 2
    # Near equality only 1 - H^2 is exact; near disjoint supports, where it underflows, only the sum of logarithms is.
    near = -torch.log1p(-squared_hellinger.clamp(max=0.5))
    far = -torch.logsumexp((log_p + log_q) / 2, dim=-1)
    return torch.where(squared_hellinger < 0.5, near, far)


@register_distance("fdr", unit="norm of the difference of probabilities")
def fdr(outputs: Tensor, reference: Tensor) -> Tensor:
    """
    Euclidean norm of the difference of the probabilities, as in Function Distance Regularization (Benjamin et al.,
    "Measuring and regularizing networks in function space", 2019). Of first order in the weights: its square has the
    metric tensor `J^T S^T S J` with `S` the Jacobian of the softmax.
    """
    # vector_norm, unlike sqrt of a sum, has gradient zero instead of NaN at zero.
    return torch.linalg.vector_norm(F.softmax(outputs, dim=-1) - F.softmax(reference, dim=-1), dim=-1)


def _reference_for_new_nodes(reference: Tensor, extra: int) -> Tensor:
    """
    Reference outputs `[..., extra]` for nodes that did not exist when `reference` `[..., nodes]` was taken: each
    example's mean reference output, "no evidence" whatever offset the outputs have. On MNIST then Fashion-MNIST the
    mean, zero and the grown network's own first outputs tie (98.2 % of the old task kept), the smallest output costs
    the new task a point, and leaving the new nodes free loses 17 points of the old one.
    """
    return reference.mean(dim=-1, keepdim=True).expand(*reference.shape[:-1], extra)


def _check_shapes(outputs: Tensor, reference: Tensor, mask: Tensor | None) -> None:
    got, expected = tuple(outputs.shape), tuple(reference.shape)
    if outputs.ndim not in (1, 2, 3):
        raise InputError(f"outputs has shape {got}: give [batch], [batch, nodes] or [batch, tokens, nodes]")
    if len(got) != len(expected) or (got[:-1] != expected[:-1] if outputs.ndim > 1 else got != expected):
        raise InputError(f"outputs has shape {got} but reference {expected}: give both for the same examples")
    if outputs.ndim > 1 and got[-1] < expected[-1]:
        raise InputError(
            f"outputs has {got[-1]} output nodes but reference {expected[-1]}: a head may grow, never shrink; "
            "take the reference anew"
        )
    if mask is not None and (outputs.ndim != 3 or tuple(mask.shape) != got[:2]):
        raise InputError(f"mask has shape {tuple(mask.shape)}: give [batch, tokens] for outputs of shape {got}")


def _origin(function: Callable) -> tuple:
    return getattr(function, "__module__", None), getattr(function, "__qualname__", None)
