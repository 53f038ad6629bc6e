"""The eigenvalues of a metric tensor: how many directions of weight space change the outputs, and by how much."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from scipy.sparse.linalg import ArpackNoConvergence, eigsh
from torch import Tensor

from ..errors import InputError
from ..functional.anchors import GIB
from .density import lanczos_density
from .krylov import ZERO
from .linear_operator import SymmetricOperator
from .metric_tensor import MetricTensor


METHODS = ("auto", "dense", "dual", "lanczos")
# Up to here all eigenvalues cost less than a few of them by products would.
LARGEST_DENSE = 500
LARGEST_DUAL = 1000
# Of what is read from files: the square of one, times another, is finite.
LARGEST_NUMBER = 1e90


@dataclass(frozen=True)
class Spectrum:
    """
    The eigenvalues of a metric tensor: the largest ones, and the others exactly or as a density.

    An eigenvalue is the squared change of the outputs (see [`MetricTensor`]) per squared length of a step along its
    eigenvector.

    Args:
        eigenvalues (`tuple[float, ...]`): the largest, in descending order.
        dimension (`int`): `n`, how many there are.
        tail (`tuple[tuple[float, float], ...]`): the others as pairs (eigenvalue, expected number of eigenvalues
            there), descending; the numbers add up to `dimension - len(eigenvalues)`.
        is_exact (`bool`): whether `eigenvalues` and zeros are all there is; otherwise the tail is an estimate.
        noise (`float`): eigenvalues up to this one are zero up to rounding.
        metric (`str`): `"l2"` or `"fisher"`; empty for another operator.
        num_rows (`int`): `N`, the number of anchors; 0 for another operator.
        num_outputs (`int`): `C`; 0 for another operator.
        rank_bound (`int`): what the rank cannot exceed.
        method (`str`): `"dense"`, `"dual"` or `"lanczos"`.
        products (`int`): products with the metric tensor that were taken.
        forward_backwards (`float`): all the work, in forward-backward passes over the anchors; 0 for another operator.
        vectors (`torch.Tensor`, *optional*): the eigenvectors to `eigenvalues`, `[n, k]`, if they were asked for.
    """

    eigenvalues: tuple[float, ...]
    dimension: int
    tail: tuple[tuple[float, float], ...]
    is_exact: bool
    noise: float
    metric: str = ""
    num_rows: int = 0
    num_outputs: int = 0
    rank_bound: int = 0
    method: str = ""
    products: int = 0
    forward_backwards: float = 0.0
    vectors: Tensor | None = field(default=None, repr=False, compare=False)

    @property
    def measure(self) -> tuple[np.ndarray, np.ndarray]:
        """All eigenvalues, descending, and how many there are of each; zeros up to rounding count as zeros."""
        values = np.array([*self.eigenvalues, *(value for value, _ in self.tail)])
        counts = np.array([1.0] * len(self.eigenvalues) + [count for _, count in self.tail])
        return np.where(values > self.noise, values, 0.0), counts

    @property
    def trace(self) -> float:
        """The sum of the eigenvalues: `n` times the squared output change of a random step of length 1."""
        values, counts = self.measure
        return float(counts @ values)

    @property
    def rank(self) -> int | None:
        """How many eigenvalues exceed rounding; `None` unless the spectrum `is_exact`: no density tells."""
        return int(self.count_above(self.noise)) if self.is_exact else None

    @property
    def participation_ratio(self) -> float:
        """Effective rank as the participation ratio, `(sum l)^2 / sum l^2`: between 1 and the rank."""
        values, counts = self.measure
        return float((counts @ values) ** 2 / (counts @ values**2))

    @property
    def entropy_rank(self) -> float:
        """
        Effective rank as `exp(-sum q log q)` with `q = l / sum l` (Roy and Vetterli, "The effective rank: a measure of
        effective dimensionality", 2007): between 1 and the rank. It gives the many small ones more weight.
        """
        values, counts = self.measure
        shares, counts = values[values > 0] / self.trace, counts[values > 0]
        return float(np.exp(-(counts @ (shares * np.log(shares)))))

    @property
    def orders_of_magnitude(self) -> float:
        """`log10` of the largest eigenvalue over the smallest that is no rounding and of which one is expected."""
        values, counts = self.measure
        # The last values of a density may stand for less than one eigenvalue together.
        left = np.cumsum((counts * (values > 0))[::-1])[::-1]
        smallest = values[(values > 0) & (left >= 0.5)][-1]
        return float(np.log10(values[0] / smallest))

    def count_above(self, value: float) -> float:
        """How many eigenvalues exceed `value` (an estimate unless the spectrum `is_exact`)."""
        values, counts = self.measure
        return float(counts[values > value].sum())

    def flat_share(self, step: float, change: float) -> float:
        """
        The share of eigendirections along which a step changes the outputs by less than a stated amount.

        Args:
            step (`float`): length of the step in weight space.
            change (`float`): root of the squared output change: for `"l2"` the root mean square over the anchors of
                the change of the output vector, for `"fisher"` the root of twice the mean Kullback-Leibler divergence.

        Returns:
            `float`: between 0 and 1.
        """
        for name, value in (("step", step), ("change", change)):
            if not 0 < value < math.inf:
                raise InputError(f"{name}={value} must be a positive number")
        return 1 - self.count_above((change / step) ** 2) / self.dimension

    def to_dict(self) -> dict[str, Any]:
        """What JSON can hold: the fields but `vectors`, and the derived numbers under `"summary"`."""
        names = ("dimension", "is_exact", "noise", "metric", "num_rows", "num_outputs", "rank_bound", "method")
        return {
            "eigenvalues": list(self.eigenvalues),
            "tail": [list(pair) for pair in self.tail],
            **{name: getattr(self, name) for name in names},
            "products": self.products,
            "forward_backwards": self.forward_backwards,
            "summary": {
                "trace": self.trace,
                "rank": self.rank,
                "participation_ratio": self.participation_ratio,
                "entropy_rank": self.entropy_rank,
                "orders_of_magnitude": self.orders_of_magnitude,
            },
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Spectrum:
        """The inverse of [`~Spectrum.to_dict`]; raises KeyError, TypeError or ValueError for anything else."""
        values = tuple(float(value) for value in data["eigenvalues"])
        tail = tuple((float(value), float(count)) for value, count in data["tail"])
        noise, dimension = float(data["noise"]), int(data["dimension"])
        numbers = [*values, noise, *(number for pair in tail for number in pair)]
        if not values or not all(0 <= number <= LARGEST_NUMBER for number in numbers) or values[0] <= noise:
            raise ValueError("no spectrum: its numbers are negative or not finite, or none exceeds the noise")
        if not len(values) <= dimension <= LARGEST_NUMBER:
            raise ValueError(f"no spectrum: {len(values)} eigenvalues of {dimension}")
        return cls(
            eigenvalues=values,
            dimension=dimension,
            tail=tail,
            is_exact=bool(data["is_exact"]),
            noise=noise,
            **{name: str(data[name]) for name in ("metric", "method")},
            **{name: int(data[name]) for name in ("num_rows", "num_outputs", "rank_bound", "products")},
            forward_backwards=float(data["forward_backwards"]),
        )


def find_spectrum(
    g: SymmetricOperator,
    top: int = 20,
    *,
    method: str = "auto",
    probes: int = 4,
    steps: int = 40,
    vectors: bool = False,
    tolerance: float = 1e-5,
    seed: int = 0,
) -> Spectrum:
    """
    The spectrum of a metric tensor, or of any symmetric positive semidefinite operator.

    Args:
        g ([`SymmetricOperator`]):
            The operator, most often a [`MetricTensor`].
        top (`int`, *optional*, defaults to 20):
            How many of the largest eigenvalues to find one by one.
        method (`str`, *optional*, defaults to `"auto"`):
            `"dense"`: all eigenvalues of the matrix, from `n` products. `"dual"`: all that are not zero, from the
            Gram matrix `[N C, N C]`. `"lanczos"`: the `top` largest by implicitly restarted Lanczos (ARPACK), and the
            density of the others by stochastic Lanczos quadrature, see [`lanczos_density`]; it holds `2 top + 1`
            vectors `[n]`, and after that `top + steps`. `"auto"`: the first that is small enough (500 weights, 1000
            outputs over all anchors).
        probes (`int`, *optional*, defaults to 4):
            Random vectors of the density.
        steps (`int`, *optional*, defaults to 40):
            Lanczos steps from each.
        vectors (`bool`, *optional*, defaults to `False`):
            Whether to keep the eigenvectors to the `top` largest.
        tolerance (`float`, *optional*, defaults to 1e-5):
            Of ARPACK: relative accuracy of the largest eigenvalues.
        seed (`int`, *optional*, defaults to 0):
            Of the start and probe vectors.

    Returns:
        [`Spectrum`]: the exact methods list every eigenvalue that may differ from zero, whatever `top`.

    Raises:
        [`InputError`]: for an unknown method, one that does not fit or needs more memory than `g.memory_limit_gb`,
            numbers below 1, an operator that is zero, or if ARPACK does not converge.
    """
    if method not in METHODS:
        raise InputError(f"method={method!r} is unknown: use one of {', '.join(map(repr, METHODS))}")
    for name, value in (("top", top), ("probes", probes), ("steps", steps)):
        if value < 1:
            raise InputError(f"{name}={value} must be at least 1")
    metric = g if isinstance(g, MetricTensor) else None
    size = g.shape[0]
    if method == "auto":
        few_outputs = metric is not None and metric.num_rows * metric.num_outputs <= LARGEST_DUAL
        method = "dense" if size <= LARGEST_DENSE else "dual" if few_outputs else "lanczos"
    if method == "dual" and metric is None:
        raise InputError("method='dual' needs a MetricTensor, which knows its Jacobian: use 'lanczos' or 'dense'")
    counted = _Counted(g)
    before = metric.cost.forward_backwards if metric else 0.0
    top = min(top, size)
    if method == "lanczos" and top >= size - 1:
        method = "dense"

    if method == "lanczos":
        values, basis = _largest(counted, top, tolerance, seed)
        rounding = 10
        tail = lanczos_density(counted, probes=probes, steps=steps, without=basis, seed=seed)
    else:
        values, basis = _dense(counted, top) if method == "dense" else _dual(metric, top if vectors else 0)
        rest, rounding = size - len(values), max(10, len(values))
        tail = ((0.0, float(rest)),) if rest else ()
    return Spectrum(
        eigenvalues=tuple(values.tolist()),
        dimension=size,
        tail=tail,
        is_exact=method != "lanczos",
        noise=rounding * torch.finfo(g.dtype).eps * float(values[0]),
        metric=metric.metric if metric else "",
        num_rows=metric.num_rows if metric else 0,
        num_outputs=metric.num_outputs if metric else 0,
        rank_bound=metric.rank_bound if metric else size,
        method=method,
        products=counted.products,
        forward_backwards=metric.cost.forward_backwards - before if metric else 0.0,
        vectors=basis if vectors else None,
    )


class _Counted(SymmetricOperator):
    """An operator that counts its products."""

    def __init__(self, g: SymmetricOperator) -> None:
        self.g, self.products = g, 0
        self.shape, self.dtype, self.device = g.shape, g.dtype, g.device
        self.memory_limit_gb = g.memory_limit_gb

    def product(self, vectors: Tensor) -> Tensor:
        self.products += vectors.shape[1]
        return self.g @ vectors


def _largest(g: SymmetricOperator, top: int, tolerance: float, seed: int) -> tuple[np.ndarray, Tensor]:
    start = torch.randn(g.shape[0], generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    _refuse_zero(float((g @ start).norm()))
    try:
        values, basis = eigsh(
            g.as_scipy(), k=top, which="LA", v0=start.numpy(), tol=max(tolerance, 10 * torch.finfo(g.dtype).eps)
        )
    except ArpackNoConvergence as error:
        raise InputError(
            f"top={top}: only {len(error.eigenvalues)} eigenvalues converged; ask for fewer, raise tolerance="
            f"{tolerance:g}, or use dtype=torch.float64"
        ) from error
    order = np.argsort(values)[::-1]
    return values[order].astype(np.float64).clip(min=0.0), torch.from_numpy(basis[:, order].copy()).to(g.device)


def _dense(g: SymmetricOperator, top: int) -> tuple[np.ndarray, Tensor]:
    size, limit = g.shape[0] ** 2 * g.dtype.itemsize / GIB, g.memory_limit_gb
    if size > limit:
        raise InputError(
            f"method='dense': a matrix of {g.shape[0]:,} weights takes {size:.3g} GiB, above memory_limit_gb="
            f"{limit:.3g}; use 'lanczos', or 'dual' where outputs and anchors are few"
        )
    matrix = g @ torch.eye(g.shape[0], dtype=g.dtype, device=g.device)
    values, basis = torch.linalg.eigh((matrix + matrix.T) / 2)
    found = _descending(values)
    return found, basis.flip(1)[:, :top]


def _dual(g: MetricTensor, top: int) -> tuple[np.ndarray, Tensor | None]:
    values, basis = torch.linalg.eigh(g.gram())
    found = _descending(values)[: g.shape[0]]
    known = min(top, int((found > 0).sum()))
    if not known:
        return found, None
    changes = basis.flip(1)[:, :known].reshape(g.num_rows, g.num_outputs, known)
    vectors = g.vjp(g.root(changes))
    # Rounding in the Gram matrix, relative to its largest eigenvalue, tilts the vectors of the smaller ones.
    return found, torch.linalg.qr(vectors).Q


def _descending(values: Tensor) -> np.ndarray:
    found = values.flip(0).double().cpu().numpy().clip(min=0.0)
    _refuse_zero(float(found[0]))
    return found


def _refuse_zero(size: float) -> None:
    if not size > 0:
        raise InputError(ZERO)
