"""The Jacobian of a network's outputs row by row, and its Gram matrix (the empirical neural tangent kernel)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ..errors import InputError
from ..functional.anchors import GIB
from .linearization import Linearization
from .network import Chunk
from .products import JacobianProducts


# Rows multiplied at a time: enough for the speed of a matrix product, few enough to use the symmetry.
ROWS_OF_A_BLOCK = 128

Root = Callable[[Tensor, Tensor], Tensor]


def jacobian_rows(products: JacobianProducts, memory_limit: int) -> Tensor:
    """
    The Jacobian, `[N C, n]`: a row takes a backward pass of its own anchor alone, not of all.

    Args:
        products (`JacobianProducts`): the Jacobian.
        memory_limit (`int`): in bytes.

    Raises:
        [`InputError`]: if it does not fit.
    """
    network, outputs = products.network, products.needs.num_outputs
    row = outputs * network.size * network.dtype.itemsize
    if products.num_rows * row > memory_limit:
        fewer = f"use at most {memory_limit // row:,} rows" if memory_limit >= row else "raise the limit"
        raise InputError(
            f"anchors: the Jacobian of {products.num_rows:,} rows with {outputs:,} outputs takes "
            f"{products.num_rows * row / GIB:.3g} GiB, above memory_limit_gb={memory_limit / GIB:.3g}; {fewer}, or "
            "products alone (g.jvp, g.vjp)"
        )
    size = products.num_rows * outputs
    rows = torch.zeros(size, network.size, dtype=network.dtype, device=network.device)
    anchors = [anchor for chunk in products.chunks for anchor in chunk.split(1)]
    for anchor in anchors[products.rank :: products.num_processes]:
        rows[_span([anchor], outputs)] = _rows(products, [anchor], lambda outputs, unit: unit)
    return products.summed(rows)


def gram_matrix(products: JacobianProducts, root: Root, memory_limit: int) -> Tensor:
    """
    `A A^T`, `[N C, N C]`, with `A` the rows of the Jacobian, those of an anchor combined by `root`.

    `A` itself, `[N C, n]`, may be far larger than memory: as many blocks of rows as fit are held, and the blocks after
    them are made one at a time, again for each set of blocks held.

    Args:
        products (`JacobianProducts`): the Jacobian.
        root (`Callable`): `S u` from the outputs and `u`, both `[rows, C]`.
        memory_limit (`int`): in bytes, for the matrix and for the rows held.

    Raises:
        [`InputError`]: if the matrix, or the rows of one anchor, do not fit.
    """
    network, outputs = products.network, products.needs.num_outputs
    size, item = products.num_rows * outputs, network.dtype.itemsize
    if size * size * item > memory_limit:
        most = int((memory_limit / item) ** 0.5) // outputs
        raise InputError(
            f"anchors: the Gram matrix of {products.num_rows:,} rows with {outputs:,} outputs takes "
            f"{size * size * item / GIB:.3g} GiB, above memory_limit_gb={memory_limit / GIB:.3g}; use at most "
            f"{most:,} rows, or products alone (g @ v)"
        )
    anchors = [anchor for chunk in products.chunks for anchor in chunk.split(1)]
    fitting = memory_limit // (network.size * item)
    largest = max(anchor.num_rows for anchor in anchors) * outputs
    if 2 * largest > fitting:
        raise InputError(
            f"anchors: the Jacobian of one anchor ({largest:,} rows of {network.size:,} weights) takes "
            f"{largest * network.size * item / GIB:.3g} GiB, above half of memory_limit_gb={memory_limit / GIB:.3g}; "
            "raise the limit, or use products alone (g @ v)"
        )
    rows_of_a_block = max(largest, min(ROWS_OF_A_BLOCK, fitting // 2))
    blocks = list(_blocks(anchors, rows_of_a_block // outputs))
    held = max(1, fitting // rows_of_a_block - 1)
    matrix = torch.zeros(size, size, dtype=network.dtype, device=network.device)
    starts = range(0, len(blocks), held)
    for start in starts[products.rank :: products.num_processes]:
        kept: list[tuple[slice, Tensor]] = []
        for number, block in enumerate(blocks[start:]):
            rows, columns = _rows(products, block, root), _span(block, outputs)
            if number < held:
                kept.append((columns, rows))
            for other, other_rows in kept:
                product = other_rows @ rows.T
                matrix[other, columns] = product
                matrix[columns, other] = product.T
    return products.summed(matrix)


def _blocks(anchors: list[Chunk], rows: int) -> Iterator[list[Chunk]]:
    block: list[Chunk] = []
    for anchor in anchors:
        if block and anchor.rows.stop - block[0].rows.start > rows:
            yield block
            block = []
        block.append(anchor)
    yield block


def _span(block: list[Chunk], outputs: int) -> slice:
    return slice(block[0].rows.start * outputs, block[-1].rows.stop * outputs)


def _rows(products: JacobianProducts, block: list[Chunk], root: Root) -> Tensor:
    """The rows of `A` that belong to some anchors, `[rows C, n]`."""
    network = products.network
    span = _span(block, products.needs.num_outputs)
    rows = torch.empty(span.stop - span.start, network.size, dtype=network.dtype, device=network.device)
    filled = 0
    for anchor in block:
        linearized = products.linearize(anchor)
        for unit in _units(linearized):
            rows[filled] = products.pull(anchor, linearized, root(linearized.outputs, unit))
            filled += 1
    return rows


def _units(linearized: Linearization) -> Iterator[Tensor]:
    for entry in range(linearized.outputs.numel()):
        unit = torch.zeros_like(linearized.outputs)
        unit.view(-1)[entry] = 1
        yield unit
