"""A network as a pure function of its trainable weights: what the products with its Jacobian start from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from copy import copy
from dataclasses import dataclass

import torch
from accelerate.utils import extract_model_from_parallel
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..errors import InputError
from ..forward import OutputKind, logits_of, output_kind
from ..functional.anchors import IGNORED_LABEL


Inputs = Mapping[str, Tensor]
Parameters = dict[str, Tensor]


@dataclass(frozen=True)
class Chunk:
    """
    Anchors that go through the network together.

    Args:
        inputs (`dict[str, torch.Tensor]`): the model's inputs.
        scored (`torch.Tensor`, *optional*): `[anchors, tokens]`, true at the positions whose outputs count.
        rows (`slice`): which rows of all outputs are theirs.
    """

    inputs: dict[str, Tensor]
    scored: Tensor | None
    rows: slice

    @property
    def num_anchors(self) -> int:
        return len(next(iter(self.inputs.values())))

    @property
    def num_rows(self) -> int:
        return self.rows.stop - self.rows.start

    def split(self, size: int) -> Iterator[Chunk]:
        """The chunk in parts of at most so many anchors."""
        start = self.rows.start
        for low in range(0, self.num_anchors, size):
            part = slice(low, low + size)
            inputs = {name: values[part] for name, values in self.inputs.items()}
            scored = None if self.scored is None else self.scored[part]
            number = len(next(iter(inputs.values()))) if scored is None else int(scored.sum())
            yield Chunk(inputs, scored, slice(start, start + number))
            start += number


class Network:
    """
    The outputs of a model as a function of its trainable weights, in the mode in which its function is defined (no
    dropout, batch norms on their running statistics).

    Args:
        model (`torch.nn.Module`): the model, wrapped or not; it is left as it is.
        dtype (`torch.dtype`, *optional*): in which everything is computed; that of the weights by default, at least
            float32.

    Raises:
        [`InputError`]: if no weight is trainable, or they are sharded over processes.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype | None = None) -> None:
        self.model = extract_model_from_parallel(model)
        trainable = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        if not trainable:
            _refuse_nothing_trainable(self.model)
        first = next(iter(trainable.values()))
        if any(isinstance(p, DTensor) for p in trainable.values()):
            raise InputError("model: its weights are sharded over processes; pass a model that is whole on each")
        self.device = first.device
        self.dtype = dtype or torch.promote_types(first.dtype, torch.float32)
        if not self.dtype.is_floating_point:
            raise InputError(f"dtype={dtype} must be a floating point type: use torch.float32 or torch.float64")
        self.parameters: Parameters = {
            name: p.detach().to(self.device, self.dtype, copy=True) for name, p in trainable.items()
        }
        tensors = [*self.model.named_parameters(), *self.model.named_buffers()]
        self._constants = {
            name: tensor.detach().to(self.dtype)
            for name, tensor in tensors
            if name not in trainable and tensor.is_floating_point() and tensor.dtype != self.dtype
        }

    @property
    def size(self) -> int:
        """The number of trainable weights, `n`."""
        return sum(p.numel() for p in self.parameters.values())

    def at(self, parameters: Parameters) -> Network:
        """The same network at other weights."""
        other = copy(self)
        other.parameters = parameters
        return other

    def chunks(self, anchors: Inputs | Iterable[Inputs]) -> list[Chunk]:
        """
        The anchors as chunks, one for each batch that was passed.

        Raises:
            [`InputError`]: if there are none, their inputs disagree in number, or a model with an output per token
                gets no `labels` that say which of them count.
        """
        kind = output_kind(self.model)
        chunks: list[Chunk] = []
        start = 0
        for batch in [anchors] if isinstance(anchors, Mapping) else anchors:
            inputs = {name: values for name, values in batch.items() if isinstance(values, Tensor)}
            labels = inputs.pop("labels", None)
            lengths = {name: len(values) if values.ndim else 0 for name, values in inputs.items()}
            if len(set(lengths.values())) != 1 or not min(lengths.values()):
                raise InputError(
                    f"anchors: inputs of {lengths or 'no'} examples; pass model inputs, each with one entry per anchor"
                )
            scored = _scored(labels, kind) if kind.per_token else None
            number = len(next(iter(inputs.values()))) if scored is None else int(scored.sum())
            chunks.append(Chunk(inputs, scored, slice(start, start + number)))
            start += number
        if not start:
            raise InputError("anchors: there are none; pass at least one batch of model inputs")
        return chunks

    def __call__(self, parameters: Parameters, chunk: Chunk) -> Tensor:
        """
        Args:
            parameters (`dict[str, torch.Tensor]`): the trainable weights.
            chunk (`Chunk`): the anchors.

        Returns:
            `torch.Tensor`: `[rows, C]`, a row for each anchor or scored position.

        Raises:
            [`InputError`]: if the outputs have no such shape, or are not finite.
        """
        inputs = {
            name: values.to(self.device, self.dtype if values.is_floating_point() else None)
            for name, values in chunk.inputs.items()
        }
        with self._mode():
            logits = logits_of(functional_call(self.model, {**self._constants, **parameters}, (), inputs))
        if not isinstance(logits, Tensor):
            raise InputError(f"model: {type(self.model).__name__} gives no logits; use a model with an output head")
        if chunk.scored is not None:
            logits = logits[chunk.scored.to(self.device)]
        logits = logits.unsqueeze(-1) if logits.ndim == 1 else logits
        if logits.ndim != 2 or len(logits) != chunk.num_rows:
            raise InputError(
                f"model: outputs of shape {list(logits.shape)} for {chunk.num_anchors} anchors; the metric tensor "
                "needs logits of shape [anchors, classes]"
            )
        if not torch.isfinite(logits).all():
            raise InputError("model: its outputs on the anchors are not finite; check its weights and the anchors")
        return logits

    @contextmanager
    def _mode(self) -> Iterator[None]:
        modes = {module: module.training for module in self.model.modules()}
        with ExitStack() as stack:
            # The fused attention kernels have no second derivative, which a product J v needs.
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            stack.enter_context(torch.autocast(self.device.type, enabled=False))
            # Not `function_mode_`: layers that recompute their activations would do so at each product.
            self.model.eval()
            try:
                yield
            finally:
                for module, training in modes.items():
                    module.training = training


def _scored(labels: Tensor | None, kind: OutputKind) -> Tensor:
    if labels is None:
        raise InputError(
            "anchors: the model has an output per token; add 'labels' to the anchors, "
            f"{IGNORED_LABEL} where an output does not count"
        )
    if kind is OutputKind.NEXT_TOKEN:
        labels = nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORED_LABEL)
    return labels.ne(IGNORED_LABEL)


def _refuse_nothing_trainable(model: nn.Module) -> None:
    whole = sorted({str(p.dtype) for p in model.parameters() if not p.is_floating_point()})
    if whole:
        raise InputError(
            f"model: its weights are integers ({', '.join(whole)}), which have no metric tensor; load it without "
            "quantization"
        )
    raise InputError("model: none of its weights is trainable; set requires_grad on those whose geometry you ask for")
