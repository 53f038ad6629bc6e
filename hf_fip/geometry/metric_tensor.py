"""The metric tensor of a network on a set of anchors, as a symmetric linear operator (eq. 2 of the paper)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from copy import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..functional.anchors import GIB
from .gram import gram_matrix, jacobian_rows
from .linear_operator import MEMORY_LIMIT_GB, SymmetricOperator
from .linearization import measure
from .network import Inputs, Network
from .products import Cost, JacobianProducts


@dataclass(frozen=True)
class OutputMetric:
    """
    How output changes are measured: the matrix `H = S S^T` of an output row, as functions of the outputs and of
    changes `u`, both `[rows, C]`.

    Args:
        weight (`Callable`): `H u`.
        root (`Callable`): `S u`.
        root_transposed (`Callable`): `S^T u`.
        rank_of (`Callable`): the rank of `H` from `C`.
    """

    weight: Callable[[Tensor, Tensor], Tensor]
    root: Callable[[Tensor, Tensor], Tensor]
    root_transposed: Callable[[Tensor, Tensor], Tensor]
    rank_of: Callable[[int], int]


def _unchanged(outputs: Tensor, change: Tensor) -> Tensor:
    return change


def _covariance(outputs: Tensor, change: Tensor) -> Tensor:
    p = outputs.softmax(-1)
    return p * (change - (p * change).sum(-1, keepdim=True))


# S = diag(sqrt p) - p sqrt(p)^T gives S S^T = diag(p) - p p^T, since the entries of p sum to 1.
def _covariance_root(outputs: Tensor, change: Tensor) -> Tensor:
    p = outputs.softmax(-1)
    return p.sqrt() * change - p * (p.sqrt() * change).sum(-1, keepdim=True)


def _covariance_root_transposed(outputs: Tensor, change: Tensor) -> Tensor:
    p = outputs.softmax(-1)
    return p.sqrt() * (change - (p * change).sum(-1, keepdim=True))


METRICS = {
    "l2": OutputMetric(_unchanged, _unchanged, _unchanged, lambda outputs: outputs),
    "fisher": OutputMetric(_covariance, _covariance_root, _covariance_root_transposed, lambda outputs: outputs - 1),
}


class MetricTensor(SymmetricOperator):
    """
    The metric tensor `g` of a network on anchors: how far its outputs move when its weights do.

    With `J_i` the Jacobian of the `C` outputs on anchor `i` with respect to the `n` trainable weights,
    `g = (1/N) sum_i J_i^T H_i J_i`. `H_i` is the identity for `"l2"` (eq. 2 of the paper) and `diag(p) - p p^T`, with
    `p` the softmax of the outputs, for `"fisher"`: the Fisher information. A small change `d` of the weights moves
    the outputs by `d @ (g @ d)`: the mean squared change of the outputs for `"l2"`, twice the mean Kullback-Leibler
    divergence for `"fisher"`, as in [`~hf_fip.functional.distances`].

    The matrix is never formed: `g @ v == g.vjp(g.weighting(g.jvp(v))) / g.num_rows`. Its rank is at most
    `g.rank_bound`, so that where `N C` is smaller than `n` the Gram matrix [`~MetricTensor.gram`] holds all there is
    to know. The weights are copied: the operator stays what it is when the model is trained on.

    Under several processes the anchors are split between them, and the products summed; all processes pass the same
    anchors, call with the same arguments and get the same results.

    Args:
        model (`torch.nn.Module`):
            A Transformers model with an output head (or any module whose call on the inputs gives logits), wrapped or
            not. The geometry is that of its trainable weights, with dropout off; the model is left as it is.
        anchors (`dict[str, torch.Tensor]` or an iterable of them):
            Model inputs, in one batch or several, with one entry per anchor. Models with an output per token need
            `labels`, -100 where an output does not count; otherwise labels are not used.
        metric (`str`, *optional*, defaults to `"l2"`):
            `"l2"` or `"fisher"`.
        dtype (`torch.dtype`, *optional*):
            In which everything is computed. Defaults to the weights' own, at least float32. Eigenvalues below 1e-7 of
            the largest need `torch.float64`.
        chunk_size (`int`, *optional*):
            Anchors that go through the network together; as many as fit by default.
        memory_limit_gb (`float`, *optional*, defaults to 4.0):
            Largest memory for activations, and for what is made of all outputs (a Gram matrix, the dual form), in GiB.
            If the activations of all anchors fit, they are kept between products, which makes a product about half as
            dear.
        distributed (`bool`, *optional*, defaults to `True`):
            Whether to share the work between the processes, where there are several.

    Attributes:
        shape (`tuple[int, int]`): `(n, n)`.
        num_rows (`int`): `N`: the number of anchors, or of scored positions for models with an output per token.
        num_outputs (`int`): `C`.
        rank_bound (`int`): what the rank of `g` cannot exceed.
        cost (`Cost`): the work done so far.

    Raises:
        [`InputError`]: if no weight is trainable or weights are integers, if an anchor does not fit into the memory
            limit, if the outputs cannot be differentiated or are not finite, or for an unknown metric.

    Example:

    ```python
    >>> from hf_fip.geometry import MetricTensor

    >>> g = MetricTensor(model, {"pixel_values": images})
    >>> moved = direction @ (g @ direction)
    ```
    """

    def __init__(
        self,
        model: nn.Module,
        anchors: Inputs | Iterable[Inputs],
        metric: str = "l2",
        *,
        dtype: torch.dtype | None = None,
        chunk_size: int | None = None,
        memory_limit_gb: float = MEMORY_LIMIT_GB,
        distributed: bool = True,
    ) -> None:
        if metric not in METRICS:
            raise InputError(f"metric={metric!r} is unknown: use one of {', '.join(map(repr, METRICS))}")
        if chunk_size is not None and chunk_size < 1:
            raise InputError(f"chunk_size={chunk_size} must be at least 1")
        if not 0 < memory_limit_gb < math.inf:
            raise InputError(f"memory_limit_gb={memory_limit_gb} must be a positive number of GiB")
        network = Network(model, dtype)
        chunks = network.chunks(anchors)
        # Padding makes batches of one set differ in width: the widest decides.
        widest = max(chunks, key=lambda chunk: sum(v.numel() for v in chunk.inputs.values()) / chunk.num_anchors)
        needs = measure(network, widest)
        if METRICS[metric].rank_of(needs.num_outputs) < 1:
            raise InputError(f"metric={metric!r} needs class probabilities, but the model has one output: use 'l2'")
        self.metric = metric
        self.memory_limit_gb = memory_limit_gb
        self.cost = Cost()
        self._products = JacobianProducts(
            network,
            chunks,
            needs,
            chunk_size=chunk_size,
            memory_limit=int(memory_limit_gb * GIB),
            distributed=distributed,
            cost=self.cost,
        )
        self.shape = (network.size, network.size)
        self.dtype, self.device = network.dtype, network.device
        self.num_rows, self.num_outputs = self._products.num_rows, needs.num_outputs
        self._outputs: Tensor | None = None

    def __repr__(self) -> str:
        return f"MetricTensor(n={self.shape[0]:,}, N={self.num_rows:,}, C={self.num_outputs:,}, {self.metric!r})"

    @property
    def rank_bound(self) -> int:
        return min(self.shape[0], self.num_rows * METRICS[self.metric].rank_of(self.num_outputs))

    @property
    def weights(self) -> Tensor:
        """The point at which the metric is taken: a copy of the trainable weights, flat, `[n]`."""
        return self.flatten(self._products.network.parameters)

    @property
    def outputs(self) -> Tensor:
        """The network's outputs on the anchors at that point, `[N, C]`."""
        if self._outputs is None:
            self._outputs = self._products.outputs()
        return self._outputs

    def at(self, weights: Tensor) -> MetricTensor:
        """
        The metric of the same network on the same anchors at another point; the model is left as it is, and work is
        counted in the same `cost`.

        Args:
            weights (`torch.Tensor`): the trainable weights there, flat, `[n]`.
        """
        other = copy(self)
        other._products = self._products.at(self.unflatten(weights))
        other._outputs = None
        return other

    def flatten(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """
        A value for each trainable weight as a flat vector.

        Args:
            parameters (`dict[str, torch.Tensor]`): by the names of `model.named_parameters()`.

        Returns:
            `torch.Tensor`: `[n]`, in the operator's `dtype` and on its `device`.
        """
        own = self._products.network.parameters
        if parameters.keys() != own.keys():
            differing = sorted(parameters.keys() ^ own.keys())
            raise InputError(f"parameters: {differing[0]!r} is missing or not trainable; pass every trainable weight")
        parts = [parameters[name].detach().to(self.device, self.dtype).reshape(-1) for name in own]
        return torch.cat(parts)

    def unflatten(self, vector: Tensor) -> dict[str, Tensor]:
        """
        A flat vector by the names of the trainable weights, in their shapes; the inverse of [`~MetricTensor.flatten`].

        Args:
            vector (`torch.Tensor`): `[n]`.
        """
        if vector.shape != self.shape[:1]:
            raise InputError(f"vector of shape {list(vector.shape)} does not fit the weights: pass [{self.shape[0]}]")
        own = self._products.network.parameters
        parts = vector.to(self.device, self.dtype).split([p.numel() for p in own.values()])
        return {name: part.view_as(own[name]) for name, part in zip(own, parts, strict=True)}

    def jvp(self, vectors: Tensor) -> Tensor:
        """
        `J v`: to first order, how the outputs on every anchor change when the weights change by `v`.

        Args:
            vectors (`torch.Tensor`): `[n]`, or `[n, k]` for `k` vectors (columns).

        Returns:
            `torch.Tensor`: `[N, C]`, or `[N, C, k]`.
        """
        if vectors.ndim == 2:
            return torch.stack([self.jvp(vector) for vector in vectors.T], dim=-1)
        return self._products.jvp(self.unflatten(vectors))

    def vjp(self, changes: Tensor) -> Tensor:
        """
        `J^T u`: the gradient of `sum(u * outputs)` with respect to the weights. A sum over the anchors, no mean.

        Args:
            changes (`torch.Tensor`): `[N, C]`, or `[N, C, k]` for `k` of them.

        Returns:
            `torch.Tensor`: `[n]`, or `[n, k]`.
        """
        if changes.ndim == 3:
            return torch.stack([self.vjp(change) for change in changes.unbind(-1)], dim=-1)
        if changes.shape != (self.num_rows, self.num_outputs):
            raise InputError(
                f"output changes of shape {list(changes.shape)} do not fit the outputs: pass [{self.num_rows}, "
                f"{self.num_outputs}]"
            )
        return self._products.vjp(changes.to(self.device, self.dtype))

    def weighting(self, changes: Tensor) -> Tensor:
        """`H u` for output changes `u`, `[N, C]` or `[N, C, k]`: `u` itself for `"l2"`."""
        return self._on_rows(METRICS[self.metric].weight, changes)

    def root(self, changes: Tensor) -> Tensor:
        """`S u`, where `H = S S^T`, in the shapes of [`~MetricTensor.weighting`]."""
        return self._on_rows(METRICS[self.metric].root, changes)

    def root_transposed(self, changes: Tensor) -> Tensor:
        """`S^T u`, where `H = S S^T`, in the shapes of [`~MetricTensor.weighting`]."""
        return self._on_rows(METRICS[self.metric].root_transposed, changes)

    def product(self, vectors: Tensor) -> Tensor:
        weight = METRICS[self.metric].weight
        self.cost.products += vectors.shape[1]
        columns = [self._products.through(self.unflatten(vector), weight) for vector in vectors.T]
        return torch.stack(columns, dim=1) / self.num_rows

    def rows(self) -> Tensor:
        """
        The Jacobian itself, `[N C, n]`, for few anchors: as much work as `C` products with `J^T`.

        Returns:
            `torch.Tensor`: row `i C + c` is the gradient of output `c` on anchor `i`.

        Raises:
            [`InputError`]: if the matrix exceeds `memory_limit_gb`.
        """
        return jacobian_rows(self._products, int(self.memory_limit_gb * GIB))

    def gram(self) -> Tensor:
        """
        The dual form: `K = A A^T / N` with `A = S^T J`, so that `g = A^T A / N` has the same eigenvalues apart from
        zeros. If `K y = l y` with `|y| = 1`, then `g.vjp(g.root(y)) / sqrt(N l)` is the eigenvector of `g` to `l`.

        Returns:
            `torch.Tensor`: `[N C, N C]`; row `i C + c` belongs to output `c` of anchor `i`.

        Raises:
            [`InputError`]: if the matrix exceeds `memory_limit_gb`.
        """
        return gram_matrix(self._products, METRICS[self.metric].root, int(self.memory_limit_gb * GIB)) / self.num_rows

    def _on_rows(self, function: Callable[[Tensor, Tensor], Tensor], changes: Tensor) -> Tensor:
        if changes.ndim == 3:
            return torch.stack([function(self.outputs, change) for change in changes.unbind(-1)], dim=-1)
        return function(self.outputs, changes)
