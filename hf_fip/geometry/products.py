"""Products with the Jacobian of a network's outputs, `J v` and `J^T u`, anchors in chunks that fit into memory."""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass
from functools import partial

import torch
from accelerate import PartialState
from accelerate.utils import reduce
from torch import Tensor

from ..errors import InputError
from ..functional.anchors import GIB
from .linearization import Linearization, Needs
from .network import Chunk, Network, Parameters


@dataclass
class Cost:
    """
    Work done, in passes over all anchors.

    Args:
        forwards (`float`): evaluations of the outputs.
        jvps (`float`): products `J v`.
        vjps (`float`): products `J^T u`, and the backward passes that prepare products `J v`.
        products (`int`): products with the metric tensor.
    """

    forwards: float = 0.0
    jvps: float = 0.0
    vjps: float = 0.0
    products: int = 0

    @property
    def forward_backwards(self) -> float:
        """The work in forward-backward passes over all anchors: a backward or a product counts as two forwards."""
        return (self.forwards + 2 * self.jvps + 2 * self.vjps) / 3


class JacobianProducts:
    """
    `J v` and `J^T u` for all anchors at the network's weights.

    Under several processes each works on its share of the anchors, and every process gets the whole result: all must
    then call with the same arguments.

    Args:
        network (`Network`): the network.
        batches (`list[Chunk]`): all anchors.
        needs (`Needs`): what one anchor needs.
        chunk_size (`int`, *optional*): anchors that go through the network together; as many as fit by default.
        memory_limit (`int`): bytes that graphs may take. If those of all anchors fit, they are kept; otherwise each
            product makes them anew.
        distributed (`bool`): whether to share the work between processes.
        cost (`Cost`): where work is counted.

    Raises:
        [`InputError`]: if not even one anchor fits.
    """

    def __init__(
        self,
        network: Network,
        batches: list[Chunk],
        needs: Needs,
        *,
        chunk_size: int | None,
        memory_limit: int,
        distributed: bool,
        cost: Cost,
    ) -> None:
        self.network = network
        self.needs = needs
        self.cost = cost
        self.num_rows = batches[-1].rows.stop
        self.num_anchors = sum(batch.num_anchors for batch in batches)
        self.rank, self.num_processes = 0, 1
        if distributed and torch.distributed.is_initialized():
            state = PartialState()
            self.rank, self.num_processes = state.process_index, state.num_processes
        fitting = memory_limit // max(1, needs.bytes_per_anchor)
        if not fitting:
            raise InputError(
                f"anchors: one of them takes {needs.bytes_per_anchor / GIB:.3g} GiB, above memory_limit_gb="
                f"{memory_limit / GIB:.3g}; raise the limit or shorten the anchors"
            )
        share = math.ceil(self.num_anchors / self.num_processes)
        size = min(share, fitting, chunk_size or share)
        self.chunks = [part for batch in batches for part in batch.split(size)]
        self.share = range(self.rank, len(self.chunks), self.num_processes)
        self.retain = sum(self.chunks[index].num_anchors for index in self.share) <= fitting
        self._kept: dict[int, Linearization] = {}

    def at(self, parameters: Parameters) -> JacobianProducts:
        """The same at other weights."""
        other = copy(self)
        other.network, other._kept = self.network.at(parameters), {}
        return other

    def summed(self, values: Tensor) -> Tensor:
        """The sum over the processes."""
        return reduce(values, "sum") if self.num_processes > 1 else values

    def outputs(self) -> Tensor:
        """The outputs of all anchors, `[N, C]`."""
        return self._rows(lambda chunk, linearized: linearized.outputs)

    def jvp(self, direction: Parameters) -> Tensor:
        """`J v`, `[N, C]`."""
        return self._rows(lambda chunk, linearized: self.push(chunk, linearized, direction))

    def vjp(self, change: Tensor) -> Tensor:
        """`J^T u`, flat, for `u` of shape `[N, C]`."""
        return self._total(lambda chunk, linearized: change[chunk.rows])

    def through(self, direction: Parameters, weight: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """`J^T H J v`, flat, in one pass; `weight` takes the outputs and the change of some rows."""

        def change(chunk: Chunk, linearized: Linearization) -> Tensor:
            return weight(linearized.outputs, self.push(chunk, linearized, direction))

        return self._total(change)

    def push(self, chunk: Chunk, linearized: Linearization, direction: Parameters) -> Tensor:
        """`J v` on one chunk, counted."""
        part = chunk.num_anchors / self.num_anchors
        self.cost.vjps += 0 if linearized.is_prepared else part
        self.cost.forwards += part if linearized.forward_mode else 0
        self.cost.jvps += part
        return linearized.jvp(direction)

    def pull(self, chunk: Chunk, linearized: Linearization, change: Tensor) -> Tensor:
        """`J^T u` on one chunk, flat, counted."""
        self.cost.vjps += chunk.num_anchors / self.num_anchors
        return torch.cat([part.reshape(-1) for part in linearized.vjp(change)])

    def linearize(self, chunk: Chunk) -> Linearization:
        """The network on one chunk, to first order, counted."""
        self.cost.forwards += chunk.num_anchors / self.num_anchors
        return Linearization(
            partial(self.network, chunk=chunk), self.network.parameters, forward_mode=self.needs.forward_mode
        )

    def _linearized(self, index: int) -> Linearization:
        if index in self._kept:
            return self._kept[index]
        linearized = self.linearize(self.chunks[index])
        if self.retain:
            self._kept[index] = linearized
        return linearized

    def _rows(self, of: Callable[[Chunk, Linearization], Tensor]) -> Tensor:
        found: dict[int, Tensor] = {index: of(self.chunks[index], self._linearized(index)) for index in self.share}
        if self.num_processes == 1:
            return torch.cat(list(found.values()))
        shape = (self.num_rows, self.needs.num_outputs)
        rows = torch.zeros(shape, dtype=self.network.dtype, device=self.network.device)
        for index, values in found.items():
            rows[self.chunks[index].rows] = values
        return self.summed(rows)

    def _total(self, change: Callable[[Chunk, Linearization], Tensor]) -> Tensor:
        total = torch.zeros(self.network.size, dtype=self.network.dtype, device=self.network.device)
        for index in self.share:
            chunk, linearized = self.chunks[index], self._linearized(index)
            total += self.pull(chunk, linearized, change(chunk, linearized))
        return self.summed(total)
