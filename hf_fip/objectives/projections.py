"""
Projections: the nearest network in a target set. Each is a pure function from weights to a [`Code`] (where the zeros
are, which grid, which subspace), by which the projected weights follow; it is idempotent, and the further the level,
the further the set.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from .codes import Code, Grid, Masks, Subspace, Values
from .selection import smallest
from .structures import Units, find_units


Weights = Mapping[str, Tensor]
_PATTERN = re.compile(r"(\d+):(\d+)")
_INTEGERS = re.compile(r"int([2-8])")


@dataclass(frozen=True)
class Projection:
    """
    A named projection with its parameters. Made by [`get_projection`].

    Args:
        name (`str`): The name it is registered under.
        function (`Callable[..., Code]`): `(weights, level, scores, **parameters)` to a code.
        parameters (`dict`): Keyword arguments of `function`, for example `{"n": 2, "m": 4}`.
        target (`float`, *optional*): The level its set itself prescribes (0.5 for 2:4); `None` where the user asks.
        bind (`Callable`, *optional*): Parameters that depend on the model, from `(parameters, model, names)`.
    """

    name: str
    function: Callable[..., Any]
    parameters: dict[str, Any] = field(default_factory=dict, hash=False)
    target: float | None = None
    bind: Callable[..., dict[str, Any]] | None = None

    def code(self, weights: Weights, level: float, scores: Weights | None = None) -> Code:
        """
        Where the projection of the weights lies.

        Args:
            weights (mapping of `str` to `torch.Tensor`): The weights of the network that may be changed.
            level (`float`): How far, from 0 (nothing) to 1: for sets of zeros their share.
            scores (mapping of `str` to `torch.Tensor`, *optional*):
                What losing each weight would cost, not negative; by default its magnitude.

        Returns:
            [`Code`]
        """
        found = self.function(
            {name: weight.detach() for name, weight in weights.items()}, level, scores, **self.parameters
        )
        if not isinstance(found, Code):
            masks = [tensor.dtype == torch.bool for tensor in found.values()]
            if any(masks) and not all(masks):
                raise InputError(f"projection {self.name!r} returned both masks and weights; return one of them")
            found = Masks(found) if any(masks) else Values(found)
        found.check(weights)
        return found

    def __call__(self, weights: Weights, level: float, scores: Weights | None = None) -> dict[str, Tensor]:
        """The projected weights, as new tensors."""
        return self.code(weights, level, scores).apply(weights)

    def for_model(self, model: nn.Module, names: Sequence[str]) -> Projection:
        """The projection for one model, of which the weights `names` may be changed."""
        if self.bind is None:
            return self
        return replace(self, parameters=self.bind(self.parameters, model, names))

    def to_dict(self) -> dict[str, Any]:
        """Name and parameters, as JSON; [`get_projection`] takes it back."""
        given = {key: value for key, value in self.parameters.items() if key != "units" and value is not None}
        plain = {key: list(value) if isinstance(value, tuple) else value for key, value in given.items()}
        return {"name": self.name, **plain}


_REGISTRY: dict[str, tuple[Projection, Callable | None]] = {}


def register_projection(
    name: str,
    *,
    target: Callable[[dict[str, Any]], float] | None = None,
    bind: Callable[..., dict[str, Any]] | None = None,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """
    Decorator that registers a projection of your own.

    The function takes `weights` (a mapping of names to tensors), `level` (0 to 1) and `scores` (a mapping, or `None`
    for magnitudes). It returns a [`Code`], or a dictionary of boolean tensors, true where the weight becomes zero, or
    a dictionary of the projected weights themselves. Its keyword-only arguments become the projection's parameters.

    Args:
        name (`str`): The name to register.
        target (`Callable`, *optional*): The level prescribed by the parameters; without it the user gives one.
        bind (`Callable`, *optional*): `(parameters, model, names)` to the parameters for that model.

    Raises:
        [`InputError`]: if the name is taken by another function.
    """

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        taken = _REGISTRY.get(name)
        if taken is not None and taken[0].function.__qualname__ != function.__qualname__:
            raise InputError(f"name={name!r} is already a projection: register it under another name")
        parameters = {
            key: parameter.default
            for key, parameter in inspect.signature(function).parameters.items()
            if parameter.kind is inspect.Parameter.KEYWORD_ONLY
        }
        _REGISTRY[name] = (Projection(name, function, parameters, bind=bind), target)
        return function

    return register


def get_projection(projection: str | Mapping[str, Any] | Projection, **parameters: Any) -> Projection:
    """
    The projection of that name.

    Args:
        projection (`str`, `dict` or [`Projection`]):
            A registered name, `"2:4"` and the like, `"int8"` or `"int4"`, or a dictionary with `name` and parameters.
        parameters: Replace the projection's own, for example `scope="layer"`.

    Raises:
        [`InputError`]: if the name or a parameter is unknown, or a value cannot work.
    """
    if isinstance(projection, Projection):
        projection = projection.to_dict()
    if isinstance(projection, Mapping):
        parameters = {**projection, **parameters}
        projection = parameters.pop("name", "")
    name = str(projection)
    if match := _PATTERN.fullmatch(name):
        name, parameters = "n:m", {"n": int(match[1]), "m": int(match[2]), **parameters}
    elif match := _INTEGERS.fullmatch(name):
        name, parameters = "quantization", {"bits": int(match[1]), **parameters}
    if name not in _REGISTRY:
        raise InputError(f"projection={projection!r} is unknown: use one of {', '.join(known_projections())}")
    found, target = _REGISTRY[name]
    unknown = sorted(set(parameters) - set(found.parameters))
    if unknown:
        known = ", ".join(key for key in found.parameters if key != "units") or "none"
        raise InputError(f"projection={name!r} has no parameter {unknown[0]!r} (it has: {known})")
    found = replace(found, parameters={**found.parameters, **parameters})
    return found if target is None else replace(found, target=target(found.parameters))


def known_projections() -> list[str]:
    """The registered names, sorted."""
    return sorted(_REGISTRY)


@register_projection("unstructured")
def unstructured(weights: Weights, level: float, scores: Weights | None = None, *, scope: str = "global") -> Masks:
    """
    Zeros anywhere: the share `level` of the weights with the lowest scores, exact to one weight.

    Args:
        scope (`str`, *optional*, defaults to `"global"`):
            `"global"` ranks all weights together, `"layer"` prunes each tensor by the same share.
    """
    scores = weights if scores is None else scores
    if scope not in ("global", "layer"):
        raise InputError(f"scope={scope!r} is unknown; use 'global' or 'layer'")
    parts = [scores] if scope == "global" else [{name: score} for name, score in scores.items()]
    pruned: dict[str, Tensor] = {}
    for part in parts:
        pruned |= smallest(part, round(level * sum(score.numel() for score in part.values())))
    return Masks(pruned)


def _n_of_m_target(parameters: dict[str, Any]) -> float:
    n, m = parameters["n"], parameters["m"]
    if not (isinstance(n, int) and isinstance(m, int) and 0 < n < m):
        raise InputError(f"projection 'n:m' with n={n!r}, m={m!r}: n of m weights are kept, so 0 < n < m, as in '2:4'")
    return 1 - n / m


@register_projection("n:m", target=_n_of_m_target)
def n_of_m(weights: Weights, level: float, scores: Weights | None = None, *, n: int = 2, m: int = 4) -> Masks:
    """
    At most `n` weights other than zero among `m` successive inputs of an output (2:4: Mishra et al., 2021). Below the
    final level of 1 − n/m, those of its zeros with the lowest scores.
    """
    _n_of_m_target({"n": n, "m": m})
    scores = weights if scores is None else scores
    candidates = {}
    for name, score in scores.items():
        inputs = score[0].numel()
        if inputs % m:
            raise InputError(
                f"projection '{n}:{m}': {name!r} has {inputs} inputs, which {m} does not divide; leave it out "
                f"(exclude={[name]!r}) or choose another m"
            )
        groups = score.detach().abs().reshape(-1, m)
        kept = torch.zeros_like(groups, dtype=torch.bool).scatter_(1, groups.topk(n, dim=1).indices, True)
        candidates[name] = groups.masked_fill(kept, torch.inf).view_as(score)
    total = sum(score.numel() for score in scores.values())
    return Masks(smallest(candidates, min(round(level * total), total // m * (m - n))))


@register_projection("block")
def block(weights: Weights, level: float, scores: Weights | None = None, *, rows: int = 4, columns: int = 4) -> Masks:
    """
    Whole tiles of `rows` x `columns` weights become zero: those with the lowest sum of squared scores, exact to one
    tile. Convolutions count as matrices of filters x inputs.
    """
    if not all(isinstance(side, int) and side >= 1 for side in (rows, columns)):
        raise InputError(
            f"projection 'block' with rows={rows!r}, columns={columns!r}: give whole numbers of at least 1"
        )
    scores = weights if scores is None else scores
    tiles = {}
    for name, score in scores.items():
        matrix = score.detach().flatten(1)
        if matrix.shape[0] % rows or matrix.shape[1] % columns:
            raise InputError(
                f"projection 'block': {name!r} is {matrix.shape[0]} x {matrix.shape[1]}, which tiles of {rows} x "
                f"{columns} do not divide; leave it out (exclude={[name]!r}) or choose other tiles"
            )
        squares = matrix.square().view(matrix.shape[0] // rows, rows, matrix.shape[1] // columns, columns)
        tiles[name] = squares.sum((1, 3))
    chosen = smallest(tiles, round(level * sum(tile.numel() for tile in tiles.values())))
    return Masks(
        {
            name: mask.repeat_interleave(rows, 0).repeat_interleave(columns, 1).view_as(scores[name])
            for name, mask in chosen.items()
        }
    )


def _bind_units(parameters: dict[str, Any], model: nn.Module, names: Sequence[str]) -> dict[str, Any]:
    return {**parameters, "units": find_units(model, names, parameters["kinds"])}


@register_projection("structured", bind=_bind_units)
def structured(
    weights: Weights,
    level: float,
    scores: Weights | None = None,
    *,
    kinds: Sequence[str] = ("heads", "neurons", "filters"),
    units: Sequence[Units] = (),
) -> Masks:
    """
    Whole attention heads, feed-forward neurons and convolution filters become zero, with all weights into and out of
    them: those with the lowest mean squared score, exact to one unit. Each layer keeps at least one unit of each kind.

    Args:
        kinds (sequence of `str`, *optional*): Which of `"heads"`, `"neurons"` and `"filters"`.
        units (sequence of [`Units`], *optional*): The units; found by [`~Projection.for_model`].
    """
    if not units:
        raise InputError("projection 'structured' does not know the model's units yet; call for_model(model, names)")
    scores = weights if scores is None else scores
    values = [group.mean_squares(scores).cpu() for group in units]
    for value in values:
        # The last one of a layer stays: without it nothing would pass.
        value[value.argmax()] = torch.inf
    ranks = torch.cat(values).argsort(stable=True).argsort().split([len(value) for value in values])
    shapes = {name: weights[name].shape for group in units for name, _, _ in group.members}
    total = sum(shape.numel() for shape in shapes.values())

    def gone(number: int) -> dict[tuple[str, int], Tensor]:
        """Along each dimension of each weight, what the `number` lowest units take with them."""
        found: dict[tuple[str, int], Tensor] = {}
        for group, rank in zip(units, ranks, strict=True):
            for name, dim, width in group.members:
                found[name, dim] = (rank < number).repeat_interleave(width)
        return found

    def zeros(number: int) -> float:
        kept = dict.fromkeys(shapes, 1.0)
        for (name, _), vector in gone(number).items():
            kept[name] *= 1 - vector.double().mean().item()
        return total - sum(kept[name] * shape.numel() for name, shape in shapes.items())

    low, high = 0, sum(group.number - 1 for group in units)
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if zeros(middle) < level * total else (low, middle)
    if low > 0 and abs(zeros(low - 1) - level * total) <= abs(zeros(low) - level * total):
        low -= 1
    pruned = {name: torch.zeros(shape, dtype=torch.bool) for name, shape in shapes.items()}
    for (name, dim), vector in gone(low).items():
        pruned[name] |= vector.view(*[1] * dim, -1, *[1] * (len(shapes[name]) - dim - 1))
    return Masks({name: mask.to(weights[name].device) for name, mask in pruned.items()})


@register_projection("quantization", target=lambda parameters: 1.0)
def quantization(weights: Weights, level: float = 1.0, scores: Weights | None = None, *, bits: int = 8) -> Grid:
    """
    Values on a symmetric grid of `2^bits − 1` points per output channel, whose ends are the channel's largest weight.
    Below level 1, the share `level` of the weights that lies nearest to it.

    Args:
        bits (`int`, *optional*, defaults to 8): From 2 to 8.
    """
    if not (isinstance(bits, int) and 2 <= bits <= 8):
        raise InputError(f"projection 'quantization' with bits={bits!r}: give a whole number from 2 to 8")
    largest = 2 ** (bits - 1) - 1
    scales = {}
    for name, weight in weights.items():
        scale = weight.flatten(1).abs().amax(1).float() / largest
        # With 16 significant bits `largest * scale` is exact in float32, so that projecting again changes nothing.
        mantissa, exponent = torch.frexp(scale)
        scale = torch.ldexp((mantissa * 2**16).round() / 2**16, exponent)
        scales[name] = torch.where(scale > 0, scale, torch.ones_like(scale))
    whole = Grid(scales, largest)
    if level >= 1:
        return whole
    gaps = {name: weight - whole.nearest(name, weight) for name, weight in weights.items()}
    return Grid(scales, largest, smallest(gaps, round(level * sum(gap.numel() for gap in gaps.values()))))


@register_projection("low_rank")
def low_rank(weights: Weights, level: float, scores: Weights | None = None) -> Subspace:
    """
    Matrices without the share `level` of their singular directions, the weakest ones (Eckart and Young, 1936);
    convolutions count as matrices of filters x inputs. At least one direction is left.
    """
    bases = {}
    for name, weight in weights.items():
        # In float64: squaring halves the digits.
        matrix = weight.flatten(1).double()
        is_tall = matrix.shape[0] > matrix.shape[1]
        full = min(matrix.shape)
        rank = max(1, round((1 - level) * full))
        if rank < full:
            gram = matrix.T @ matrix if is_tall else matrix @ matrix.T
            basis = torch.linalg.eigh(gram).eigenvectors[:, -rank:]
            if is_tall:
                # The larger of the two Gram matrices costs as many times more as the cube of what it is larger.
                basis = torch.linalg.qr(matrix @ basis).Q
            bases[name] = basis.to(weight.dtype).contiguous()
    return Subspace(bases)
