"""Models run on batches: only the logits that are scored are computed."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..forward import base_model, logits_of
from .batches import Batch


class Forward:
    """
    Gives the scored rows of a model's logits.

    A language model's output layer costs as much as several others, and a masked model needs it for a few tokens in a
    hundred. So the hidden states of the tokens that are not scored are left out on their way to the output layer.
    Whether that gives the same logits is tried on the first batch of each model object; if not, all are computed.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._model: nn.Module | None = None
        self._names: frozenset[str] = frozenset()
        self._can_select = False

    @torch.inference_mode()
    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        """
        Args:
            model (`nn.Module`): in evaluation mode, on the device.
            batch (`Batch`): what it reads.

        Returns:
            `Tensor`: `[scored, classes]` in float32.
        """
        inner = base_model(model)
        is_new = inner is not self._model
        if is_new:
            self._model = inner
            self._names = frozenset(inspect.signature(inner.forward).parameters)
        inputs = {key: value.to(self.device) for key, value in batch.inputs.items() if key in self._names}
        if batch.scored is None:
            return logits_of(model(**inputs)).float()
        scored = batch.scored.to(self.device)
        if not is_new and self._can_select:
            return self._selected(model, inner, inputs, scored)
        logits = logits_of(model(**inputs))[scored].float()
        if is_new:
            self._can_select = _alike(self._selected(model, inner, inputs, scored), logits)
        return logits

    def _selected(
        self, model: nn.Module, inner: nn.Module, inputs: dict[str, Tensor], scored: Tensor
    ) -> Tensor | None:
        with _only(inner, scored):
            try:
                logits = logits_of(model(**inputs))
            except (RuntimeError, ValueError, TypeError, IndexError, AttributeError):
                return None
        return logits[0].float() if logits.ndim == 3 and len(logits) == 1 else None


@contextmanager
def _only(inner: nn.Module, scored: Tensor) -> Iterator[None]:
    """While it lasts, the model's body gives the hidden states of the scored tokens only, as one row of tokens."""

    def select(module: nn.Module, args: Any, output: Any) -> Any:
        output[list(output)[0]] = output[0][scored].unsqueeze(0)
        return output

    body = getattr(inner, getattr(inner, "base_model_prefix", ""), None)
    if not isinstance(body, nn.Module):
        yield
        return
    hook = body.register_forward_hook(select)
    try:
        yield
    finally:
        hook.remove()


def _alike(selected: Tensor | None, logits: Tensor) -> bool:
    if selected is None or selected.shape != logits.shape:
        return False
    return torch.allclose(selected, logits, rtol=1e-3, atol=1e-4)
