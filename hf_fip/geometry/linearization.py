"""A network on some anchors to first order around its weights: its Jacobian, known by products alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.func import jvp

from ..errors import InputError
from .network import Chunk, Network, Parameters


class Linearization:
    """
    A network on some anchors to first order around its weights.

    `J^T u` is a backward pass through the graph of one forward pass. It is linear in `u`, so its own derivative is
    the transpose: `J v` is a backward pass through *its* graph. Both graphs are kept, which makes a product as cheap
    as a backward pass, and needs no forward-mode derivative, which attention kernels and custom layers may lack.

    Args:
        function (`Callable`): from the weights to the outputs `[rows, C]`.
        parameters (`dict[str, torch.Tensor]`): the weights.
        forward_mode (`bool`): whether to take `J v` by forward-mode differentiation instead, at the cost of a forward
            pass for each product, for networks that cannot be differentiated twice.
    """

    def __init__(
        self, function: Callable[[Parameters], Tensor], parameters: Parameters, forward_mode: bool = False
    ) -> None:
        self.function = function
        self.parameters = {name: p.detach().requires_grad_() for name, p in parameters.items()}
        self.forward_mode = forward_mode
        with torch.enable_grad():
            self._outputs = function(self.parameters)
        if not self._outputs.requires_grad:
            raise InputError(
                "model: its outputs cannot be differentiated with respect to its trainable weights (an argmax, a "
                "detach or no_grad inside?); use a model whose logits can"
            )
        self._transposed: tuple[Tensor, tuple[Tensor, ...]] | None = None

    @property
    def outputs(self) -> Tensor:
        return self._outputs.detach()

    def vjp(self, change: Tensor, create_graph: bool = False) -> tuple[Tensor, ...]:
        """`J^T u` by parameter, for `u` of shape `[rows, C]`."""
        return torch.autograd.grad(
            self._outputs,
            list(self.parameters.values()),
            change,
            retain_graph=True,
            create_graph=create_graph,
            allow_unused=True,
            materialize_grads=True,
        )

    def prepare(self) -> None:
        """Makes what products `J v` need, where they need anything."""
        if not self.is_prepared:
            change = torch.zeros_like(self._outputs, requires_grad=True)
            self._transposed = change, self.vjp(change, create_graph=True)

    def jvp(self, direction: Parameters) -> Tensor:
        """`J v`, `[rows, C]`."""
        if self.forward_mode:
            fixed = {name: p.detach() for name, p in self.parameters.items()}
            return jvp(self.function, (fixed,), (direction,))[1]
        self.prepare()
        change, pulled = self._transposed
        pairs = [(value, v) for value, v in zip(pulled, direction.values(), strict=True) if value.grad_fn is not None]
        return torch.autograd.grad([p for p, _ in pairs], change, [v for _, v in pairs], retain_graph=True)[0]

    @property
    def is_prepared(self) -> bool:
        """Whether the next product `J v` needs no backward pass before it."""
        return self.forward_mode or self._transposed is not None


@dataclass(frozen=True)
class Needs:
    """What an anchor needs: bytes for its graphs, outputs, and whether products `J v` must go by forward mode."""

    bytes_per_anchor: int
    num_outputs: int
    forward_mode: bool


def measure(network: Network, chunk: Chunk) -> Needs:
    """
    The needs of an anchor, by trying one of a chunk.

    Raises:
        [`InputError`]: if the outputs cannot be differentiated as often as needed.
    """
    anchor = next((anchor for anchor in chunk.split(1) if anchor.num_rows), None)
    if anchor is None:
        raise InputError("anchors: a batch has no scored position; leave it out, or score some of its outputs")
    function = partial(network, chunk=anchor)
    own = {p.untyped_storage().data_ptr() for p in [*network.model.parameters(), *network.parameters.values()]}
    saved: dict[int, int] = {}

    def record(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    reason = "a derivative that cannot be differentiated"
    for forward_mode in (False, True):
        with saved_tensors_hooks(record, lambda tensor: tensor):
            tried = Linearization(function, network.parameters, forward_mode)
        try:
            with saved_tensors_hooks(record, lambda tensor: tensor):
                tried.prepare()
            if _is_adjoint(tried):
                return Needs(sum(saved.values()), tried.outputs.shape[1], forward_mode)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            reason = str(error).splitlines()[0].rstrip(".")
    raise InputError(
        f"model: its outputs can be differentiated neither twice nor in forward mode ({reason}); load it with "
        "attn_implementation='eager', and without custom kernels"
    )


def _is_adjoint(linearized: Linearization) -> bool:
    """
    Whether `u^T J v = v^T J^T u`. Layers that cannot be differentiated twice may leave their part of `J v` out without
    an error.
    """
    outputs = linearized.outputs
    change = torch.randn(outputs.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(outputs)
    pulled = linearized.vjp(change)
    pushed = linearized.jvp(dict(zip(linearized.parameters, pulled, strict=True)))
    expected = sum(float(part.square().sum()) for part in pulled)
    return abs(float((change * pushed).sum()) - expected) <= 1e-2 * expected
