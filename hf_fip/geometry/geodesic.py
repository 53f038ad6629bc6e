"""
Lengths, energies and accelerations of paths, and the refinement that makes a recorded path straighter.

Among the paths between two networks a geodesic has the least energy, and no acceleration (the paper's supplement: the
least velocity and the least acceleration). Paths are discrete here: points `[T + 1, n]`, passed in unit time.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import InputError
from .network import Inputs, Network
from .surfaces import Surface


if TYPE_CHECKING:
    from ..graph import Node

# Each holds two paths; PyTorch's default, 100, would be two hundred.
LBFGS_HISTORY = 10


@dataclass(frozen=True)
class PathLength:
    """
    How long a path is.

    Args:
        segments (`tuple[float, ...]`): length of each segment; for outputs, the root of their mean squared change.
    """

    segments: tuple[float, ...]

    @property
    def length(self) -> float:
        """The sum of the segments."""
        return math.fsum(self.segments)

    @property
    def energy(self) -> float:
        """
        `T` times the sum of the squared segments: that of a path passed in unit time. It is the squared length where
        the speed is constant, and more everywhere else.
        """
        return len(self.segments) * math.fsum(s * s for s in self.segments)


def length_of_outputs(outputs: Tensor) -> PathLength:
    """
    The functional length of a path from the outputs at its points.

    Args:
        outputs (`torch.Tensor`): `[T + 1, N, C]`: at each point, on each of N anchors.

    Raises:
        [`InputError`]: for fewer than two points, or values that are not finite.
    """
    if outputs.ndim != 3 or len(outputs) < 2 or not torch.isfinite(outputs).all():
        raise InputError(
            f"outputs of shape {list(outputs.shape)}: pass finite values [points, N, C], 2 points or more"
        )
    moved = outputs.diff(dim=0).square().sum(-1).mean(-1)
    return PathLength(tuple(moved.sqrt().tolist()))


def length_of_points(points: Tensor, surface: Surface, *, infinitesimal: bool = False) -> PathLength:
    """
    The length of a path from its points.

    Args:
        points (`torch.Tensor`): `[T + 1, n]`.
        surface ([`Surface`]): what lengths are measured by.
        infinitesimal (`bool`, *optional*, defaults to `False`):
            Whether to measure segments by the metric at their middles, `dw^T g dw`, instead of by what changes
            between their ends: the difference of the two is what eq. 2 leaves out.
    """
    _check_points(points, 2)
    if infinitesimal:
        pairs = zip(points[:-1], points[1:], strict=True)
        squares = torch.stack([surface.inner((a + b) / 2, b - a, b - a) for a, b in pairs])
    else:
        squares = surface.chords(points)
    return PathLength(tuple(squares.detach().clamp(min=0.0).sqrt().tolist()))


@torch.no_grad()
def path_length(nodes: Iterable[Node], inputs: Inputs | Iterable[Inputs]) -> PathLength:
    """
    The functional length of a path of nodes: how far its networks' outputs on anchors move along it. One model is in
    memory at a time.

    Args:
        nodes (iterable of `Node`): in order, of one label space.
        inputs (`dict[str, torch.Tensor]` or an iterable of them): model inputs of the anchors, in one batch or
            several, as for [`MetricTensor`].

    Raises:
        [`InputError`]: if the nodes' outputs differ in shape, or there are fewer than two.

    Example:

    ```python
    >>> path_length(graph.lineage(graph["fip"]), tokenizer(texts, padding=True, return_tensors="pt")).length
    ```
    """
    batches = [inputs] if isinstance(inputs, Mapping) else list(inputs)
    found: list[Tensor] = []
    for node in nodes:
        network = Network(node.load_model())
        found.append(torch.cat([network(network.parameters, anchors) for anchors in network.chunks(batches)]))
        if found[-1].shape != found[0].shape:
            raise InputError(
                f"nodes: the outputs of {node.id!r} have the shape {list(found[-1].shape)}, those of the first "
                f"{list(found[0].shape)}; pass the part of the path on which the head does not grow"
            )
    if len(found) < 2:
        raise InputError(f"nodes: {len(found)} given; a path has 2 or more")
    return length_of_outputs(torch.stack(found))


def covariant_acceleration(points: Tensor, surface: Surface) -> Tensor:
    """
    The covariant derivative of the velocity along the path, `∇_w' w' = w'' + Γ(w', w')`, at its inner points.

    With h = 1 / T, `w'' = (w_{t+1} - 2 w_t + w_{t-1}) / h^2` and `w' = (w_{t+1} - w_{t-1}) / (2 h)`: exact to order
    h^2. It is zero along a geodesic passed at constant speed.

    Args:
        points (`torch.Tensor`): `[T + 1, n]`.
        surface ([`Surface`]): where the path lies.

    Returns:
        `torch.Tensor`: `[T - 1, n]`; measure it with `surface.inner` where only what moves the outputs matters.
    """
    _check_points(points, 3)
    steps = len(points) - 1
    found = []
    for before, here, after in zip(points[:-2], points[1:-1], points[2:], strict=True):
        velocity = (after - before) * (steps / 2)
        found.append((after - 2 * here + before) * steps**2 + surface.connection(here, velocity))
    return torch.stack(found)


@dataclass(frozen=True)
class RefinedPath:
    """
    A path with the same ends and less energy.

    Args:
        points (`torch.Tensor`): `[T + 1, n]`.
        before (`float`): what was minimised (see [`refine_path`]), along the path that was given.
        after (`float`): the same along this one; never above `before`.
        evaluations (`int`): how often the outputs (or the metric) were taken along the whole path.
    """

    points: Tensor
    before: float
    after: float
    evaluations: int


def refine_path(
    points: Tensor, surface: Surface, *, smoothness: float = 0.0, iterations: int = 100, tolerance: float = 1e-12
) -> RefinedPath:
    """
    Moves the inner points of a path so that it has the least velocity and the least acceleration: minimises
    `T sum_t chord(w_t, w_{t+1}) + smoothness T^3 sum_t |w_{t+1} - 2 w_t + w_{t-1}|^2` by L-BFGS.

    The first part alone has the discrete geodesics as its minima. For networks it leaves a large freedom (all weights
    that move no output), in which the second part chooses the path that is straightest in the weights; it is the
    integral of `|w''|^2` over unit time.

    L-BFGS holds some twenty paths `[T - 1, n]`, and a step the graphs of the outputs at all points: for small
    networks, few points and few anchors.

    Args:
        points (`torch.Tensor`): `[T + 1, n]`, three or more; its ends stay.
        surface ([`Surface`]): where the path lies.
        smoothness (`float`, *optional*, defaults to 0.0): weight of the acceleration.
        iterations (`int`, *optional*, defaults to 100): most L-BFGS iterations.
        tolerance (`float`, *optional*, defaults to 1e-12): it ends where gradient or progress falls below.

    Returns:
        [`RefinedPath`]

    Raises:
        [`InputError`]: fewer than three points, values that are not finite, smoothness below 0.
    """
    _check_points(points, 3)
    if not 0 <= smoothness < math.inf:
        raise InputError(f"smoothness={smoothness!r} has to be 0 or above and finite")
    steps = len(points) - 1
    first, last = points[:1].detach(), points[-1:].detach()
    inner = points[1:-1].detach().clone().requires_grad_()
    evaluations = 0

    def cost(path: Tensor) -> Tensor:
        total = surface.chords(path).sum() * steps
        if smoothness:
            total = total + smoothness * steps**3 * path.diff(n=2, dim=0).square().sum()
        return total

    optimizer = torch.optim.LBFGS(
        [inner],
        max_iter=iterations,
        history_size=LBFGS_HISTORY,
        tolerance_grad=tolerance,
        tolerance_change=tolerance,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        nonlocal evaluations
        evaluations += 1
        optimizer.zero_grad()
        value = cost(torch.cat([first, inner, last]))
        value.backward()
        return value

    with torch.enable_grad():
        before = float(cost(points.detach()))
        optimizer.step(closure)
        refined = torch.cat([first, inner.detach(), last])
        after = float(cost(refined))
    if not after < before:
        refined, after = points.detach().clone(), before
    return RefinedPath(refined, before, after, evaluations + 2)


def _check_points(points: Tensor, least: int) -> None:
    if points.ndim != 2 or len(points) < least or not torch.isfinite(points).all():
        raise InputError(
            f"points of shape {list(points.shape)}: pass finite values [points, n], {least} points or more"
        )
